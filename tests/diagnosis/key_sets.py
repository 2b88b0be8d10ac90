"""Key sets of published model layouts, small: names as they are on the Hub, shapes in their proportions.

A line is a template and its shape in letters: d width, f feed-forward, v vocabulary, k rows of a grouped key, e
experts. Templates with `{}` are there for every layer, `{e}` counts experts. The second column of classes says which
module holds the tensor.
"""

from __future__ import annotations

SIZES = {"d": 16, "f": 44, "v": 60, "k": 8, "e": 4, "p": 40, "c": 3, "i": 5, "1": 1}

LAYOUTS: dict[str, str] = {
    "decoder": """
        model.embed_tokens.weight v,d Embedding
        model.layers.{}.input_layernorm.weight d Norm
        model.layers.{}.self_attn.q_proj.weight d,d Linear
        model.layers.{}.self_attn.k_proj.weight k,d Linear
        model.layers.{}.self_attn.v_proj.weight k,d Linear
        model.layers.{}.self_attn.o_proj.weight d,d Linear
        model.layers.{}.post_attention_layernorm.weight d Norm
        model.layers.{}.mlp.gate_proj.weight f,d Linear
        model.layers.{}.mlp.up_proj.weight f,d Linear
        model.layers.{}.mlp.down_proj.weight d,f Linear
        model.norm.weight d Norm
        lm_head.weight v,d Linear""",
    "two towers": """
        model.vision_tower.embeddings.class_embedding d -
        model.vision_tower.embeddings.patch_embedding.weight d,c,i,i Conv
        model.vision_tower.encoder.layers.{}.self_attn.k_proj.weight d,d Linear
        model.vision_tower.encoder.layers.{}.self_attn.k_proj.bias d Linear
        model.vision_tower.encoder.layers.{}.self_attn.q_proj.weight d,d Linear
        model.vision_tower.encoder.layers.{}.self_attn.q_proj.bias d Linear
        model.vision_tower.encoder.layers.{}.self_attn.v_proj.weight d,d Linear
        model.vision_tower.encoder.layers.{}.self_attn.v_proj.bias d Linear
        model.vision_tower.encoder.layers.{}.self_attn.out_proj.weight d,d Linear
        model.vision_tower.encoder.layers.{}.self_attn.out_proj.bias d Linear
        model.vision_tower.encoder.layers.{}.layer_norm1.weight d Norm
        model.vision_tower.encoder.layers.{}.layer_norm1.bias d Norm
        model.vision_tower.encoder.layers.{}.layer_norm2.weight d Norm
        model.vision_tower.encoder.layers.{}.layer_norm2.bias d Norm
        model.vision_tower.encoder.layers.{}.mlp.fc1.weight f,d Linear
        model.vision_tower.encoder.layers.{}.mlp.fc2.weight d,f Linear
        model.multi_modal_projector.linear_1.weight f,d Linear
        model.multi_modal_projector.linear_2.weight d,f Linear
        model.language_model.embed_tokens.weight v,d Embedding
        model.language_model.layers.{}.input_layernorm.weight d Norm
        model.language_model.layers.{}.self_attn.q_proj.weight d,d Linear
        model.language_model.layers.{}.self_attn.k_proj.weight k,d Linear
        model.language_model.layers.{}.self_attn.v_proj.weight k,d Linear
        model.language_model.layers.{}.self_attn.o_proj.weight d,d Linear
        model.language_model.layers.{}.post_attention_layernorm.weight d Norm
        model.language_model.layers.{}.mlp.gate_proj.weight f,d Linear
        model.language_model.layers.{}.mlp.up_proj.weight f,d Linear
        model.language_model.layers.{}.mlp.down_proj.weight d,f Linear
        model.language_model.norm.weight d Norm
        lm_head.weight v,d Linear""",
    "rotary with one fused matrix": """
        transformer.embedding.word_embeddings.weight v,d Embedding
        transformer.encoder.layers.{}.input_layernorm.weight d Norm
        transformer.encoder.layers.{}.self_attention.query_key_value.weight d+k+k,d Linear
        transformer.encoder.layers.{}.self_attention.query_key_value.bias d+k+k Linear
        transformer.encoder.layers.{}.self_attention.dense.weight d,d Linear
        transformer.encoder.layers.{}.post_attention_layernorm.weight d Norm
        transformer.encoder.layers.{}.mlp.dense_h_to_4h.weight f+f,d Linear
        transformer.encoder.layers.{}.mlp.dense_4h_to_h.weight d,f Linear
        transformer.encoder.final_layernorm.weight d Norm
        transformer.output_layer.weight v,d Linear""",
    "experts": """
        model.embed_tokens.weight v,d Embedding
        model.layers.{}.input_layernorm.weight d Norm
        model.layers.{}.self_attn.q_proj.weight d,d Linear
        model.layers.{}.self_attn.k_proj.weight k,d Linear
        model.layers.{}.self_attn.v_proj.weight k,d Linear
        model.layers.{}.self_attn.o_proj.weight d,d Linear
        model.layers.{}.post_attention_layernorm.weight d Norm
        model.layers.{}.block_sparse_moe.gate.weight e,d Linear
        model.layers.{}.block_sparse_moe.experts.{e}.w1.weight f,d Linear
        model.layers.{}.block_sparse_moe.experts.{e}.w2.weight d,f Linear
        model.layers.{}.block_sparse_moe.experts.{e}.w3.weight f,d Linear
        model.norm.weight d Norm
        lm_head.weight v,d Linear""",
    "conv1d": """
        wte.weight v,d Embedding
        wpe.weight p,d Embedding
        h.{}.ln_1.weight d Norm
        h.{}.ln_1.bias d Norm
        h.{}.attn.c_attn.weight d,d+d+d Conv1D
        h.{}.attn.c_attn.bias d+d+d Conv1D
        h.{}.attn.c_proj.weight d,d Conv1D
        h.{}.attn.c_proj.bias d Conv1D
        h.{}.ln_2.weight d Norm
        h.{}.ln_2.bias d Norm
        h.{}.mlp.c_fc.weight d,f Conv1D
        h.{}.mlp.c_fc.bias f Conv1D
        h.{}.mlp.c_proj.weight f,d Conv1D
        h.{}.mlp.c_proj.bias d Conv1D
        ln_f.weight d Norm
        ln_f.bias d Norm""",
    "encoder": """
        embeddings.word_embeddings.weight v,d Embedding
        embeddings.position_embeddings.weight p,d Embedding
        embeddings.LayerNorm.weight d Norm
        embeddings.LayerNorm.bias d Norm
        encoder.layer.{}.attention.self.query.weight d,d Linear
        encoder.layer.{}.attention.self.query.bias d Linear
        encoder.layer.{}.attention.self.key.weight d,d Linear
        encoder.layer.{}.attention.self.key.bias d Linear
        encoder.layer.{}.attention.self.value.weight d,d Linear
        encoder.layer.{}.attention.self.value.bias d Linear
        encoder.layer.{}.attention.output.dense.weight d,d Linear
        encoder.layer.{}.attention.output.dense.bias d Linear
        encoder.layer.{}.attention.output.LayerNorm.weight d Norm
        encoder.layer.{}.attention.output.LayerNorm.bias d Norm
        encoder.layer.{}.intermediate.dense.weight f,d Linear
        encoder.layer.{}.intermediate.dense.bias f Linear
        encoder.layer.{}.output.dense.weight d,f Linear
        encoder.layer.{}.output.dense.bias d Linear
        encoder.layer.{}.output.LayerNorm.weight d Norm
        encoder.layer.{}.output.LayerNorm.bias d Norm
        pooler.dense.weight d,d Linear
        pooler.dense.bias d Linear""",
}


def key_set(name: str, layers: int) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Return a layout's keys with shapes, and the class of each module that holds them."""
    shapes: dict[str, tuple[int, ...]] = {}
    classes: dict[str, str] = {}
    for line in LAYOUTS[name].split("\n"):
        if not line.strip():
            continue
        template, letters, kind = line.split()
        shape = tuple(sum(SIZES[letter] for letter in part.split("+")) for part in letters.split(","))
        for layer in range(layers) if "{}" in template else [0]:
            for expert in range(SIZES["e"]) if "{e}" in template else [0]:
                key = template.replace("{}", str(layer)).replace("{e}", str(expert))
                shapes[key] = shape
                if kind != "-":
                    classes[key.rpartition(".")[0]] = kind
    return shapes, classes
