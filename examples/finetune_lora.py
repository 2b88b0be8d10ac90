"""Fine-tune with a LoRA on a CPU: python examples/finetune_lora.py [--folder REPO] [--out FOLDER] [--steps 40]."""

from __future__ import annotations

import argparse
import tempfile

import torch

import shardload
from shardload.cli.demo_repo import write_demo_repo

TEXT = b"A weight is a reference until it is needed, and a file until it is written to. "


def main() -> None:
    """Learn one sentence, save the adapter alone, and load it onto a fresh base."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", default=write_demo_repo())
    parser.add_argument("--out", default=f"{tempfile.mkdtemp()}/my-lora")
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    base = lambda: shardload.from_pretrained(options.folder, trust_remote_code=True, dtype="float32")  # noqa: E731
    model, ids = base(), torch.tensor([list(TEXT)])
    shardload.attach_lora(model, r=8, alpha=16, targets=["query_key_value", "dense_h_to_4h"], seed=0)
    print(shardload.trainable_parameters(model))
    model.gradient_checkpointing_enable()
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-3)
    for step in range(options.steps):
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in {0, options.steps - 1}:
            print(f"step {step + 1:>3}: loss {loss.item():.3f}")
    print("wrote", *(path.name for path in shardload.save_adapter(model, options.out)))
    again = base()
    shardload.load_adapter(again, options.out)
    with torch.inference_mode():
        gap = (model.eval()(ids).logits - again.eval()(ids).logits).abs().max()
    print(f"reloaded onto a fresh base: logits equal up to {gap:.0e}")


if __name__ == "__main__":
    main()
