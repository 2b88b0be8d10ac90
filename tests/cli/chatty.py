"""Small repos that can be talked to: own code, own vocabulary, random weights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from tests.tiny import save_safetensors
from tests.transformers_shim.vocabularies import LETTERS, NEW

if TYPE_CHECKING:
    from pathlib import Path

MODEL = """
import time
import torch
from torch import nn
from transformers import PretrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class TinyConfig(PretrainedConfig):
    model_type = "tiny"

    def __init__(self, vocab_size=8, delay=0.0, **kwargs):
        self.vocab_size = vocab_size
        self.delay = delay
        super().__init__(**kwargs)


class TinyChat(PreTrainedModel):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.table = nn.Embedding(config.vocab_size, config.vocab_size)

    def prepare_inputs_for_generation(self, input_ids, **kwargs):
        return {"input_ids": input_ids}

    def forward(self, input_ids, **kwargs):
        time.sleep(self.config.delay)
        return CausalLMOutputWithPast(logits=self.table(input_ids))
"""

# Yields the query backwards, and how many turns there were; from its own thread where the config says so.
STREAM = """
    def stream_chat(self, tokenizer, query, history=None, max_new_tokens=100, **kwargs):
        history = history or []
        text = ""
        for letter in query[::-1] + str(len(history)):
            time.sleep(self.config.delay)
            text += letter
            yield text, history + [(query, text)]
"""
THREADED = """
    def stream_chat(self, tokenizer, query, history=[], max_new_tokens=100, **kwargs):
        import queue, threading
        from transformers.generation.streamers import BaseStreamer
        answers = queue.Queue(maxsize=3)

        class Streamer(BaseStreamer):
            ids = None

            def put(self, value):
                if self.ids is None:
                    self.ids = []
                    return
                self.ids = self.ids + value.reshape(-1).tolist()
                answers.put(tokenizer.decode(self.ids))

            def end(self):
                answers.put(None)

        def produce():
            ids = tokenizer(query, return_tensors="pt")["input_ids"]
            self.generate(ids, streamer=Streamer(), max_new_tokens=max_new_tokens, do_sample=False, **kwargs)

        def consume():
            threading.Thread(target=produce).start()
            while (answer := answers.get()) is not None:
                yield answer, history + [(query, answer)]

        return consume()
"""
MESSAGES = """
    def chat(self, tokenizer, messages, stream=False, generation_config=None):
        text = ""
        for message in messages:
            text += message["content"]
            yield text
"""
QUERY = """
    def chat(self, tokenizer, query, history, stop_words_ids=None, **kwargs):
        ids = tokenizer(query, return_tensors="pt")["input_ids"]
        out = self.generate(ids, **kwargs)
        return tokenizer.decode(out[0][ids.shape[1]:], skip_special_tokens=True), history + [(query, "x")]
"""
TEMPLATE = "{% for m in messages %}{{ m.role[0] }} {{ m.content }} {% endfor %}"


def write(
    folder: Path, *, method: str = "", template: str | None = None, delay: float = 0.0, seed: int = 0
) -> Path:
    """Write a repo whose model has `method` and whose tokenizer has `template`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "modeling_tiny.py").write_text(MODEL + method, encoding="utf-8")
    (folder / "tokenization_tiny.py").write_text(NEW, encoding="utf-8")
    auto_map = {"AutoConfig": "modeling_tiny.TinyConfig", "AutoModelForCausalLM": "modeling_tiny.TinyChat"}
    documents: dict[str, Any] = {
        "config.json": {"auto_map": auto_map, "vocab_size": len(LETTERS), "delay": delay},
        "letters.json": LETTERS,
        "tokenizer_config.json": {
            "auto_map": {"AutoTokenizer": ["tokenization_tiny.NewTokenizer", None]},
            "chat_template": template,
        },
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document), encoding="utf-8")
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(len(LETTERS), len(LETTERS), generator=generator)
    table[:, :5] = -9  # never a special token
    save_safetensors({"table.weight": table}, folder / "model.safetensors")
    return folder
