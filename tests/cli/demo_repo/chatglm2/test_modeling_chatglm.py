import ast
from pathlib import Path

import pytest
import torch

import shardload
from shardload.cli.demo_repo import SIZES

IDS = torch.arange(40, 58).view(2, 9)


@pytest.fixture(scope="module")
def model(small_repo):
    return shardload.from_pretrained(small_repo, trust_remote_code=True)


def logits_of(model, **keywords):
    with torch.inference_mode():
        return model(IDS, **keywords).logits


def test_the_state_dict_is_what_the_sizes_say(model):
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == SIZES["small"].shapes
    assert list(shapes) == list(SIZES["small"].shapes)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float16}


def test_the_stored_frequencies_are_those_that_the_class_computes(model, small_repo):
    stored = shardload.open_checkpoint(small_repo).read("transformer.rotary_pos_emb.inv_freq")
    fresh = type(model)(model.config, empty_init=False)
    assert torch.equal(stored, fresh.transformer.rotary_pos_emb.inv_freq)


def test_both_formats_and_torchs_own_loading_give_the_same_logits(model, small_repo):
    expected = logits_of(model)
    assert expected.isfinite().all()
    assert expected.std() > 0.1
    bins = shardload.from_pretrained(small_repo / "pytorch_model.bin.index.json", trust_remote_code=True)
    assert shardload.report_of(bins).format != shardload.report_of(model).format
    assert torch.equal(logits_of(bins), expected)
    state = {}
    for path in small_repo.glob("pytorch_model-*.bin"):
        state |= torch.load(path, weights_only=True)
    own = type(model)(model.config).eval()
    own.load_state_dict(state, assign=True)
    assert torch.equal(logits_of(own), expected)


def test_positions_matter(model):
    plain = logits_of(model)
    assert torch.equal(plain, logits_of(model, position_ids=torch.arange(9).expand(2, -1)))
    assert not torch.allclose(plain, logits_of(model, position_ids=torch.arange(8, -1, -1).expand(2, -1)))


def test_no_position_sees_a_later_one(model):
    changed = IDS.clone()
    changed[:, 5] = 7
    with torch.inference_mode():
        other = model(changed).logits
    assert torch.equal(other[:, :5], logits_of(model)[:, :5])
    assert not torch.equal(other[:, 5:], logits_of(model)[:, 5:])


def test_padding_on_the_left_changes_nothing_for_the_rest(model):
    padded = torch.nn.functional.pad(IDS, (3, 0))
    mask = (torch.arange(12) >= 3).expand(2, -1).long()
    positions = (torch.arange(12) - 3).clamp(min=0).expand(2, -1)
    with torch.inference_mode():
        logits = model(padded, attention_mask=mask, position_ids=positions).logits
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[:, 3:], logits_of(model), rtol=0.02, atol=0.02)


def test_steps_with_a_cache_give_what_whole_passes_give(model):
    *_, ids = model.stream_generate(IDS, max_new_tokens=4)
    whole = IDS
    with torch.inference_mode():
        for _ in range(4):
            whole = torch.cat((whole, model(whole).logits[:, -1:].argmax(dim=-1)), dim=1)
    assert torch.equal(ids, whole)


def test_gradient_checkpointing_gives_the_same_gradients(small_repo):
    model = shardload.from_pretrained(small_repo, trust_remote_code=True, dtype="float32").train()
    weight = model.transformer.encoder.layers[0].mlp.dense_4h_to_h.weight
    gradients = []
    for switched_on in (False, True):
        if switched_on:
            model.gradient_checkpointing_enable()
            assert model.transformer.encoder.gradient_checkpointing
        model.zero_grad()
        output = model(IDS, labels=IDS)
        output.loss.backward()
        gradients.append(weight.grad.clone())
        assert (output.past_key_values is None) is switched_on
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients)


def test_the_adapter_in_the_repo_fits(model, small_repo):
    adapted = shardload.from_pretrained(small_repo, trust_remote_code=True, adapter=small_repo / "adapter")
    assert shardload.report_of(adapted).adapters[0].modules == 6
    change = (logits_of(adapted) - logits_of(model)).abs().max()
    assert 0.05 < change < 5


def test_the_classifier_of_the_auto_map_lacks_only_its_head(small_repo):
    model = shardload.from_pretrained(
        small_repo,
        trust_remote_code=True,
        auto_class="AutoModelForSequenceClassification",
        allow_missing=["classifier_head.*"],
    )
    assert logits_of(model).shape == (2, 2)


def test_the_code_imports_what_the_published_code_imports():
    code = Path(shardload.cli.demo_repo.__file__).parent / "chatglm2"
    names = set()
    for path in code.glob("*_chatglm.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("transformers"):
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
    assert names == {
        "transformers.PretrainedConfig",
        "transformers.generation.logits_process.LogitsProcessor",
        "transformers.generation.utils.GenerationConfig",
        "transformers.generation.utils.LogitsProcessorList",
        "transformers.generation.utils.ModelOutput",
        "transformers.generation.utils.StoppingCriteriaList",
        "transformers.modeling_outputs.BaseModelOutputWithPast",
        "transformers.modeling_outputs.CausalLMOutputWithPast",
        "transformers.modeling_outputs.SequenceClassifierOutputWithPast",
        "transformers.modeling_utils.PreTrainedModel",
        "transformers.utils.logging",
    }


def test_generate_gives_what_a_loop_over_the_likeliest_token_gives(small_repo):
    model = shardload.from_pretrained(small_repo, trust_remote_code=True)
    ids = torch.tensor([[64, 65, 66]])
    expected = ids
    with torch.inference_mode():
        for _ in range(6):
            logits = model(expected, use_cache=False).logits
            expected = torch.cat((expected, logits[:, -1].argmax(-1, keepdim=True)), dim=1)
    assert torch.equal(model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=-1), expected)
