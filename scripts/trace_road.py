"""Prints the files of the package in which an operation calls a function.

    python scripts/trace_road.py              # a table of the three operations
    python scripts/trace_road.py --files      # also the files of each operation and their functions

Each operation runs twice in this process, and the second run is traced on all threads, so imports and the module
bodies that they run are not counted. `tests/test_road.py` checks the numbers.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

import shardload
from shardload.cli.demo_repo import write_demo_repo

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

PACKAGE = Path(shardload.__file__).parent


def entered(operation: Callable[[], object]) -> dict[str, list[str]]:
    """Run an operation twice; return the functions that the second run calls, by file in the package."""
    operation()
    found: dict[str, dict[str, None]] = defaultdict(dict)

    def profile(frame: FrameType, event: str, _argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_name != "<module>" and code.co_filename.startswith(f"{PACKAGE}/"):
            found[str(Path(code.co_filename).relative_to(PACKAGE))][
                getattr(code, "co_qualname", code.co_name)
            ] = None

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        operation()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return {file: list(names) for file, names in sorted(found.items())}


def operations(folder: Path) -> dict[str, Callable[[], object]]:
    """Write small checkpoints to a folder, and return the three operations on them."""
    plain = folder / "plain"
    shardload.save(nn.Linear(4, 4, bias=False), plain)
    (plain / "config.json").write_text('{"width": 4}')
    remote = folder / "remote"
    write_demo_repo(remote)
    lora = folder / "lora"
    write_lora(lora)
    return {
        "from_pretrained, one Linear, the caller's class": lambda: shardload.from_pretrained(
            plain, model_class=lambda _config: nn.Linear(4, 4, bias=False)
        ),
        "from_pretrained, the repo's own code": lambda: shardload.from_pretrained(
            remote, trust_remote_code=True
        ),
        "load_adapter, one layer": lambda: shardload.load_adapter(nn.Sequential(nn.Linear(4, 4)), lora),
    }


def write_lora(folder: Path) -> None:
    """Write an adapter for one Linear of a Sequential as PEFT does."""
    tree: nn.Module = nn.ModuleDict(
        {"lora_A": nn.Linear(4, 2, bias=False), "lora_B": nn.Linear(2, 4, bias=False)}
    )
    for name in ("0", "model", "base_model"):
        tree = nn.ModuleDict({name: tree})
    shardload.save(tree, folder)
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["0"], "bias": "none", "task_type": "CAUSAL_LM",
        "init_lora_weights": True, "inference_mode": True, "base_model_name_or_path": "org/base", "lora_dropout": 0.05,
        "fan_in_fan_out": False, "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {}, "use_dora": False,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))


def main() -> None:
    """Run and trace the operations, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--files", action="store_true", help="list the files and their functions")
    listed = parser.parse_args().files
    with tempfile.TemporaryDirectory() as folder:
        for name, operation in operations(Path(folder)).items():
            files = entered(operation)
            lines = sum(len((PACKAGE / file).read_text().splitlines()) for file in files)
            print(
                f"{name:50} {len(files):3} files, {lines:6,} lines, {sum(map(len, files.values())):4} functions"
            )
            for file, functions in files.items() if listed else ():
                print(f"    {file:45} {', '.join(functions)}")


if __name__ == "__main__":
    main()
