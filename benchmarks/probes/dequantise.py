"""Measures a load of packed weights into bfloat16 with one thread: `dequantise PACKING`; rates are of the result."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import shardload
from shardload.dequantise.gguf_blocks import KINDS

ROWS, COLUMNS, LAYERS, ROUNDS = 4096, 2048, 8, 3
_GROUPS = COLUMNS // 128


def words(*shape):
    return torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32)


def octets(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def gptq(order):
    return {
        "qweight": words(COLUMNS // 8, ROWS),
        "qzeros": words(_GROUPS, ROWS // 8),
        "scales": torch.rand(_GROUPS, ROWS).half(),
        "g_idx": order.int(),
    }


def nf4():
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [ROWS, COLUMNS]}
    return {
        "weight": octets(ROWS * COLUMNS // 2, 1),
        "weight.absmax": torch.rand(ROWS * COLUMNS // 64),
        "weight.quant_map": torch.linspace(-1, 1, 16),
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(
            list(json.dumps(state).encode()), dtype=torch.uint8
        ),
    }


_IN_ORDER = torch.arange(COLUMNS) // 128
PACKINGS = {
    "gptq": ("gptq", lambda: gptq(_IN_ORDER)),
    "gptq-order": ("gptq", lambda: gptq(_IN_ORDER[torch.randperm(COLUMNS)])),
    "awq": ("awq", lambda: {
        "qweight": words(COLUMNS, ROWS // 8),
        "qzeros": words(_GROUPS, ROWS // 8),
        "scales": torch.rand(_GROUPS, ROWS).half(),
    }),
    "fp8": ("fp8", lambda: {
        "weight": torch.randn(ROWS, COLUMNS).to(torch.float8_e4m3fn),
        "weight_scale_inv": torch.rand(ROWS // 128, COLUMNS // 128),
    }),
    "nf4": ("bitsandbytes", nf4),
    "int8": ("bitsandbytes", lambda: {"weight": octets(ROWS, COLUMNS).view(torch.int8), "SCB": torch.rand(ROWS)}),
    "mxfp4": ("mxfp4", lambda: {
        "weight_blocks": octets(1, COLUMNS, ROWS // 32, 16),
        "weight_scales": torch.randint(118, 130, (1, COLUMNS, ROWS // 32), dtype=torch.uint8),
    }),
    "compressed-tensors": ("compressed-tensors", lambda: {
        "weight_packed": words(ROWS, COLUMNS // 8),
        "weight_scale": torch.rand(ROWS, _GROUPS).bfloat16(),
        "weight_shape": torch.tensor([ROWS, COLUMNS]),
    }),
}  # fmt: skip


class Layers(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.layers = nn.ModuleList(nn.Module() for _ in range(LAYERS))
        for layer in self.layers:
            layer.weight = nn.Parameter(torch.empty(shape))


def main() -> None:
    name = sys.argv[1]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        kind = KINDS.get(name)
        where, shape, theirs = of_gguf(Path(folder), name) if kind else of_safetensors(Path(folder), name)
        checkpoint = shardload.open_checkpoint(where)
        rates, over, copies = [], [], []
        for _ in range(ROUNDS):
            shell = shardload.build_shell(lambda: Layers(shape))
            started = time.process_time()
            report = shardload.fill(shell, checkpoint, dtype="bfloat16")
            seconds = time.process_time() - started
            result = sum(weight.nbytes for weight in shell.model.parameters())
            rates.append(result / seconds / 1e9)
            over.append(report.memory.peak.anon - report.memory.before.anon - result)
            shell = None
            copies.append(copy_rate(result))
    figures = {"rate": max(rates), "copy": max(copies), "over": max(over), "stated": report.stated.staging}
    print(json.dumps({**figures, **theirs}))


def copy_rate(nbytes):
    """Return the rate of a cast from float32 into new memory: what the machine does at that moment."""
    source = torch.ones(nbytes // 2)
    started = time.process_time()
    source.bfloat16()
    return nbytes / (time.process_time() - started) / 1e9


def of_safetensors(folder, name):
    method, pack = PACKINGS[name]
    tensors = {
        f"layers.{number}.{part}": tensor for number in range(LAYERS) for part, tensor in pack().items()
    }
    torch.save(tensors, folder / "pytorch_model.bin")
    config = {"quantization_config": {"quant_method": method, "bits": 4, "group_size": 128}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, (1, ROWS, COLUMNS) if name == "mxfp4" else (ROWS, COLUMNS), {}


def of_gguf(folder, name):
    """Write a file with the `gguf` package, and measure the package's own function."""
    import gguf

    kind, own = KINDS[name], gguf.GGMLQuantizationType[name]
    blocks = octets(ROWS * COLUMNS // kind.numbers, kind.size)
    blocks[:] &= 0x3F  # no scale is infinite
    packed = blocks.view(ROWS, -1).numpy()
    seconds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        gguf.dequantize(packed, own)
        seconds.append(time.process_time() - started)
    writer = gguf.GGUFWriter(folder / "m.gguf", "llama")
    for number in range(LAYERS):
        writer.add_tensor(f"layers.{number}.weight", packed, raw_dtype=own)
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()
    return folder / "m.gguf", (ROWS, COLUMNS), {"theirs": 2 * ROWS * COLUMNS / min(seconds) / 1e9}


if __name__ == "__main__":
    main()
