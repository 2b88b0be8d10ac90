"""Mutated indexes and configs, judged by a second reading of our own that knows nothing of shardload's."""

from __future__ import annotations

import json
import random
from copy import deepcopy
from typing import Any

from shardload import remote_code
from shardload.checkpoint.checkpoint import read_checkpoint
from shardload.checkpoint.index import find_weight_files
from shardload.checkpoint.json_file import read_config
from shardload.checkpoint.sources.names import check_name
from shardload.cli.inspect import config_summary
from shardload.errors import NotFoundError, ShardloadError
from tests.checkpoint.formats.files import safetensors
from tests.checkpoint.test_paths import NAMES
from tests.fuzz.mutation import MemoryFile, mutate
from tests.fuzz.tally import Tally

INDEX = "model.safetensors.index.json"
SHARDS = {
    "model-00001-of-00002.safetensors": ("a.weight", "b.0.weight", "b.1.weight"),
    "model-00002-of-00002.safetensors": ("c", "both", "é"),
    "other.safetensors": ("both", "d"),
}
TRUTH = {name: shard for shard, names in list(SHARDS.items())[:2] for name in names}


def _shard(names: tuple[str, ...]) -> bytes:
    entries = {
        name: {"dtype": "U8", "shape": [1], "data_offsets": [place, place + 1]}
        for place, name in enumerate(names)
    }
    return safetensors(entries, bytes(len(names)))


class MemorySource:
    """A repo in memory. It says that it is no folder, so that nothing asks for paths on this disk."""

    label, revision, is_local, warnings = "org/name@memory", None, False, ()

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    def names(self) -> list[str]:
        return sorted(self.files)

    def digest(self, _name: str) -> None:
        return None

    def open(self, name: str) -> MemoryFile:
        check_name(name, self.label)
        if name not in self.files:
            raise NotFoundError(f"no {name!r}", where=self.label)
        file = MemoryFile(self.files[name])
        file.name = name
        file.local_path = lambda: MemoryPath(self.files[name])
        return file


