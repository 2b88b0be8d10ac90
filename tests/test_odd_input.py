"""Odd names, odd values and bad moments: what a hostile file or an unlucky user brings about."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import threading

import pytest
import torch
from torch import nn

from shardload import (
    CorruptError,
    KeyMap,
    MismatchError,
    NotFoundError,
    OnDevice,
    UnsupportedError,
    UsageError,
    build_shell,
    check,
    fill,
    from_pretrained,
    open_checkpoint,
    report_of,
    save,
)
from shardload.errors import ShardloadError
from shardload.keys import collapse
from tests.tiny import Net, assert_same_state, meta_names, random_state, run_python, write_checkpoint


def linear() -> nn.Module:
    return nn.Linear(2, 2)


LINEAR = {"weight": torch.ones(2, 2), "bias": torch.ones(2)}


# --- names ----------------------------------------------------------------------------------------------------

KEYS = [
    "a..b", "", "{}", "a.{}.0", "{...}", "{0}", "new\nline", "tab\t", "\x1b[31mred", "ünïcode.日本", "\u202etxt.exe",
    ".", "a.", ".a", "0", "00.1", " a", "a/b", "../x", "%s", "x" * 3000, "9" * 5000, "a." + "9" * 5000 + ".b", "*",
    "[a]",
]  # fmt: skip


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("key", KEYS, ids=lambda key: ascii(key)[1:20])
def test_a_key_of_any_kind_is_named_and_harms_nothing(tmp_path, key, kind):
    checkpoint = open_checkpoint(
        write_checkpoint(tmp_path, {**LINEAR, key: torch.zeros(1)}, kind=kind, shards=1)
    )
    assert set(checkpoint.tensors) == {*LINEAR, key}
    with pytest.raises(MismatchError, match="1 unexpected") as caught:
        fill(build_shell(linear), checkpoint)
    (fault,) = caught.value.report.faults
    assert fault.key == key
    text = str(caught.value)
    assert all(line.isprintable() for line in text.split("\n"))
    assert len(text.splitlines()) == 6, "a name never makes a line of its own"
    assert str(caught.value.report).replace("\n", "").isprintable()
    fill(build_shell(linear), checkpoint, key_map=without(key))


def without(key: str) -> KeyMap:
    """Drop exactly this key."""
    return KeyMap().drop("".join(f"[{c}]" if c in "*?[" else c for c in key))


def test_names_that_look_like_templates_collapse_into_themselves():
    assert collapse(["a.{}.0", "a.{}.1", "{}", "{}.0.{}"]) == ["a.{}.0", "a.{}.1", "{}", "{}.0.{}"]
    digits = "9" * 5000
    assert collapse([f"a.{digits}", "a.3", "a.4"]) == [f"a.{digits}", "a.{3-4}"]


# --- values ---------------------------------------------------------------------------------------------------


class Numbers(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, dtype=dtype))


@pytest.mark.parametrize(
    ("model", "stored", "says"),
    [
        (torch.float32, torch.int32, "packed or quantised"),
        (torch.complex64, torch.int32, "packed or quantised"),
        (torch.float32, torch.bool, "packed or quantised"),
        (torch.float32, torch.complex64, "the model holds real numbers"),
    ],
)
def test_numbers_of_another_kind_are_refused(tmp_path, model, stored, says):
    checkpoint = open_checkpoint(
        write_checkpoint(tmp_path, {"weight": torch.ones(2).to(stored)}, kind="bin", shards=1)
    )
    with pytest.raises(MismatchError, match=says):
        fill(build_shell(lambda: Numbers(model)), checkpoint)


def test_a_real_number_for_a_complex_one_is_taken_as_torch_takes_it(tmp_path):
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, {"weight": torch.ones(2)}, shards=1))
    shell = build_shell(lambda: Numbers(torch.complex64))
    fill(shell, checkpoint)
    oracle = Numbers(torch.complex64)
    oracle.load_state_dict({"weight": torch.ones(2)}, assign=True)
    assert shell.model.weight.dtype == oracle.weight.dtype


class OwnLoader(Numbers):
    def _load_from_state_dict(self, *args) -> None:
        super()._load_from_state_dict(*args)


@pytest.mark.parametrize("make", [Numbers, OwnLoader])
def test_a_dtype_that_torch_lacks_is_refused_before_the_load(tmp_path, make):
    """Four-bit floats have a code in the format and no dtype in torch."""
    header = json.dumps({"weight": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\x00")
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises((MismatchError, UnsupportedError), match="no dtype for|torch has no dtype"):
        fill(build_shell(lambda: make(torch.float32)), checkpoint)


def test_a_checkpoint_of_computed_buffers_alone_loads_nothing_and_says_so(tmp_path):
    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.ones(2), persistent=False)

    shell = build_shell(Computed)
    report = fill(shell, open_checkpoint(write_checkpoint(tmp_path, {"table": torch.zeros(2)}, shards=1)))
    assert report.loaded == 0
    assert "table: a stored copy" in str(report)
    assert torch.equal(shell.model.table, torch.ones(2))


def test_what_a_class_declares_as_one_text_is_one_pattern(tmp_path):
    """Letter by letter it would excuse nearly every missing key."""

    class Declaring(Net):
        _keys_to_ignore_on_load_missing = "head.bias"

    state = random_state(Net())
    del state["embed.weight"]
    with pytest.raises(MismatchError, match=r"embed\.weight"):
        fill(build_shell(Declaring), open_checkpoint(write_checkpoint(tmp_path, state)))
    Declaring._keys_to_ignore_on_load_missing = ["("]
    with pytest.raises(UsageError, match="no regular expression"):
        fill(build_shell(Declaring), open_checkpoint(tmp_path))


def test_a_scalar_that_is_stored_with_one_dimension_is_taken(tmp_path):
    class Scalar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(0.0))

    shell = build_shell(Scalar)
    fill(shell, open_checkpoint(write_checkpoint(tmp_path, {"weight": torch.full((1,), 4.0)}, shards=1)))
    assert shell.model.weight.shape == ()
    assert float(shell.model.weight.detach()) == 4.0


def test_parameters_that_were_saved_as_such_are_tensors(tmp_path):
    model = Net()
    torch.save({**dict(model.named_parameters()), **dict(model.named_buffers())}, tmp_path / "weights.bin")
    shell = build_shell(Net)
    # It holds the computed buffers as well: they are lines in the report.
    report = fill(shell, open_checkpoint(tmp_path))
    assert any("layers.{0-2}.scale: a stored copy" in note for note in report.notes)
    assert_same_state(shell.model, model)


# --- files that move and change -------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "repo", random_state(Net()))


def middle(folder):
    return sorted(folder.glob("*.safetensors"))[1]


def test_a_shard_that_is_deleted_after_it_was_opened(folder):
    checkpoint = open_checkpoint(folder)
    middle(folder).unlink()
    model = Net()
    before = {name: id(p) for name, p in model.named_parameters()}
    with pytest.raises(NotFoundError, match="model-00002-of-00003"):
        fill(model, checkpoint)
    assert {name: id(p) for name, p in model.named_parameters()} == before


@pytest.mark.parametrize("copy_bytes", [False, True])
def test_a_shard_that_is_replaced_after_its_header_was_read_is_never_taken_for_it(folder, copy_bytes):
    """Same name, same size, other bytes: read by the old header it would load noise."""
    checkpoint = open_checkpoint(folder)
    path = middle(folder)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[::-1])
    shell = build_shell(Net)
    with pytest.raises(CorruptError, match="changed since its header was read"):
        fill(shell, checkpoint, copy=copy_bytes)
    assert all(parameter.is_meta for parameter in shell.model.parameters())
    name = next(name for name, ref in checkpoint.tensors.items() if ref.shard == path.name)
    with pytest.raises(CorruptError, match="changed since its header was read"):
        checkpoint.read(name)


def test_read_only_files_in_a_read_only_folder(folder):
    """Permissions bind nobody who runs as root: every opening is looked at as well."""
    code = """
