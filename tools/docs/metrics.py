"""How do the tables of docs/metrics.md come about? From the definitions that the exporter exports by.

Text around them is written by hand; what stands between a pair of markers is made anew.

    python -m tools.docs.metrics            write the page's tables
    python -m tools.docs.metrics --check    write nothing; exit 1 when the page is not what it would be
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pegashm.exporter.definitions import DEFINITIONS, MISS_REASONS, Definition
from pegashm.exporter.judging import REASONS

__all__ = ["PAGE", "page"]

PAGE: Final = Path(__file__).parents[2] / "docs" / "metrics.md"


def page(text: str) -> str:
    """The page's text with its tables made anew."""
    for marker, table in (
        ("metrics", _metrics()),
        ("misses", _named("reason", "the block", MISS_REASONS)),
        ("health", _named("reason", "", REASONS)),
    ):
        pattern = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- end -->)", re.DOTALL)
        text, count = pattern.subn(lambda found: found[1] + table + found[2], text)  # noqa: B023 - at once
        if count != 1:
            raise SystemExit(f"{PAGE.name} should have `<!-- {marker} -->` and `<!-- end -->` once")
    return text


def _metrics() -> str:
    sections: dict[str, list[Definition]] = {}
    for definition in DEFINITIONS:
        sections.setdefault(definition.section, []).append(definition)
    parts = []
    for section, definitions in sections.items():
        rows = [
            f"| `{each.exposed}` | {each.kind} | {_labels(each)} | {each.unit} | {_cell(each.help)} |"
            for each in definitions
        ]
        head = "| metric | kind | labels | unit | |\n|---|---|---|---|---|\n"
        parts.append(f"\n### {section}\n\n{head}" + "\n".join(rows) + "\n")
    return "".join(parts) + "\n"


def _labels(definition: Definition) -> str:
    return ", ".join(f"`{label}`" for label in definition.labels)


def _named(what: str, meaning: str, named: Mapping[str, str]) -> str:
    rows = [f"| `{name}` | {_cell(text)} |" for name, text in named.items()]
    return f"\n| {what} | {meaning} |\n|---|---|\n" + "\n".join(rows) + "\n\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _run(words: list[str]) -> int:
    text = PAGE.read_text(encoding="utf-8")
    made = page(text)
    if words == ["--check"]:
        if made != text:
            print(f"{PAGE.name} is stale. Type: python -m tools.docs.metrics", file=sys.stderr)
        return int(made != text)
    PAGE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(_run(sys.argv[1:]))
