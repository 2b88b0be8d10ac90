"""find_weight_files: which files of a folder are its weights, in which order, and what is refused."""

from __future__ import annotations

import json

import pytest

from shardload.checkpoint.index import NOT_WEIGHTS, find_weight_files
from shardload.checkpoint.sources import FolderSource
from shardload.errors import CorruptError, NotFoundError, UsageError


@pytest.fixture
def source(tmp_path):
    """Make a source of empty files."""

    def make(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"")
        return FolderSource(tmp_path)

    return make


INDEX = "model.safetensors.index.json"
ORDER = [
    "model.safetensors", "pytorch_model.bin", "adapter_model.safetensors", "adapter_model.bin",
    "weights.safetensors", "weights.bin", "weights.pth", "weights.pt",
]  # fmt: skip


@pytest.mark.parametrize("first", range(len(ORDER)))
def test_safetensors_before_bin_and_usual_names_before_others(source, first):
    assert find_weight_files(source(*ORDER[first:], "config.json")).shards == (ORDER[first],)


def index_of(tmp_path, name, document):
    (tmp_path / name).write_text(json.dumps(document))


def test_an_index_says_the_shards_once(source, tmp_path):
    weights = source("b.safetensors", "a.safetensors")
    weight_map = {"x": "b.safetensors", "y": "./a.safetensors", "z": "b.safetensors"}
    index_of(tmp_path, INDEX, {"weight_map": weight_map, "metadata": {"total_size": 7}})
    found = find_weight_files(weights)
    assert found.shards == ("a.safetensors", "b.safetensors")
    assert (found.index, found.total_size) == (INDEX, 7)
    assert found.weight_map == weight_map | {"y": "a.safetensors"}


SHARDS = [f"model-{n:05d}-of-00002.safetensors" for n in (1, 2)]
OTHERS = [f"model-{n:05d}-of-00009.safetensors" for n in (1, 2, 3)]


@pytest.mark.parametrize("there", [SHARDS, []], ids=["with its shards", "without its shards"])
def test_a_whole_file_comes_before_an_index_of_others_as_in_transformers(source, tmp_path, there):
    weights = source("model.safetensors", *there)
    index_of(tmp_path, INDEX, {"weight_map": dict(zip("ab", SHARDS, strict=True))})
    found = find_weight_files(weights)
    assert (found.shards, found.index) == (("model.safetensors",), None)
    assert INDEX in found.notes[0]
    assert SHARDS[0] in found.notes[0]


def test_an_index_that_names_the_whole_file_too_is_the_index(source, tmp_path):
    weights = source("model.safetensors", "more.safetensors")
    index_of(tmp_path, INDEX, {"weight_map": {"a": "model.safetensors", "b": "more.safetensors"}})
    assert find_weight_files(weights).index == INDEX


def test_a_broken_index_beside_a_whole_file_is_a_note(source, tmp_path):
    weights = source("model.safetensors")
    index_of(tmp_path, INDEX, {"weight_map": {}})
    found = find_weight_files(weights)
    assert (found.shards, found.index) == (("model.safetensors",), None)
    assert found.notes == (f"{INDEX} is not used: the index has no weight_map",)


@pytest.mark.parametrize("whole", [SHARDS, ["weights.safetensors"], ["pytorch_model.bin"]], ids=str)
def test_an_index_of_another_upload_gives_way_to_what_is_whole(source, tmp_path, whole):
    weights = source(*whole)
    index_of(tmp_path, INDEX, {"weight_map": dict(zip("abc", OTHERS, strict=True))})
    found = find_weight_files(weights)
    assert found.shards == tuple(whole)
    assert found.index is None
    assert found.notes == (f"{INDEX} is not used: none of the 3 files that it names is there",)


@pytest.mark.parametrize("there", [[], SHARDS[:1], OTHERS[:1]], ids=str)
def test_an_index_counts_where_nothing_else_is_whole_or_some_of_its_files_are_there(source, tmp_path, there):
    weights = source(*there)
    index_of(tmp_path, INDEX, {"weight_map": dict(zip("abc", OTHERS, strict=True))})
    assert find_weight_files(weights).index == INDEX


def test_a_shard_of_the_same_set_that_the_index_leaves_out_is_loaded(source, tmp_path):
    weights = source(*SHARDS, "model-00003-of-00004.safetensors")
    index_of(tmp_path, INDEX, {"weight_map": {"a": SHARDS[0]}})
    found = find_weight_files(weights)
    assert found.shards == tuple(SHARDS)
    assert found.notes == (f"{SHARDS[1]} is of the same set and not in {INDEX}: it is loaded too",)