import os, sys
def refuse_writing(event, details):
    if event == "open" and str(details[0]).startswith(sys.argv[1]):
        assert not details[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT), details
import torch
sys.path.insert(0, ".")
from shardload import build_shell, fill, open_checkpoint
from tests.tiny import Net, random_state
sys.addaudithook(refuse_writing)
shell = build_shell(Net)
fill(shell, open_checkpoint(sys.argv[1]))
with torch.no_grad():
    shell.model.head.weight.add_(1)
print(torch.equal(shell.model.head.weight, random_state(Net())["head.weight"] + 1))
"""
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)
    try:
        assert run_python(code, str(folder)).stdout == "True\n"
    finally:
        folder.chmod(0o755)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interruption_in_the_middle_puts_everything_back(folder, error):
    def stop(progress) -> None:
        if progress.tensors == 9:
            raise error

    model = Net()
    before = {name: id(p) for name, p in (*model.named_parameters(), *model.named_buffers())}
    with pytest.raises(error):
        fill(model, open_checkpoint(folder), progress=stop)
    assert {name: id(p) for name, p in (*model.named_parameters(), *model.named_buffers())} == before
    fill(model, open_checkpoint(folder))
    assert torch.equal(model.head.weight, random_state(Net())["head.weight"])


# --- one checkpoint, several models ---------------------------------------------------------------------------


def test_two_models_of_one_checkpoint_do_not_share_what_is_trained(folder):
    checkpoint = open_checkpoint(folder)
    first, second = build_shell(Net), build_shell(Net)
    fill(first, checkpoint)
    fill(second, checkpoint)
    with torch.no_grad():
        for parameter in first.model.parameters():
            parameter.add_(1)
        first.model.stats.running_mean.add_(1)
    for key, value in random_state(Net()).items():
        assert torch.equal(second.model.state_dict()[key], value)


def test_copies_of_a_mapped_model_are_whole(folder, tmp_path):
    model = from_pretrained(folder, model_class=lambda _config: Net(), config={}, progress=False)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same_state(twin, model)
        with torch.no_grad():
            twin.head.weight.zero_()
        assert float(model.head.weight.detach().abs().sum()) > 0
        with pytest.raises(UsageError, match="not made by from_pretrained"):
            report_of(twin)
    torch.save(model.state_dict(), tmp_path / "again.pt")
    total = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert (tmp_path / "again.pt").stat().st_size < 3 * total + 20_000, "no file is dragged along"
    model.share_memory()
    assert torch.equal(model.head.weight, random_state(Net())["head.weight"])


def test_saving_over_the_files_that_the_model_is_mapped_from(tmp_path):
    folder = write_checkpoint(tmp_path, random_state(Net()), shards=1)
    shell = build_shell(Net)
    fill(shell, open_checkpoint(folder))
    with torch.no_grad():
        shell.model.head.weight.add_(1)
    save(shell.model, folder)
    again = build_shell(Net)
    fill(again, open_checkpoint(folder))
    assert_same_state(again.model, shell.model)
    assert torch.equal(again.model.head.weight, random_state(Net())["head.weight"] + 1)


def test_loads_in_several_threads(folder):
    models, errors = [], []

    def work() -> None:
        try:
            for _ in range(3):
                model = from_pretrained(folder, model_class=lambda _config: Net(), config={}, progress=False)
                models.append(model)
        except BaseException as error:
            errors.append(error)

    new = nn.Parameter.__new__
    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(models) == 18
    for model in models:
        assert meta_names(model) == []
        assert_same_state(model, models[0])
    assert gc.isenabled()
    assert nn.Parameter.__new__ is new


def test_a_default_dtype_of_one_thread_is_not_what_another_puts_back():
    """Thread B begins while A's constructor has half precision as the default, and ends after it."""
    half_is_default, b_has_begun = threading.Event(), threading.Event()

    def a() -> nn.Module:
        torch.set_default_dtype(torch.half)
        half_is_default.set()
        b_has_begun.wait(10)
        return linear()

    def b() -> nn.Module:
        b_has_begun.set()
        first.join(10)
        return linear()

    first = threading.Thread(target=lambda: build_shell(a))
    first.start()
    half_is_default.wait(10)
    try:
        build_shell(b)
        assert torch.get_default_dtype() == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


