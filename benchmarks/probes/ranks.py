"""Measures one way to load a Llama into FSDP over ranks: `python -m benchmarks.probes.ranks FOLDER WAY RANKS [warm]`.

Every rank is a process of its own with gloo. The page cache is emptied of the checkpoint before, or ("warm") filled
with it. Printed are seconds until the slowest rank is ready, and until every weight of its part was touched; the
processors' seconds until then, of all ranks; bytes that all ranks asked for by calls; and the highest anonymous memory
of a rank above what its imports and its shell took, beside its part.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import evict, warm
from benchmarks.peak import Peak, anonymous

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn


def main() -> None:
    folder, way, *rest = sys.argv[1:]
    if os.environ.get("RANK") is not None:
        _rank(folder, way)
        return
    world = int(rest[0])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    warm(folder) if rest[1:] == ["warm"] else evict(folder)
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.probes.ranks", folder, way],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    lines = [json.loads(rank.communicate()[0].splitlines()[-1]) for rank in ranks]
    if len({line["total"] for line in lines}) != 1:
        raise SystemExit(f"the ranks hold different sums: {lines}")
    print(
        json.dumps({
            "load_s": max(line["load_s"] for line in lines),
            "touched_s": max(line["touched_s"] for line in lines),
            "cpu_s": sum(line["cpu_s"] for line in lines),
            "asked": sum(line["asked"] for line in lines) / _size(folder),
            "anon": max(line["peak"] - line["before"] for line in lines),
            "part": max(line["part"] for line in lines),
            "total": lines[0]["total"],
        })
    )  # fmt: skip


def _rank(folder: str, way: str) -> None:
    import torch
    from torch import distributed
    from torch.distributed.tensor import DTensor

    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    load = WAYS[way](folder)
    distributed.barrier()
    before, asked, peak = anonymous(), _asked(), Peak(0.01)
    started, processor = time.monotonic(), time.process_time()
    model = load()
    ready = time.monotonic()
    total = 0.0
    parts = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
    for part in parts:
        total += float(part.detach().view(-1)[::2048].float().sum())  # an element of each page
    touched, processor = time.monotonic(), time.process_time() - processor
    print(
        json.dumps({
            "load_s": ready - started,
            "touched_s": touched - started,
            "cpu_s": processor,
            "asked": _asked() - asked,
            "before": before,
            "peak": peak.end(),
            "part": sum(part.numel() * part.element_size() for part in parts),
            "total": _whole_sum(model),
        })
    )  # fmt: skip
    sys.stdout.flush()
    distributed.barrier()
    os._exit(0)


def _ours(**options: Any) -> Callable[[str], Callable[[], nn.Module]]:
    def prepare(folder: str) -> Callable[[], nn.Module]:
        from torch.distributed.device_mesh import init_device_mesh
        from transformers import LlamaConfig, LlamaForCausalLM
        from transformers.models.llama import modeling_llama  # noqa: F401 - its import is not the load's

        import shardload
        import shardload.loading.fill

        mesh = init_device_mesh("cpu", (_world(),))
        config = LlamaConfig.from_pretrained(folder)

        def load() -> nn.Module:
            return shardload.from_pretrained(
                folder, model_class=LlamaForCausalLM, config=config, device_mesh=mesh, **options
            )

        return load

    return prepare


def _transformers(folder: str) -> Callable[[], nn.Module]:
    from transformers import LlamaForCausalLM
    from transformers.distributed import DistributedConfig

    return lambda: LlamaForCausalLM.from_pretrained(
        folder, distributed_config=DistributedConfig(fsdp_size=_world())
    )


def _dcp(folder: str) -> Callable[[], nn.Module]:
    import torch
    from torch.distributed.checkpoint import HuggingFaceStorageReader
    from torch.distributed.checkpoint import load as load_state
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from transformers import LlamaConfig, LlamaForCausalLM

    mesh = init_device_mesh("cpu", (_world(),))
    config = LlamaConfig.from_pretrained(folder)

    def load() -> nn.Module:
        with torch.device("meta"):
            model = LlamaForCausalLM(config).to(torch.bfloat16)
        for block in model.model.layers:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        model.to_empty(device="cpu")
        load_state(model.state_dict(), storage_reader=HuggingFaceStorageReader(folder))
        return model

    return load


WAYS = {"mapped": _ours(), "copy": _ours(copy=True), "transformers": _transformers, "dcp": _dcp}


def _whole_sum(model: nn.Module) -> float:
    """Return a sum over all weights of all ranks, by which the ways are compared."""
    import torch
    from torch import distributed
    from torch.distributed.tensor import DTensor

    parts = [p.to_local() if isinstance(p, DTensor) else p / _world() for p in model.parameters()]
    own = torch.stack([part.detach().double().sum() for part in parts]).sum()
    distributed.all_reduce(own)
    return round(float(own), 3)


def _world() -> int:
    return int(os.environ["WORLD_SIZE"])


def _size(folder: str) -> int:
    return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


def _asked() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


if __name__ == "__main__":
    main()
