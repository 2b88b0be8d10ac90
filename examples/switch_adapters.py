"""Several adapters on one base: switched, weighted, disabled, one for each row of a batch, swapped."""

from __future__ import annotations

import tempfile

import torch

import shardload
from shardload.cli.demo_repo import write_demo_repo


def last(output):  # noqa: ANN001, ANN201 - the model's own output
    """Return the logits of the next token."""
    return output.logits[0, -1].detach()


def main() -> None:
    """Print the next token of each choice, and compare a batch with one adapter a row with single calls."""
    folder = write_demo_repo()
    model = shardload.from_pretrained(folder, trust_remote_code=True, dtype="float32")
    ids = torch.tensor([[64, 65, 66]])
    shardload.load_adapter(model, f"{folder}/adapter", name="file")
    shardload.attach_lora(model, targets=["dense"], init=False, seed=1, name="random")

    rows = {}
    for choice in ("file", "random", {"file": 0.7, "random": 0.3}):
        shardload.set_adapter(model, choice)
        rows[str(choice)] = last(model(ids))
        print(f"{choice!s:32} next token {int(rows[str(choice)].argmax())}")
    with shardload.disable_adapter(model):
        base = last(model(ids))

    # Inside, ChatGLM2 has the sequence first; three tokens in three rows look the same either way.
    with shardload.adapter_batch(model, ["file", None, "random"], batch_dim=1):
        together = model(ids.repeat(3, 1)).logits[:, -1].detach()
    apart = torch.stack([rows["file"], base, rows["random"]])
    print(f"a batch of three answers as three calls did, up to {(together - apart).abs().max():.1g}")

    # Other weights under the same name; the layers stay.
    with tempfile.TemporaryDirectory() as saved:
        shardload.save_adapter(model, saved, "file")
        shardload.swap_adapter(model, "random", saved)
    shardload.set_adapter(model, "random")
    gap = (last(model(ids)) - rows["file"]).abs().max()
    print(f"swapped in: the logits of the file's, up to {gap:.1g}")


if __name__ == "__main__":
    main()
