"""from_pretrained over ranks, run on every rank: `python -m tests.distributed.whole CASE,CASE FOLDER`.

Each case loads a repo in one call, sharded; every parameter has to be that of the same repo loaded in one process, and
the forward equal.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

import shardload
from tests.distributed.nets import NETS
from tests.distributed.spawn import leave, say


class Drawn(NETS["Uneven"]):
    """Has a buffer that no checkpoint holds, and that its class draws."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("drawn", torch.randn(8), persistent=False)


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def load(case: str, folder: Path, mesh) -> str:
    repo, how = case.split(":")
    adapter, how = how.startswith("lora+"), how.removeprefix("lora+")
    plan = {
        "layers.*.up": "colwise",
        "layers.*.down": "rowwise",
        "embed": "rowwise_rep",
        "head": "colwise_rep",
    }
    glm = {"transformer.encoder.layers.*.self_attention.query_key_value": "colwise_rep"}
    given = {
        "fsdp": {"device_mesh": mesh},
        "sizes": {"distributed_config": {"fsdp_size": 2}},
        "tp": {"device_mesh": mesh, "tp_plan": glm if repo == "glm" else plan},
        "once": {"device_mesh": mesh, "tp_plan": plan, "read": "once"},
        "auto": {"device_mesh": mesh, "tp_plan": "auto"},
        "alike": {"device_mesh": mesh, "tp_plan": {"model.embed_tokens": "embedding_rowwise"}},
        "drawn": {"device_mesh": mesh},
        "fused": {
            "device_mesh": mesh,
            "tp_plan": {
                "transformer.encoder.layers.*.mlp.dense_h_to_4h": "colwise",
                "transformer.encoder.layers.*.mlp.dense_4h_to_h": "rowwise",
            },
        },
        "half": {"device_mesh": mesh, "tp_plan": {"embed": "rowwise_rep"}},
        "merge": {"device_mesh": mesh, "merge": True},
        "nowhere": {"device_mesh": mesh, "tp_plan": {"layers.*.upp": "colwise"}},
    }[how]
    common = (
        {"trust_remote_code": True} if repo == "glm" else {"model_class": NETS[repo]} if repo in NETS else {}
    )
    if repo in NETS:
        common["model_class"] = lambda _config: NETS[repo]()
    if how == "drawn":
        common["model_class"] = lambda _config: Drawn()
        torch.manual_seed(dist.get_rank())
    if adapter:
        common["adapter"] = folder / "adapter"
    model = shardload.from_pretrained(folder / repo, **common, **given, timeout=60)
    if how == "drawn":
        torch.manual_seed(0)  # as on the first rank
    one = shardload.from_pretrained(folder / repo, **common)
    assert not model.training
    assert [each.name for each in shardload.report_of(model).adapters] == ["default"] * adapter
    parts = [name for name, tensor in model.named_parameters() if isinstance(tensor, DTensor)]
    assert parts, "nothing is sharded"
    wanted = {**dict(one.named_parameters()), **dict(one.named_buffers())}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        assert torch.equal(whole(tensor), wanted[name]), f"{name} differs"
    x = torch.arange(12).view(2, 6)
    with torch.no_grad():
        made, right = model(x), one(x)
    made, right = (each if isinstance(each, torch.Tensor) else each.logits for each in (made, right))
    assert torch.allclose(whole(made), right, atol=1e-4, rtol=1e-4), f"{(whole(made) - right).abs().max()}"
    return f"{len(parts)} of {len(wanted)}"


def main(cases: str, folder: str) -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for case in cases.split(","):
        try:
            said = "ok " + load(case, Path(folder), mesh)
        except (AssertionError, shardload.ShardloadError) as error:
            said = f"{type(error).__name__}: {error}"
        say(case=case, said=said)
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