def test_the_names_in_an_index_are_relative_to_it(source, tmp_path):
    weights = source("unet/a.bin")
    index_of(
        tmp_path / "unet", "x.bin.index.json", {"weight_map": {"w": "a.bin"}, "metadata": {"total_size": 1.5}}
    )
    found = find_weight_files(weights, only="unet/x.bin.index.json")
    assert found.shards == ("unet/a.bin",)
    assert found.total_size is None


def test_a_file_that_the_caller_names_is_taken_as_it_is(source):
    assert find_weight_files(source("model.safetensors", "other.bin"), only="other.bin").shards == (
        "other.bin",
    )


def test_a_variant_is_taken_by_its_name_or_refused(source, tmp_path):
    weights = source("model.safetensors", "model.fp16.safetensors", "pytorch_model.fp32.bin")
    assert find_weight_files(weights, variant="fp16").shards == ("model.fp16.safetensors",)
    assert find_weight_files(weights, variant="fp32").shards == ("pytorch_model.fp32.bin",)
    with pytest.raises(NotFoundError, match="no weights of variant 'int4'") as caught:
        find_weight_files(weights, variant="int4")
    assert "model.fp16.safetensors" in caught.value.where
    index_of(tmp_path, "model.safetensors.index.fp16.json", {"weight_map": {"w": "model.fp16.safetensors"}})
    assert find_weight_files(weights, variant="fp16").index == "model.safetensors.index.fp16.json"


def test_a_numbered_set_is_ordered_and_has_to_be_whole(source, tmp_path):
    names = [f"part-{number:05d}-of-00003.pth" for number in (3, 1, 2)]
    weights = source(*names)
    assert find_weight_files(weights).shards == tuple(sorted(names))
    (tmp_path / names[2]).unlink()
    with pytest.raises(NotFoundError, match="1 of 3 shards are missing") as caught:
        find_weight_files(FolderSource(tmp_path))
    assert "numbers 2" in caught.value.where
    assert caught.value.code == "E-SHARDS"


@pytest.mark.parametrize(
    "names",
    [
        ("a.bin", "b.bin"),
        ("a-00001-of-00001.bin", "b.bin"),
        ("a-00001-of-00002.bin", "a-00002-of-00002.bin", "a-00001-of-00003.bin"),
    ],
)
def test_several_files_without_one_order_are_refused(source, names):
    with pytest.raises(UsageError, match="no index that orders them"):
        find_weight_files(source(*names))


def test_a_trainers_files_are_no_weights(source):
    assert find_weight_files(source(*(f"{name}.pt" for name in NOT_WEIGHTS), "w.pt")).shards == ("w.pt",)


def test_a_folder_without_weights_says_how_many_files_it_has(source):
    with pytest.raises(NotFoundError, match="holds no checkpoint") as caught:
        find_weight_files(source("config.json", "optimizer.pt", "sub/model.bin"))
    assert "the 2 files outside" in caught.value.where


@pytest.mark.parametrize(
    "document", [[], {}, {"weight_map": {}}, {"weight_map": {"w": 1}}, {"weight_map": ["a"]}]
)
def test_an_index_without_a_map_of_names_is_corrupt(source, tmp_path, document):
    weights = source("a.bin")
    index_of(tmp_path, "pytorch_model.bin.index.json", document)
    with pytest.raises(CorruptError, match="weight_map") as caught:
        find_weight_files(weights)
    assert caught.value.code == "E-INDEX"


def test_folders_that_hold_the_weights_are_named(source, tmp_path):
    files = [f"run/step-{number}/model.safetensors" for number in (1, 2, 3, 4)]
    with pytest.raises(NotFoundError, match="among the 1 files outside its folders") as caught:
        find_weight_files(source(*files, "logs/optimizer.pt", "notes.md"))
    paths = [str(tmp_path / "run" / f"step-{number}") for number in (1, 2, 3)]
    assert caught.value.cure.endswith(f"pass the path of one: {', '.join(paths)} (and 1 more)")
    assert find_weight_files(FolderSource(paths[0])).shards == ("model.safetensors",)


def test_a_folder_that_holds_an_adapter_alone_is_named_where_there_is_no_base(source, tmp_path):
    with pytest.raises(NotFoundError) as caught:
        find_weight_files(source("lora/adapter_model.safetensors"))
    assert caught.value.cure.endswith(f"pass the path of one: {tmp_path / 'lora'}")
    with pytest.raises(NotFoundError) as caught:
        find_weight_files(source("lora/adapter_model.safetensors", "base/model.bin"))
    assert caught.value.cure.endswith(f"pass the path of one: {tmp_path / 'base'}")


def test_in_a_repo_on_the_hub_the_folder_is_a_keyword(source):
    there = source("unet/weights.bin")
    there.is_local, there.label = False, "org/name@main"
    with pytest.raises(NotFoundError) as caught:
        find_weight_files(there)
    assert caught.value.cure.endswith("pass subfolder=…, one of unet")
