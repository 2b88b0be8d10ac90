"""The benchmark suite works: one small table from end to end, and nobody wins by loading nothing."""

from __future__ import annotations

import json
import mmap
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace
from xml.etree import ElementTree as ET

import pytest
import torch

if find_spec("transformers") is None or find_spec("numpy") is None:
    pytest.skip("the benchmarks run beside transformers", allow_module_level=True)

from benchmarks.__main__ import main
from benchmarks.checkpoints import write
from benchmarks.measure import ROOT, evict, probe, warm
from benchmarks.memory import memory
from benchmarks.models import ManyLinears
from benchmarks.plots import plots_of
from benchmarks.report import markdown_of
from benchmarks.tables import FULL, QUICK
from benchmarks.verify import expected_path, faults
from shardload._system.read_ahead import is_cold

RESULTS = ROOT / "benchmarks" / "results"


def test_a_table_from_end_to_end_and_a_wrong_model_is_refused(tmp_path, capsys):
    """The model of one of the rows is not what was said to be written: that row fails, the others stand."""
    cache, results = tmp_path / "cache", tmp_path / "results"
    write(QUICK["many"], "bin", cache / "many.bin")
    expected = json.loads(expected_path(cache / "many.bin").read_text())
    expected["layers.3.49.weight"] += 1
    expected_path(cache / "many.bin").write_text(json.dumps(expected))

    arguments = ["--quick", "--pairs", "1", "--only", "many", "--loaders", "ours", "assign"]
    assert main([*arguments, "--cache", str(cache), "--results", str(results)]) == 1

    data = json.loads((results / "bench.json").read_text())
    assert data["schema"] == 1
    assert data["machine"].keys() >= {"cpu", "cores", "ram_bytes", "kernel", "python"}
    assert data["versions"].keys() >= {
        "torch",
        "transformers",
        "accelerate",
        "safetensors",
        "shardload_commit",
    }
    assert data["checkpoints"]["many.safetensors"]["tensors"] == 200
    ours, wrong, assign = data["tables"][0]["rows"]
    for row in (ours, assign):
        (run,) = row["runs"]
        assert row["error"] is None
        assert 0 < run["load_s"] < run["ready_s"]
        assert run["ready_s"] == pytest.approx(run["import_s"] + run["load_s"])
        assert run["samples"] > 0
        assert row["median"]["anon_peak"] >= 0
        assert "load_average" in run
    assert wrong["runs"] == []
    assert "1 tensors, such as layers.3.49.weight" in wrong["error"]

    text = (results / "bench.md").read_text()
    assert text == markdown_of(data)
    assert text in capsys.readouterr().out
    assert "failed: not loaded as written" in text


def test_a_probe_measures_several_contestants_in_one_process(tmp_path, monkeypatch):
    pytest.importorskip("peft")
    from benchmarks import tables

    (attach,) = (table for table in tables.TABLES if table.name == "adapters-attach")
    few = replace(attach, rows=(tables.Probe("8 layers", ("attach", "8", "4")),))
    monkeypatch.setattr(tables, "TABLES", (few,))
    assert main(["--pairs", "1", "--only", "adapters", "--results", str(tmp_path)]) == 0
    data = json.loads((tmp_path / "adapters.json").read_text())
    (row,) = data["tables"][0]["rows"]
    assert row["median"].keys() >= {column.name for column in attach.columns}
    assert all(value > 0 for value in row["median"].values())
    assert "| 8 layers | " in (tmp_path / "adapters.md").read_text()
    assert data["versions"]["peft"]


def test_what_counts_as_loaded(tmp_path):
    folder = tmp_path / "many.safetensors"
    write(QUICK["fewer"], "safetensors", folder)
    make = lambda: ManyLinears(SimpleNamespace(**QUICK["fewer"].config))  # noqa: E731
    assert len(faults(make(), folder, "float32")) == 100  # the constructor's own values
    with torch.device("meta"):
        assert len(faults(make(), folder, "float32")) == 100

    from shardload import from_pretrained

    loaded = from_pretrained(folder, model_class=lambda _: make(), config={}, progress=False)
    assert faults(loaded, folder, "bfloat16") == []
    assert len(faults(loaded, folder, "float32")) == 100
    assert faults(loaded.float(), folder, "float32") == []
    loaded.layers[1][7].weight.data.zero_()
    assert faults(loaded, folder, "float32") == ["layers.1.7.weight"]


def test_memory_tells_anonymous_pages():
    before = memory()
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    block = mmap.mmap(-1, 50_000_000, flags=flags)  # not from the allocator's pool, which may have it already
    block.write(b"\1" * 50_000_000)
    assert 49e6 < memory()[0] - before[0] < 60e6
    del block


def test_the_full_checkpoints_are_as_the_tables_say():
    llama, chatglm, many = FULL["llama"], FULL["chatglm"], FULL["many"]
    assert len(llama.shapes) == 147
    assert llama.nbytes == pytest.approx(1.9e9, rel=0.01)
    assert chatglm.nbytes == pytest.approx(llama.nbytes, rel=0.0002)
    assert len(many.shapes) == 46_000


@pytest.mark.parametrize("name", ["bench", "full", "adapters", "ranks", "remote"])
def test_the_committed_table_is_made_from_the_committed_figures(name):
    if not (RESULTS / f"{name}.json").exists():
        pytest.skip("no run has been committed")
    data = json.loads((RESULTS / f"{name}.json").read_text())
    assert (RESULTS / f"{name}.md").read_text() == markdown_of(data)
    for plot, svg in plots_of(data).items():
        assert (RESULTS / plot).read_text() == svg


@pytest.mark.parametrize("page", ["README.md", "docs/scale.md"])
def test_the_table_of_ranks_stands_in_the_docs(page):
    _, *sections = (RESULTS / "ranks.md").read_text().split("\n## ")
    for section in sections:
        table = "\n".join(line for line in section.splitlines() if line.startswith("|"))
        assert table in (ROOT / page).read_text()


def test_a_scaling_table_has_a_plot_of_all_its_rows(tmp_path):
    arguments = ["--quick", "--pairs", "1", "--only", "scaling-shards", "--loaders", "ours"]
    assert main([*arguments, "--results", str(tmp_path)]) == 0
    data = json.loads((tmp_path / "bench.json").read_text())
    assert data["command"] == " ".join(["python -m benchmarks", *arguments])  # no folder of this machine
    svg = ET.parse(tmp_path / "scaling-shards.svg").getroot()
    circles = [node for node in svg.iter() if node.tag.endswith("circle")]
    assert len(circles) == 2 * len(data["tables"][0]["rows"]) == 6
    assert all(0 < float(node.get("cx")) < 400 for node in circles)
    assert all(0 < float(node.get("cy")) < 250 for node in circles)
    assert "scaling-shards.svg" in (tmp_path / "bench.md").read_text()


def test_an_evicted_file_is_not_in_the_page_cache(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(2**22))
    warm(str(tmp_path))
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        if is_cold(mapping):
            pytest.skip("this file system does not keep its pages, or can't tell")
        evict(str(tmp_path))
        assert is_cold(mapping)


def test_a_region_is_read_as_safetensors_reads_it(tmp_path):
    write(QUICK["llama"], "safetensors", tmp_path / "llama.safetensors")
    figures = probe(["partial", str(tmp_path / "llama.safetensors"), "columns"])
    assert figures["ours_s"] > 0
