from __future__ import annotations

import subprocess
import sys

import pytest

from shardload import KeyMap, NoInverseError, UsageError
from shardload.keymap import residence
from tests.keymap.random_maps import refs_of
from tests.keymap.stored import shapes


def test_no_torch_is_imported():
    code = "import sys; from shardload import KeyMap; KeyMap.of({'a': 'b'}).map_headers({}); "
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_rename_adds_to_a_number_and_back():
    key_map = KeyMap().rename("h.{}.w", "layers.{+1}.w")
    assert key_map.apply("h.9.w") == "layers.10.w"
    assert key_map.invert().apply("layers.10.w") == "h.9.w"
    assert key_map.invert().apply("layers.0.w") == "layers.0.w"  # nothing is one below


def test_a_number_with_leading_zeros_is_not_counted_on():
    assert KeyMap().rename("h.{}.w", "l.{+1}.w").apply("h.007.w") == "h.007.w"
    assert KeyMap().rename("h.{}.w", "l.{}.w").apply("h.007.w") == "l.007.w"


def test_rename_everywhere_takes_whole_segments():
    key_map = KeyMap().rename("_fsdp", "", everywhere=True)
    assert key_map.apply("_fsdp.block.0._fsdp.q.w") == "block.0.q.w"
    assert key_map.apply("my_fsdp.w") == "my_fsdp.w"
    assert KeyMap().rename("a.b", "c", everywhere=True).apply("x.a.b.a.b.w") == "x.c.c.w"
    with pytest.raises(NoInverseError):
        key_map.invert()
    assert KeyMap().rename("gamma", "weight", everywhere=True).invert().apply("n.weight") == "n.gamma"


def test_drop_takes_a_template_or_a_pattern():
    key_map = KeyMap().drop("h.{}.mask").drop("*.inv_freq")
    assert [key_map.apply(key) for key in ("h.3.mask", "h.x.mask", "a.inv_freq")] == [None, "h.x.mask", None]
    with pytest.raises(UsageError, match="not both"):
        KeyMap().drop("*.{}.mask")


def test_names_may_meet_on_the_way():
    key_map = KeyMap().rename("a", "b").drop("b")
    assert shapes(key_map, a=(1,), b=(2,)) == {}
    assert KeyMap.of({"a": "b", "b": "c"}).apply("a") == "c"  # one after the other


@pytest.mark.parametrize(
    ("key_map", "message"),
    [
        (KeyMap().split("a", ["b", "c"], [3, 4]), r"a \[8, 2\] can't be cut into \[3, 4\]"),
        (KeyMap().split("a", ["b", "c", "d"]), "cut into equal parts"),
        (KeyMap().split("a", ["b", "c"], [4, 4], dim=2), "along dimension 2"),
        (KeyMap().cat(["a", "x"], "b"), "b lacks its part x"),
        (KeyMap().cat(["a", "w"], "b"), "differ outside of dimension 0"),
        (KeyMap().cat(["a", "a2"], "b", sizes=[1, 2]), r"have \[8, 8\] along dimension 0, not \[1, 2\]"),
        (KeyMap().stack("e.{n}.w", "e.w"), r"e.w: has \{0-1,3\}, and needs \{0-2\}"),
        (KeyMap().unstack("a", "b.{n}", count=7), "has no 7 entries along dimension 0"),
        (KeyMap().transpose("a", (0, 2)), "lacks the dimensions"),
        (KeyMap().slice_rows("a", 9), r"a \[8, 2\] needs 9 rows or more"),
        (KeyMap().pad_rows("a", 7), "needs at most 7 rows"),
        (KeyMap().pad_rows("a", 9, of=7), "needs 7 rows"),
        (KeyMap().alias("a", "a2"), "both become a2"),
    ],
)
def test_what_does_not_fit_is_said_with_names_and_shapes(key_map, message):
    stored = {"a": (8, 2), "a2": (8, 2), "w": (8, 3), "e__0__w": (2,), "e__1__w": (2,), "e__3__w": (2,)}
    with pytest.raises(UsageError, match=message):
        shapes(key_map, **stored)


@pytest.mark.parametrize(
    "key_map",
    [
        KeyMap().drop("x"),
        KeyMap().slice_rows("x", 2),
        KeyMap().cat(["x", "y"], "z"),
        KeyMap().pad_rows("x", 9),
    ],
)
def test_what_has_no_inverse_says_so(key_map):
    with pytest.raises(NoInverseError):
        key_map.invert()


def test_bind_fills_in_what_an_inverse_needs():
    refs = refs_of({"x": (2, 3), "y": (4, 3)})
    bound = KeyMap().cat(["x", "y"], "z").pad_rows("z", 9).bind(refs)
    assert bound.invert().map_headers(bound.map_headers(refs).tensors).tensors == refs


def test_a_map_fits_its_own_checkpoint_only():
    refs = refs_of({"m.x": (2, 3), "m.y": (4, 3), "left": (1,), "odd": (1,)})
    bound = KeyMap().rename("m.{...}", "{...}").bind(refs, unresolved_source=["odd"])
    assert (bound.unchanged, bound.unresolved_source) == (("left",), ("odd",))
    bound.require_fit(refs)
    with pytest.raises(UsageError, match="another checkpoint"):
        bound.require_fit({**refs, "new": refs["left"]})
    with pytest.raises(UsageError, match="another checkpoint"):
        bound.require_fit(refs_of({"m.x": (2, 3), "m.y": (4, 4), "left": (1,), "odd": (1,)}))
    with pytest.raises(UsageError, match="unresolved"):
        KeyMap().rename("m.{...}", "{...}").bind(refs, unresolved_source=["m.x"])


def test_residence_counts_what_is_begun_and_not_complete():
    refs = refs_of({"a.0": (100,), "b.0": (100,), "a.1": (100,), "b.1": (100,)}, shards=2)
    # shard 0 holds a.0 and a.1, shard 1 b.0 and b.1: both joins are open at once.
    mapped = KeyMap().cat(["a.{}", "b.{}"], "ab.{}").map_headers(refs).tensors
    held = residence(mapped, ["0.safetensors", "1.safetensors"])
    assert (held.joined, held.nbytes, held.peak, held.across) == (2, 1600, 1600, 2)
    one_file = refs_of({"a.0": (100,), "c": (9,), "b.0": (100,), "a.1": (100,), "d": (9,), "b.1": (100,)})
    mapped = KeyMap().cat(["a.{}", "b.{}"], "ab.{}").map_headers(one_file).tensors
    held = residence(mapped, ["0.safetensors"])
    assert (held.joined, held.nbytes, held.peak, held.across) == (2, 1600, 800, 0)
