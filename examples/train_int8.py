"""Train a LoRA on an int8 base: python examples/train_int8.py [--folder REPO] [--steps 20]."""

from __future__ import annotations

import argparse
import tempfile

import torch

import shardload
from shardload.cli.demo_repo import write_demo_repo

TEXT = b"A weight is a reference until it is needed, and a file until it is written to. "


def main() -> None:
    """Quantise while loading, learn one sentence, and reload the adapter onto a fresh base."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", default=write_demo_repo())
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()

    def base() -> torch.nn.Module:
        model = shardload.from_pretrained(options.folder, trust_remote_code=True, load_in_8bit=True)
        return shardload.prepare_model_for_kbit_training(model)

    model, ids, out = base(), torch.tensor([list(TEXT)]), f"{tempfile.mkdtemp()}/my-lora"
    print(shardload.report_of(model))
    shardload.attach_lora(model, r=8, alpha=16, targets=["query_key_value", "dense_h_to_4h"], seed=0)
    model.train()
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=5e-3)
    for step in range(options.steps):
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in {0, options.steps - 1}:
            print(f"step {step + 1:>3}: loss {loss.item():.3f}")
    shardload.save_adapter(model, out)
    again = base()
    shardload.load_adapter(again, out)
    with torch.inference_mode():
        gap = (model.eval()(ids).logits - again.eval()(ids).logits).abs().max()
    print(f"reloaded onto a fresh base: logits equal up to {gap:.0e}")


if __name__ == "__main__":
    main()
