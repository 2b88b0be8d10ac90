"""What disturbs a load from beside it: Ctrl-C, forks, threads, writers, tensors that share bytes.

Each kind runs in a process of its own and counts its tries and what was wrong after them, which has to be nothing.
`python -m tests.fuzz.disturbances threads --count 200` runs one.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

import shardload
from tests import forks, interrupts
from tests.loading.test_shared_bytes import Net as Sharing
from tests.loading.test_shared_bytes import stepped

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 3600  # seconds: a kind that takes longer hangs
_READERS = 4


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))


def filled(value: int) -> Net:
    model = Net()
    for parameter in model.parameters():
        nn.init.constant_(parameter, float(value))
    return model


def load(folder: str | Path, **options: object) -> nn.Module:
    return shardload.from_pretrained(folder, model_class=lambda _config: Net(), config={}, **options)


def interrupted(count: int) -> Counter[str]:
    """Ctrl-C at events of loads and of saves, all of them where the count allows."""
    sweeps: list[Callable[[int, int], Counter[str]]] = [
        lambda step, first, options=options: interrupts.sweep(options, step, first)  # type: ignore[misc]
        for options in interrupts.OPTIONS.values()
    ]
    found: Counter[str] = Counter()
    for sweep in (*sweeps, interrupts.sweep_saves):
        found += sweep(max(1, 2000 * (len(sweeps) + 1) // count), 1)
    return Counter({"tried": found.pop("tries"), **found})


def forked(count: int) -> Counter[str]:
    """Children that are forked while threads load, and load themselves."""
    found = forks.sweep(count)
    loads = found.pop("loads", 0)
    return Counter({"tried": loads + sum(found.values()), **found})


def threads(count: int) -> Counter[str]:
    """Loads of several checkpoints at once, in several ways; each model has to be its own checkpoint's."""
    top = Path(tempfile.mkdtemp())
    for value in range(_READERS):
        shardload.save(filled(value + 1), top / str(value))
    found: Counter[str] = Counter()
    before = torch.get_default_dtype(), torch.is_grad_enabled(), interrupts.names_of_torch()

    def work(value: int) -> None:
        choose = random.Random(value)
        for _ in range(count // _READERS):
            options = choose.choice(({}, {"copy": True}, {"dtype": "float16"}))
            found["tried"] += 1
            try:
                model = load(top / str(value), **options)
                right = all(bool((item == value + 1).all()) for item in model.parameters())
                found["another's weights"] += not right
            except Exception as error:
                found[repr(error)[:200]] += 1

    workers = [threading.Thread(target=work, args=(value,)) for value in range(_READERS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    found["torch is left changed"] += before != (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        interrupts.names_of_torch(),
    )
    return found


_WRITER = """
import sys
from tests.fuzz.disturbances import filled, shardload
for number in range(int(sys.argv[3])):
    try:
        shardload.save(filled(int(sys.argv[2])), sys.argv[1])
    except shardload.ShardloadError as error:
        assert "another" in str(error) or "lock" in str(error) or "writ" in str(error), error
"""


def writers(count: int) -> Counter[str]:
    """Two processes that save different models into one folder while this one loads: one of both, or an error."""
    folder = Path(tempfile.mkdtemp(), "out")
    shardload.save(filled(1), folder)
    each = max(1, count // 2)
    children = [
        subprocess.Popen([sys.executable, "-W", "ignore", "-c", _WRITER, str(folder), str(value), str(each)])
        for value in (1, 2)
    ]
    found: Counter[str] = Counter(tried=2 * each)
    while any(child.poll() is None for child in children):
        found["tried"] += 1
        try:
            values = {float(item) for one in load(folder, copy=True).parameters() for item in one.unique()}
            found["a mixture"] += len(values) != 1
        except shardload.ShardloadError:
            pass  # the files were exchanged while they were read
        except Exception as error:
            found[repr(error)[:200]] += 1
    found["a writer that failed"] += sum(child.returncode != 0 for child in children)
    values = {float(item) for one in load(folder).parameters() for item in one.unique()}
    found["a mixture at the end"] += len(values) != 1
    return found


def aliased(count: int) -> Counter[str]:
    """Pickles whose tensors share bytes at random: after a step every parameter is as torch's own loader has it."""
    top = Path(tempfile.mkdtemp())
    found: Counter[str] = Counter()
    for seed in range(count):
        choose = random.Random(seed)
        pool = torch.arange(48.0)
        cut = lambda size, choose=choose, pool=pool: pool[(at := choose.randrange(48 - size)) : at + size]  # noqa: E731
        state = {
            "whole.weight": cut(24).reshape(6, 4),
            "part.weight": cut(8).reshape(2, 4),
            "rows": choose.choice((cut(4).expand(3, 4), cut(12).reshape(3, 4), cut(12).reshape(4, 3).T)),
            "turned.weight": choose.choice((cut(24).reshape(4, 6), cut(24).reshape(6, 4).T)),
        }
        path = top / "x.bin"
        torch.save(state, path, _use_new_zipfile_serialization=choose.random() < 0.5)
        oracle = Sharing()
        oracle.load_state_dict(torch.load(path))
        shell = shardload.build_shell(Sharing)
        shardload.fill(shell, shardload.open_checkpoint(path), copy=choose.random() < 0.5)
        ours, theirs = stepped(shell.model), stepped(oracle)
        found["tried"] += 1
        found["moved by another's step"] += any(not torch.equal(ours[name], theirs[name]) for name in theirs)
    return found


# Each kind, and how many tries it gets by default.
KINDS = {
    "interrupts": (interrupted, 8000),
    "forks": (forked, 2000),
    "threads": (threads, 2000),
    "writers": (writers, 400),
    "shared bytes": (aliased, 2000),
}


def run(name: str, count: int | None = None) -> Counter[str]:
    """Run one kind in a process of its own; return "tried" and the counts of everything that was wrong."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.fuzz.disturbances", name]
    command += ["--count", str(count or KINDS[name][1])]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode:
        return Counter({"tried": count or KINDS[name][1], done.stderr[-500:]: 1})
    return Counter(json.loads(done.stdout.splitlines()[-1]))


def wrong(found: Counter[str]) -> dict[str, int]:
    """Return what was wrong, and how often."""
    return {name: times for name, times in found.items() if times and name != "tried"}


def said(found: Counter[str]) -> str:
    """Return the figure of the table."""
    return f"{found['tried']:,} tried, wrong = {sum(wrong(found).values()):,}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.disturbances", description=__doc__)
    parser.add_argument("kind", choices=list(KINDS))
    parser.add_argument("--count", type=int)
    arguments = parser.parse_args()
    kind, count = KINDS[arguments.kind]
    print(json.dumps(kind(arguments.count or count)))


if __name__ == "__main__":
    main()
