"""Load a checkpoint from a folder: python examples/load_local.py [FOLDER]. Without one, the demo's repo."""

from __future__ import annotations

import sys

import torch

import shardload
from shardload.cli.demo_repo import write_demo_repo


def main() -> None:
    """Load, print what was loaded from where and what it cost, and run the model."""
    folder = sys.argv[1] if len(sys.argv) > 1 else write_demo_repo()

    # The repo's own code builds the model, so it has to be trusted; read it first if it is not yours.
    model = shardload.from_pretrained(folder, trust_remote_code=True)
    print(shardload.report_of(model))

    with torch.inference_mode():
        logits = model(torch.tensor([[64, 65, 66]])).logits
    print(f"logits {tuple(logits.shape)}, next token {int(logits[0, -1].argmax())}")


if __name__ == "__main__":
    main()
