"""Which crash points are there, and which row of the death table speaks of each?

Read from the sources themselves, `_core/crash.hpp` and `_core/FORMAT.md`, so that a point or a row added
there is in the enumeration without anybody remembering it here. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Point", "crash_points", "death_rows", "used_points"]

CORE = Path(__file__).resolve().parents[2] / "pegashm" / "_core"
POINT = re.compile(r'^\s*point\((\d+), (\w+), (\d+), "([^"]*)"\)', re.MULTILINE)
USE = re.compile(r"crash_point\(CrashPoint::(\w+)\)")
ROW = re.compile(r"^\| (\d+) \|", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Point:
    """One place to die at: what has just been stored, and the row that says what it costs."""

    number: int
    name: str
    row: int
    text: str

    def __str__(self) -> str:
        return f"{self.number} {self.name}"


def crash_points() -> dict[int, Point]:
    """All points by their number, in the order of their rows."""
    found = POINT.findall((CORE / "crash.hpp").read_text(encoding="utf-8"))
    points = [Point(int(number), name, int(row), text) for number, name, row, text in found]
    assert len(points) == len({point.number for point in points}), "a number is used twice"
    return {point.number: point for point in sorted(points, key=lambda point: point.number)}


def used_points() -> set[str]:
    """Names of the points that some header passes."""
    return {
        name
        for file in CORE.glob("*.hpp")
        for name in USE.findall(file.read_text(encoding="utf-8"))
    }


def death_rows() -> list[int]:
    """Numbers of the rows of FORMAT.md, "Who dies where"."""
    text = (CORE / "FORMAT.md").read_text(encoding="utf-8")
    section = text.split("\n## Who dies where\n", 1)[1].split("\n#", 1)[0]
    return [int(number) for number in ROW.findall(section)]
