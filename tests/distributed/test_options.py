"""Hooks, extra state, a spill file and a limit of memory, over ranks that hold parts."""

from __future__ import annotations

import pytest
import torch

from shardload import save
from tests.distributed.nets import NETS
from tests.distributed.options import HOWS, KINDS, Extra
from tests.distributed.spawn import run_ranks


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    folder = tmp_path_factory.mktemp("options")
    torch.manual_seed(2)
    for name in ("spill", "limit"):
        save(KINDS[name](), folder / name)
    (folder / "hooks").mkdir()
    state = NETS["Uneven"]().state_dict()
    state = {key.replace("layers.1.up.", "layers.1.old_up."): value for key, value in state.items()}
    torch.save(state, folder / "hooks" / "pytorch_model.bin")
    (folder / "extra").mkdir()
    model = Extra()
    model.steps = 7
    torch.save(model.state_dict(), folder / "extra" / "pytorch_model.bin")
    save(NETS["Uneven"](), folder / "padded")
    (folder / "begun").mkdir()
    state = {**NETS["Uneven"]().state_dict(), "begun.some": torch.ones(2, 4)}
    torch.save(state, folder / "begun" / "pytorch_model.bin")
    ranks = run_ranks("tests.distributed.options", 2, ",".join(KINDS), folder, timeout=240)
    assert [rank.code for rank in ranks] == [0, 0], "\n".join(rank.said[-3000:] for rank in ranks)
    return {
        (case, how): [
            line for rank in ranks for line in rank.lines if (line["case"], line["how"]) == (case, how)
        ]
        for case in KINDS
        for how in HOWS
    }


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("case", KINDS)
def test_every_part_is_that_of_one_process(ended, case, how):
    lines = ended[case, how]
    assert len(lines) == 2
    assert all(line["ok"] for line in lines), lines


@pytest.mark.parametrize("how", HOWS)
def test_hooks_run_as_often_as_in_one_process(ended, how):
    assert all(line["calls"][0] == line["calls"][1] for line in ended["hooks", how])


@pytest.mark.parametrize("how", HOWS)
def test_every_rank_has_the_extra_state(ended, how):
    assert [line["steps"] for line in ended["extra", how]] == [7, 7]


def test_each_rank_spills_its_part(ended):
    half = 2 * 1024 * 1024 // 2  # bytes of bfloat16
    assert [line["spilled"] for line in ended["spill", "fsdp"]] == [half, half]
    assert [line["spilled"] for line in ended["spill", "tp"]] == [2 * half, 2 * half]  # no plan names it


@pytest.mark.parametrize("how", HOWS)
def test_the_limit_of_one_rank_refuses_all_and_names_it(ended, how):
    assert [(line["less"], line["rank"]) for line in ended["limit", how]] == [(1, 1), (1, 1)]


@pytest.mark.parametrize("how", HOWS)
def test_arguments_of_one_rank_alone_are_refused_on_all(ended, how):
    wanted = [["RanksError", 1], ["RanksError", 1], ["NotFoundError", 1], ["UsageError", 1]]
    assert [line["refused"] for line in ended["limit", how]] == [wanted, wanted]