class MemoryPath:
    """What code is read from, where there is no disk."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def read_bytes(self) -> bytes:
        return self.content


FILES = {name: _shard(names) for name, names in SHARDS.items()}
FILE_NAMES: list[Any] = [*SHARDS, *NAMES, "config.json", INDEX, None, 3, True, [], {}]
DOCUMENT = {"metadata": {"total_size": 6, "x": None}, "weight_map": TRUTH}


def fuzz_indexes(seed: int, count: int) -> Tally:
    """Mutate an index by its bytes and by its meaning; accepted exactly where a second reading finds it true.

    What an index leaves out of its shards is loaded too, as by transformers.
    """
    rng, tally = random.Random(seed), Tally()
    whole = json.dumps(DOCUMENT, ensure_ascii=False).encode()
    for _ in range(count):
        data = mutate(rng, whole) if rng.random() < 0.5 else _changed_index(rng)
        tally.tried += 1
        source = MemorySource({**FILES, INDEX: data})
        try:
            checkpoint = read_checkpoint(source, find_weight_files(source))
        except ShardloadError as error:
            ok = not is_true(data) and error.where and str(error)
            tally.refused += bool(ok)
            if not ok:
                tally.wrong(data, error)
        except Exception as error:
            tally.wrong(data, error)
        else:
            found = {name: ref.shard for name, ref in checkpoint.tensors.items()}
            ok = is_true(data) and found == all_of(json.loads(data)["weight_map"])
            tally.accepted += ok
            if not ok:
                tally.wrong(data, found)
    return tally


def _changed_index(rng: random.Random) -> bytes:
    weight_map: dict[str, Any] = dict(TRUTH)
    document: dict[str, Any] = {**DOCUMENT, "weight_map": weight_map}
    for _ in range(rng.choice((1, 1, 2, 3))):
        key = rng.choice(list(weight_map) or ["x"])
        kind = rng.randrange(7)
        if kind == 0:
            weight_map.pop(key, None)
        elif kind == 1:
            weight_map[key] = rng.choice(FILE_NAMES)
        elif kind == 2:
            weight_map[key] = rng.choice(list(SHARDS))
        elif kind == 3:
            weight_map[rng.choice(("new", "d", "", "both", "a.weight "))] = rng.choice(list(SHARDS))
        elif kind == 4:
            document["metadata"] = {"total_size": rng.choice((0, -1, 2**70, "6", None, 1.5))}
        elif kind == 5:
            document["metadata"] = rng.choice((None, [], "x", {}))
        else:
            document["weight_map"] = rng.choice((None, [], {}, "x", weight_map))
    return json.dumps(document, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def is_true(data: bytes) -> bool:
    """Whether an index is JSON without a key twice, each name in a shard that has it, and no place left open."""
    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return False
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(v, str) for v in weight_map.values())
    ):
        return False
    used = set(weight_map.values())
    if not used <= SHARDS.keys():
        return False
    left_out = [name for shard in used for name in SHARDS[shard] if name not in weight_map]
    return len(left_out) == len({*left_out}) and all(
        name in SHARDS[shard] for name, shard in weight_map.items()
    )


def all_of(weight_map: dict[str, str]) -> dict[str, str]:
    """Return the shard of each tensor that an index names, and of those that it leaves out of its shards."""
    return {name: shard for shard in {*weight_map.values()} for name in SHARDS[shard]} | weight_map


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("twice")
    return dict(pairs)


# --- configs ----------------------------------------------------------------------------------------------------

CONFIGS: list[dict[str, Any]] = [
    {
        "model_type": "tiny",
        "hidden_size": 8,
        "num_layers": 2,
        "rope": {"theta": 1e4, "scaling": [1, 2.5]},
        "é": "ü",
    },
    {
        "auto_map": {"AutoConfig": "conf.C", "AutoModel": "model.M"},
        "architectures": ["M"],
        "torch_dtype": "float16",
    },
    {
        "auto_map": {"AutoModel": "org/other--model.M", "AutoTokenizer": ["tok.T", None]},
        "quantization_config": {"a": 1},
    },
]
CODE = {f"{name}.py": b"raise SystemExit('it ran')\n" for name in ("conf", "model", "tok")}
VALUES: list[Any] = [
    None, True, -1, 0, 2**70, 1.5, "", "float16", "\u202e", [], {}, [None], "../x.Y", "os.system", "a--b.C", "model.M",
    {"auto_map": {"AutoModel": "model.M"}, "trust_remote_code": True},
]  # fmt: skip


def fuzz_configs(seed: int, count: int) -> Tally:
    """Mutate configs; nobody trusts them: a config object of exactly what the JSON says, or one typed error."""
    rng, tally = random.Random(seed), Tally()
    wholes = [json.dumps(config, ensure_ascii=False).encode() for config in CONFIGS]
    for number in range(count):
        whole = wholes[number % len(wholes)]
        data = (
            mutate(rng, whole) if rng.random() < 0.5 else _changed_config(rng, CONFIGS[number % len(CONFIGS)])
        )
        tally.tried += 1
        source = MemorySource({"config.json": data, **CODE})
        try:
            config = read_config(source)
            config_summary(config)
            remote_code.resolve_class(source, config, model_class=dict)
            loaded = remote_code.load_config(source, config)
        except ShardloadError as error:
            ok = bool(error.where and str(error))
            tally.refused += ok
            if not ok:
                tally.wrong(data, error)
        except BaseException as error:  # SystemExit: the code ran
            tally.wrong(data, error)
        else:
            ok = _holds(loaded.config, json.loads(data))
            tally.accepted += ok
            if not ok:
                tally.wrong(data, vars(loaded.config))
    return tally


def _holds(config: Any, document: dict[str, Any]) -> bool:
    """Whether a config has what the JSON says, but for what every config's own class settles."""
    kept = {
        key: value
        for key, value in document.items()
        if key in vars(config) and key not in {"torch_dtype", "dtype"}
    }
    # As text: NaN, which real configs hold beside Infinity, is not equal to itself.
    same = all(repr(vars(config)[key]) == repr(value) for key, value in kept.items())
    return same and "hidden_size" not in (document.keys() - vars(config).keys())


def _changed_config(rng: random.Random, config: dict[str, Any]) -> bytes:
    document = deepcopy(config)
    for _ in range(rng.choice((1, 1, 2, 3))):
        place: Any = document
        while isinstance(place, dict) and place and rng.random() < 0.4:
            inner = [value for value in place.values() if isinstance(value, dict)]
            if not inner:
                break
            place = rng.choice(inner)
        key = rng.choice(
            [*place, "auto_map", "architectures", "torch_dtype", "model_type", "trust_remote_code", "x"]
        )
        place[key] = deepcopy(rng.choice(VALUES))
    return json.dumps(document, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
