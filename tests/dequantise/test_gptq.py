"""GPTQ: every width, both formats of zeros, with and without an order of its own, against a plain reading."""

from __future__ import annotations

import pytest
import torch

import shardload
from shardload.dequantise.gptq import Gptq
from tests.dequantise.packed import Layer, folder_of, holds, words

ROWS, COLUMNS, GROUP = 64, 96, 32


def packed(bits=4, *, lift=1, order=None, scales=torch.float16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    groups = COLUMNS // GROUP
    numbers = torch.randint(0, 1 << bits, (COLUMNS, ROWS), generator=generator)
    zeros = torch.randint(lift, (1 << bits) + lift, (groups, ROWS), generator=generator)
    scale = (torch.rand(groups, ROWS, generator=generator) + 0.01).to(scales)
    index = torch.arange(COLUMNS) // GROUP
    if order == "shuffled":
        index = index[torch.randperm(COLUMNS, generator=generator)]
    tensors = {
        "layer.qweight": words(numbers, bits, 0),
        "layer.qzeros": words(zeros - lift, bits, 1),
        "layer.scales": scale,
    }
    if order is not None:
        tensors["layer.g_idx"] = index.int()
    wanted = (scale[index] * (numbers - zeros[index])).t().contiguous()
    return tensors, wanted


def settings(bits=4, **more):
    return {"quant_method": "gptq", "bits": bits, "group_size": GROUP, **more}


@pytest.mark.parametrize("order", [None, "ascending", "shuffled"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_width_and_order(tmp_path, bits, order):
    tensors, wanted = packed(bits, order=order)
    holds(folder_of(tmp_path / "packed", tensors, settings(bits)), wanted)


def test_zeros_of_the_second_format_are_stored_as_they_are(tmp_path):
    tensors, wanted = packed(lift=0, order="ascending")
    holds(folder_of(tmp_path / "packed", tensors, settings(checkpoint_format="gptq_v2")), wanted)


def test_scales_in_bfloat16(tmp_path):
    tensors, wanted = packed(scales=torch.bfloat16)
    assert wanted.dtype == torch.bfloat16
    holds(folder_of(tmp_path / "packed", tensors, settings()), wanted)


def test_settings_of_an_old_quantiser_stand_in_a_file_of_their_own(tmp_path):
    tensors, wanted = packed()
    folder = folder_of(tmp_path / "packed", tensors, None)
    (folder / "quantize_config.json").write_text('{"bits": 4, "group_size": 32, "desc_act": false}')
    holds(folder, wanted)
    assert not (tmp_path / "packed-plain" / "quantize_config.json").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t["layer.scales"].__setitem__((1, 3), float("nan")), "layer.scales"),
        (lambda t: t["layer.scales"].__setitem__((0, 0), float("inf")), "layer.scales"),
        (lambda t: t["layer.g_idx"].__setitem__(5, 3), "layer.g_idx"),
        (lambda t: t["layer.g_idx"].__setitem__(5, -1), "layer.g_idx"),
        (lambda t: t.__setitem__("layer.qzeros", t["layer.qzeros"][:-1]), "layer.qzeros"),
        (lambda t: t.__setitem__("layer.scales", t["layer.scales"].double()), "layer.scales"),
        (lambda t: t.__setitem__("layer.g_idx", t["layer.g_idx"][:-1]), "layer.g_idx"),
        (lambda t: t.pop("layer.qzeros"), "layer.qzeros"),
        (lambda t: t.update({n: t[n][:0] for n in ("layer.scales", "layer.qzeros")}), "layer.scales"),
    ],
)
def test_changed_parts_are_refused_by_name(tmp_path, change, named):
    tensors, wanted = packed(order="ascending")
    change(tensors)
    folder = folder_of(tmp_path / "packed", tensors, settings())
    shell = shardload.build_shell(lambda: Layer(wanted.shape))
    with pytest.raises(shardload.CorruptError) as caught:
        shardload.fill(shell, shardload.open_checkpoint(folder), dtype="bfloat16")
    assert "model.safetensors" in caught.value.where
    assert named in caught.value.where + caught.value.what
    assert shell.model.layer.weight.is_meta


@pytest.mark.parametrize("named", [None, {"checkpoint_format": "marlin"}, {"checkpoint_format": ["gptq"]}])
def test_what_is_not_known_is_not_guessed(tmp_path, named):
    tensors, _ = packed()
    folder = folder_of(tmp_path / "packed", tensors, named)
    with pytest.raises(shardload.UnsupportedError):
        shardload.dequantised(shardload.open_checkpoint(folder), "bfloat16")


def test_groups_of_several_possible_sizes_are_not_guessed(tmp_path):
    """Five groups of 96 inputs are of 20 to 23 inputs: without an order only the settings can say which."""
    tensors, _ = packed()
    tensors = {
        name: torch.cat([each, each[:2]]) if each.shape[0] == 3 else each for name, each in tensors.items()
    }
    checkpoint = shardload.open_checkpoint(folder_of(tmp_path / "packed", tensors, settings()))
    with pytest.raises(shardload.UnsupportedError, match="5 groups of 96 inputs"):
        shardload.dequantised(checkpoint, "bfloat16")


@pytest.mark.parametrize(("bits", "grain"), [(2, 16), (3, 32), (4, 8), (8, 4)])
def test_a_block_begins_and_ends_with_whole_words(bits, grain):
    scheme = Gptq(bits, GROUP, 1, ordered=False)
    assert scheme.window(range(grain + 1, grain + 2), range(1)) == (range(grain, 2 * grain), range(grain))


@pytest.mark.parametrize("order", [True, False])
def test_modules_with_settings_of_their_own(tmp_path, order):
    """GPTQModel's `dynamic`: other widths and groups for some modules, and modules that are not packed at all."""
    generator = torch.Generator().manual_seed(0)
    stored, wanted = {}, {}
    for name, (bits, group) in {"a": (4, 32), "b": (8, 16), "c": (2, 96), "d": (3, 32)}.items():
        numbers = torch.randint(0, 1 << bits, (COLUMNS, ROWS), generator=generator)
        zeros = torch.randint(1, (1 << bits) + 1, (COLUMNS // group, ROWS), generator=generator)
        scale = (torch.rand(COLUMNS // group, ROWS, generator=generator) + 0.01).half()
        index = torch.arange(COLUMNS) // group
        stored |= {f"{name}.qweight": words(numbers, bits, 0), f"{name}.qzeros": words(zeros - 1, bits, 1)}
        stored |= {f"{name}.scales": scale, **({f"{name}.g_idx": index.int()} if order else {})}
        wanted[f"{name}.weight"] = (scale[index] * (numbers - zeros[index])).t()
    stored["e.weight"] = wanted["e.weight"] = torch.randn(ROWS, COLUMNS, generator=generator).half()
    own = {
        "+:b": {"bits": 8, "group_size": 16},
        "+:c": {"bits": 2, "group_size": -1},
        "+:d": {"bits": 3},
        "-:e": {},
    }
    folder = folder_of(tmp_path / "packed", stored, settings(dynamic=own))
    found = dict(shardload.dequantised(shardload.open_checkpoint(folder), "float16").items())
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
