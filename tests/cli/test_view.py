import pytest

from shardload._system.process_memory import Memory
from shardload.cli import output, view
from shardload.loading.report import MemoryUse, Report, ShardRow


@pytest.fixture
def report():
    rows = [
        ShardRow(f"pytorch_model-0000{number}-of-00002.bin", 3, 2 * 10**9, seconds, 150 * 10**6, 90 * 10**6)
        for number, seconds in ((1, 0.5), (2, 1e-5))
    ]
    held = Memory(100 * 10**6, 90 * 10**6)
    return Report(
        "here",
        shards=rows,
        loaded=6,
        nbytes=4 * 10**9,
        dtypes={"float16": 6},
        memory=MemoryUse(held, held, held),
    )


def test_a_row_a_shard_with_rate_and_memory(report):
    rows = [line.split() for line in view.shard_lines(report)]
    assert rows[1] == "pytorch_model-00001-of-00002.bin 3 2.00 GB 0.5000 4.0 +50.0 MB 0".split()
    assert rows[2][4:6] == ["0.0000", ">100"]  # mapped: nothing was moved
    assert rows[3] == "all: 6 float16 6 4.00 GB 0.5000 8.0".split()


@pytest.mark.parametrize("columns", [60, 70, 80, 90, 120])
def test_a_narrow_terminal_sees_the_end_of_the_names(report, monkeypatch, columns):
    monkeypatch.setattr(output, "width", lambda: columns)
    names = [line.split()[0] for line in view.shard_lines(report)[1:3]]
    assert len({*names}) == 2
    if columns < 75:  # what is left of the names must differ, so there is no room to gain
        assert names[0].startswith("pytorch_model")
    elif columns < 96:
        assert names[0].startswith("…")
        assert names[0].endswith("00001-of-00002.bin")
        assert max(map(len, view.shard_lines(report))) <= columns
    else:
        assert names[0] == "pytorch_model-00001-of-00002.bin"


def test_a_report_without_shards_or_memory_is_shown(report):
    assert view.report_lines(Report("here", class_name="Tiny")) == ["here: Tiny"]
    report.class_from = "own\x1bcode"
    lines = view.report_lines(report)
    assert "  class  own\\x1bcode" in lines
