"""Load a checkpoint that stores each expert apart into a model that keeps them in one tensor, and save it back."""

import tempfile
from pathlib import Path

import torch
from torch import nn

import shardload


class Experts(nn.Module):
    """Four experts, stacked in one parameter for each weight."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(4, 96, 32))
        self.down = nn.Parameter(torch.empty(4, 32, 48))


FUSE = (
    shardload.KeyMap()
    .cat(["experts.{}.w1", "experts.{}.w3"], "experts.{}.gate_up")
    .stack("experts.{n}.gate_up", "gate_up")
    .stack("experts.{n}.w2", "down")
)

folder = Path(tempfile.mkdtemp())
shapes = {"w1": (48, 32), "w2": (32, 48), "w3": (48, 32)}
torch.save({f"experts.{n}.{w}": torch.randn(shapes[w]) for n in range(4) for w in shapes}, folder / "moe.pth")

bound = FUSE.bind(shardload.open_checkpoint(folder / "moe.pth").tensors)  # sizes, fingerprints
(folder / "fuse.json").write_text(bound.to_json())
where = {"where": folder / "moe.pth", "key_map": folder / "fuse.json"}
print("a load holds:", shardload.plan_load(**where).held)

model = shardload.from_pretrained(**where, model_class=lambda _: Experts())
shardload.save(model, folder / "again", key_map=bound)  # under the old names, through the inverse
print("the same again:", shardload.diff(folder / "moe.pth", folder / "again", values=True).ok)