# --- what stands around the load ------------------------------------------------------------------------------


@pytest.mark.parametrize("copy_bytes", [False, True])
def test_the_callers_default_device_does_not_reach_the_weights(tmp_path, copy_bytes):
    write_checkpoint(tmp_path, LINEAR, shards=1)
    with torch.device("meta"):
        shell = build_shell(linear)
        fill(shell, open_checkpoint(tmp_path), copy=copy_bytes)
        part = open_checkpoint(tmp_path).read("weight", (slice(0, 1),))
    assert torch.equal(shell.model.weight, LINEAR["weight"])
    assert torch.equal(part, LINEAR["weight"][:1])


def test_no_grad_around_a_load_leaves_parameters_that_can_be_trained(folder):
    with torch.no_grad():
        shell = build_shell(Net)
        fill(shell, open_checkpoint(folder))
    shell.model(torch.tensor([[1, 2, 3], [4, 5, 6]])).sum().backward()
    assert all(parameter.grad is not None for parameter in shell.model.parameters())


@pytest.mark.parametrize(
    "device", ["nope", "auto", "meta", {"": 0}, None, "cuda:99", "xpu", "mps", "privateuseone", "balanced"]
)
def test_a_device_that_is_none_here_is_an_error_before_anything_is_opened(tmp_path, device):
    if isinstance(device, str) and device == torch.get_default_device().type:
        pytest.skip("this machine has one")
    with pytest.raises(UsageError) as caught:
        OnDevice(device)
    assert "device" in str(caught.value)
    with pytest.raises(UsageError):
        from_pretrained(tmp_path / "not there", device=device)


