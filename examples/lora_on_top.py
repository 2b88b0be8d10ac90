"""Put a LoRA on a model: python examples/lora_on_top.py [FOLDER ADAPTER]. Without them, the demo's."""

from __future__ import annotations

import sys

import torch

import shardload
from shardload.cli.demo_repo import write_demo_repo


def main() -> None:
    """Compare the model's logits without and with the adapter, then train one step of it."""
    folder = sys.argv[1] if len(sys.argv) > 1 else write_demo_repo()
    adapter = sys.argv[2] if len(sys.argv) > 2 else f"{folder}/adapter"
    model = shardload.from_pretrained(folder, trust_remote_code=True, dtype="float32")
    ids = torch.arange(64, 80)[None]
    with torch.inference_mode():
        before = model(ids).logits

    print(shardload.load_adapter(model, adapter, trainable=True))
    with torch.inference_mode():
        after = model(ids).logits
    print(f"the adapter changed the logits by up to {(after - before).abs().max():.3f}")

    # Only A and B of the adapter train; the base stays as it was stored.
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.train()(ids, labels=ids).loss.backward()
    torch.optim.AdamW(trained, lr=1e-4).step()
    print(f"trained one step of {sum(parameter.numel() for parameter in trained):,} numbers")


if __name__ == "__main__":
    main()
