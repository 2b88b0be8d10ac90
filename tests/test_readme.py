"""What README.md shows is what is printed: its first program, and every output that it quotes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def block_after(text: str, language: str = "") -> str:
    """The next code block of a language after a line of the page."""
    assert README.count(text) == 1, text
    found = re.search(rf"^```{language}\n(.*?)^```", README.split(text, 1)[1], re.MULTILINE | re.DOTALL)
    return found[1]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def printed(cache: Path, *command: str) -> str:
    environment = {
        **os.environ,
        "SHARDLOAD_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *command],
        capture_output=True,
        text=True,
        env=environment,
        cwd=cache,
        timeout=300,
        check=False,
    )
    assert not done.stderr.startswith("Traceback"), done.stderr
    return done.stdout


def without_measurements(text: str) -> str:
    """Seconds and measured memory masked: they differ from run to run."""
    text = re.sub(r"[0-9.]+ s\b", "# s", text)
    return re.sub(r"-?[0-9.]+ [kM]?B (added|\(peak|may)|peak -?[0-9.]+ [kM]?B", "#", text)


def test_the_first_program_prints_its_report(cache):
    program = block_after("## First load", "python")
    assert len(program.strip().splitlines()) <= 6
    shown, got = block_after("prints where everything came from"), printed(cache, "-c", program)
    got = got.replace(str(cache), "…")
    assert without_measurements(got) == without_measurements(shown)


def test_the_names_that_the_demo_asks_for(cache):
    printed(cache, "-c", "from shardload.cli.demo_repo import write_demo_repo; write_demo_repo()")
    got = printed(cache, "-m", "shardload", "inspect", "--code", "demo-chatglm2-small")
    assert got.split("\n\n", 1)[1].strip() == block_after("`inspect --code` prints:").strip()


def test_the_mismatch(cache):
    got = printed(cache, str(ROOT / "examples" / "read_a_mismatch.py"))
    got = re.sub(r"where: .*/damaged", "where: ./damaged", got)
    assert got.rsplit("\n", 2)[0].strip() == block_after("(`examples/read_a_mismatch.py`):").strip()


def test_what_the_doctor_says(cache):
    got = printed(cache, str(ROOT / "scripts" / "doctor_examples.py"))
    assert got.strip() == block_after("(`scripts/doctor_examples.py`):").strip()


def test_the_plan_of_a_load_that_fuses_experts(cache):
    got = printed(cache, str(ROOT / "scripts" / "doctor_examples.py"), "--plan")
    room = re.compile(r"; .* may still be taken|: it does not fit, .*")
    assert room.sub("", got).strip() == room.sub("", block_after("from headers alone (0.4 s")).strip()


def test_every_page_and_file_that_it_names_is_there():
    linked = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", README)
    named = re.findall(r"`((?:tests|scripts|examples|docs)/[\w/.]+\.\w+)`", README)
    assert linked
    assert [path for path in {*linked, *named} if not (ROOT / path).exists()] == []
