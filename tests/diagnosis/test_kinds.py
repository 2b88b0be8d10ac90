"""Each kind of finding is called by its code, and its twin is not; docs/doctor.md has the table."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from shardload.diagnosis import diagnose
from shardload.diagnosis.finding_text import finding_lines
from tests.diagnosis.kinds import KINDS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")


def said(side):
    found = diagnose(side.case())
    return [finding.code for finding in found], " ".join(
        f"{finding.cause} {finding.cure}" for finding in found
    )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_case_is_called_by_its_kind(kind):
    codes, text = said(kind.of)
    assert codes[0] == kind.of.code
    assert kind.of.says in text


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_its_twin_is_not(kind):
    codes, text = said(kind.twin)
    assert codes[:1] == ([kind.twin.code] if kind.twin.code else [])
    assert kind.twin.says in text
    if kind.twin.code != kind.of.code:
        assert kind.of.code not in codes
    else:
        assert kind.of.says not in text


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_what_is_printed_of_it_fits_a_screen(kind):
    assert len("\n".join(finding_lines(diagnose(kind.of.case()))).splitlines()) <= 36


def test_every_rule_of_the_page_has_a_case():
    told = {
        code for line in re.findall(r"^### (.+)$", PAGE, re.M) for code in re.findall(r"[EW]-[A-Z0-9]+", line)
    }
    own = {"E-DROPPED", "E-KEYS", "E-LORA"}  # these need a caller's map, a load, and an adapter with its base
    assert told - own <= {kind.of.code for kind in KINDS} | {kind.twin.code for kind in KINDS}


def test_the_table_of_the_page_is_what_the_script_prints():
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "doctor_kinds.py")],
        capture_output=True, text=True, check=True, cwd=ROOT, encoding="utf-8",
    )  # fmt: skip
    assert done.stdout.strip() in PAGE