@pytest.mark.parametrize("where", [None, 3, "", " ", "a/b/c", "http://x/y", "no/such\0name", ["x"]])
def test_a_place_that_is_none_is_a_typed_error(where):
    with pytest.raises(ShardloadError):
        from_pretrained(where, model_class=lambda _config: Net(), config={}, local_files_only=True)


# --- arguments of the wrong kind ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keywords",
    [
        {"allow_missing": None}, {"allow_missing": [3]}, {"allow_missing": "head.*"}, {"allow_unexpected": ["["]},
        {"key_map": 3}, {"key_map": [("a", "b")]}, {"key_map": {"a": 3}}, {"key_map": {3: "a"}},
    ],
    ids=str,
)  # fmt: skip
def test_a_keyword_of_the_wrong_kind_is_a_typed_error(folder, keywords):
    model = Net()
    before = {name: id(p) for name, p in model.named_parameters()}
    with pytest.raises(UsageError):
        fill(model, open_checkpoint(folder), **keywords)
    assert {name: id(p) for name, p in model.named_parameters()} == before


@pytest.mark.parametrize("wrong", [None, "text", {}, Net])
def test_a_model_or_a_checkpoint_of_the_wrong_kind_is_a_typed_error(folder, wrong):
    with pytest.raises(UsageError, match="is wanted"):
        fill(wrong, open_checkpoint(folder))
    with pytest.raises(UsageError, match="is wanted"):
        fill(Net(), wrong)
    with pytest.raises(UsageError, match="is wanted"):
        check(Net(), wrong)


@pytest.mark.parametrize(
    "region",
    [
        (slice(0, 1, 0),), (1,), slice(0, 1), (slice(None, None, -1),), (slice(None),) * 3, (slice("a"),), [slice(1)],
        (slice(1.5),), (None,), (...,),
    ],
    ids=str,
)  # fmt: skip
def test_a_region_of_the_wrong_kind_is_a_typed_error(folder, region):
    with pytest.raises(UsageError, match="region"):
        open_checkpoint(folder).read("head.weight", region)
    assert open_checkpoint(folder).read("head.weight", (slice(10**30),)).shape == (12, 8)
