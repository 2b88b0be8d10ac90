"""docs/architecture.md against the package: every room on its floor, the road's files, the seams, the page's size."""

from __future__ import annotations

import re
from pathlib import Path

from tests.test_floors import FLOOR_OF, PACKAGE

PAGE = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text()


def section(title: str) -> str:
    return re.split(r"^## ", PAGE.split(f"\n## {title}", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def test_it_fits_two_screens():
    lines = PAGE.splitlines()
    assert len(lines) <= 110
    assert max(map(len, lines)) <= 120


def test_every_room_stands_on_its_floor():
    rows = re.findall(r"^ +(\d+)   (\S+) +(\S.+)$", section("Rooms"), re.MULTILINE)
    assert {re.sub(r"(/|\.py)$", "", room): int(floor) for floor, room, _ in rows} == FLOOR_OF
    assert [int(floor) for floor, _, _ in rows] == sorted((int(row[0]) for row in rows), reverse=True)
    for _, room, _ in rows:
        assert (PACKAGE / room).is_dir() if room.endswith("/") else (PACKAGE / room).is_file(), room


def test_the_road_has_eight_files():
    road = re.findall(r"^(\d)\. `(\S+\.py)`", section("The road of one weight"), re.MULTILINE)
    assert [int(number) for number, _ in road] == list(range(1, 9))
    assert all((PACKAGE / file).is_file() for _, file in road)


def test_every_file_that_is_named_exists():
    folder = ""
    for name in re.findall(r"`([\w/]+(?:\.py|/))`", PAGE):
        parent, _, leaf = name.rpartition("/")
        folder = parent if parent and leaf else folder
        there = [PACKAGE / name, PACKAGE.parent / name, PACKAGE / folder / name]
        assert any(path.exists() for path in there), name
