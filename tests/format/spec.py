"""What does FORMAT.md say? Its offset tables, parsed, and a reader that knows nothing else.

`Stranger` decodes a control region from its bytes with these tables alone: no struct of the core, no
binding. Where it and the native module agree, the document is true. Called by the tests of this folder.
"""

from __future__ import annotations

import importlib.resources
import re
from dataclasses import dataclass

__all__ = ["Field", "Stranger", "fields_of", "read_spec", "sizes_of"]

ROW = re.compile(r"^\| *(\d+) \| *(\d+) \| *(\w+) \|")
ARENA_BYTES = 192


@dataclass(frozen=True, slots=True)
class Field:
    """One row of an offset table."""

    offset: int
    size: int
    name: str

    def number(self, data: bytes, start: int = 0) -> int:
        return int.from_bytes(self.raw(data, start), "little")

    def raw(self, data: bytes, start: int = 0) -> bytes:
        return data[start + self.offset : start + self.offset + self.size]


def read_spec() -> str:
    """The document as it is installed."""
    return (importlib.resources.files("pegashm") / "_core" / "FORMAT.md").read_text()


def section(heading: str) -> str:
    """The text under a heading that begins with `heading`."""
    for part in read_spec().split("\n## ")[1:]:
        if part.startswith(heading):
            return part
    raise LookupError(f"FORMAT.md has no section {heading!r}")


def fields_of(heading: str) -> list[Field]:
    """The rows of the offset table in a section, reserved ones included."""
    rows = (ROW.match(line) for line in section(heading).splitlines())
    return [Field(int(row[1]), int(row[2]), row[3]) for row in rows if row]


def sizes_of(heading: str) -> list[int]:
    """The numbers in a section's heading: "Namespaces (256 of 256 bytes)" gives [256, 256]."""
    return [int(number) for number in re.findall(r"\d+", section(heading).splitlines()[0])]


class Stranger:
    """Reads a control region's bytes with FORMAT.md in hand."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.header = {field.name: field for field in fields_of("Header")}

    def number(self, name: str) -> int:
        return self.header[name].number(self.data)

    def row(self, table: str, heading: str, index: int) -> dict[str, bytes]:
        """Entry `index` of a table, as raw bytes by field name."""
        stride = sizes_of(heading)[-1]
        start = self.number(f"{table}_offset") + index * stride
        return {field.name: field.raw(self.data, start) for field in fields_of(heading)}

    def arena(self, index: int) -> tuple[int, int, str]:
        """(bytes, numa_node, path) of one payload arena."""
        start = self.header["arenas"].offset + index * ARENA_BYTES
        entry = self.data[start : start + ARENA_BYTES]
        path_bytes = int.from_bytes(entry[12:16], "little")
        return (
            int.from_bytes(entry[:8], "little"),
            int.from_bytes(entry[8:12], "little", signed=True),
            entry[16 : 16 + path_bytes].decode(),
        )
