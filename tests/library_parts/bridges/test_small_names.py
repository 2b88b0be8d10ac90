"""Functions of the newer spelling, against the library's own."""

from __future__ import annotations

import pytest
import torch

from shardload.library_parts.bridges import small_names

modeling_utils = pytest.importorskip("transformers.modeling_utils")
pytest.importorskip("transformers.core_model_loading")

STATES = torch.arange(24.0).reshape(2, 3, 4)


@pytest.mark.parametrize(
    "kept",
    [
        0,
        1,
        2,
        torch.tensor([0, 2]),
        torch.tensor([[1], [2]]),
        torch.tensor([[True, False, True], [False, True, True]]),
    ],
    ids=str,
)
def test_the_states_whose_logits_are_wanted(kept):
    made = small_names.slice_logits_to_keep(STATES, kept)
    assert torch.equal(made, modeling_utils.slice_logits_to_keep(STATES, kept))


def test_versions_and_devices_are_as_the_library_tells_them():
    from transformers.utils import import_utils

    for version in ("1.9", "2.0", "2.13", "2.13.0", "99"):
        assert small_names.is_torch_less_or_equal(
            version, accept_dev=True
        ) == import_utils.is_torch_less_or_equal(version, accept_dev=True)
    expected = modeling_utils.get_torch_context_manager_or_global_device()
    assert small_names.get_torch_context_manager_or_global_device() == expected
    with torch.device("meta"):
        assert small_names.get_torch_context_manager_or_global_device() == torch.device("meta")
    assert small_names.is_grouped_mm_available() == import_utils.is_grouped_mm_available()


def test_a_check_raises_unless_it_holds():
    small_names.torch_compilable_check(torch.tensor([True, True]), "never")
    with pytest.raises(ValueError, match="said"):
        small_names.torch_compilable_check(torch.tensor([True, False]), lambda: "said")
    with pytest.raises(TypeError, match="so"):
        small_names.torch_compilable_check(False, "so", TypeError)


def test_arguments_of_a_kernel_alone_are_left_out_and_packed_rows_refused():
    @small_names.use_kernel_func_from_hub_with_fallback("scan", "package")
    def scan(x, scale=1):
        return x * scale

    assert scan(2, scale=3, initial_state=None) == 6
    with pytest.raises(ValueError, match="scan can't keep packed sequences apart"):
        scan(2, cu_seqlens=torch.tensor([0, 1]))


def test_decorators_that_do_nothing_do_so_with_and_without_parentheses():
    def function():
        return 1

    assert small_names.unchanged(function) is function
    assert small_names.unchanged("a name", backends=("torch",))(function) is function


def test_masks_index_tensors_in_torchs_context():
    table = torch.tensor([4, 5, 6])
    with small_names.TransformGetItemToIndex():
        made = torch.vmap(lambda place: table[place])(torch.tensor([2, 0]))
    assert made.tolist() == [6, 4]
    assert small_names.is_tracing() is False
    assert small_names.is_torchdynamo_exporting() is False
