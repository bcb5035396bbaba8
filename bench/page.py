"""How does docs/performance.md come about? `python -m bench.page`: performance.template.md, filled from the newest results.

No figure is typed by hand: tables are those that the benches printed, figures in sentences name their place in results/NAME-DATE.json, and plots
are drawn anew into docs/figures. The template's words:

    {{lookup.cold_hits.times_limit|.1f}}   a figure, formatted as Python does
    {{machine NAME}}  {{run NAME}}         the machine in a line; when, how long, at what load, and where the files are
    {{tables NAME}}  {{tables NAME 0 2}}   all tables of a bench, or those with these numbers
    {{not shown NAME}}  {{plot NAME}}      what it does not show, as a list; a plot of plots.py
    {{others}}                             tables of all benches that the page has not named
    {{if NAME.PLACE}} ... {{end}}          only when there are results of that bench, and a figure at that place of them

`--check` writes nothing and exits 1 when the page is not what it would be.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, final

from bench import harness

__all__ = ["Page", "main"]

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
TEMPLATE = Path(__file__).with_name("performance.template.md")
PAGE = ROOT / "docs" / "performance.md"
FIGURES = ROOT / "docs" / "figures"
HEAD = "<!-- Made by `python -m bench.page` from bench/performance.template.md and results/. Edit those. -->\n\n"
DATED = re.compile(r"(.+)-(\d{4}-\d{2}-\d{2})\.json")
WORD = re.compile(r"\{\{(.+?)\}\}")
SECTION = re.compile(
    r"\{\{if ([^}]+)\}\}\n((?:(?!\{\{if ).)*?)\{\{end\}\}\n", re.DOTALL
)  # the innermost


@final
class Page:
    """The template and the results that fill it."""

    def __init__(self, template: str, results: Path) -> None:
        self.template = template
        self.folder = results
        self.plots: list[str] = []

    @cached_property
    def results(self) -> Mapping[str, Mapping[str, Any]]:
        """The newest result of each bench, by name; `file` added."""
        newest: dict[str, dict[str, Any]] = {}
        for path in sorted(self.folder.glob("*.json")):
            if found := DATED.fullmatch(path.name):
                result = json.loads(path.read_text(encoding="utf-8"))
                if "bench" in result:
                    newest[found[1]] = {**result, "file": path.stem}
        return newest

    def text(self) -> str:
        """All of the page."""
        kept, before = self.template, ""
        while kept != before:
            kept, before = SECTION.sub(self._section, kept), kept
        return HEAD + WORD.sub(lambda found: self._fill(found[1].strip(), kept), kept)

    def _section(self, found: re.Match[str]) -> str:
        return found[2] if self._has(found[1].strip()) else ""

    def _has(self, path: str) -> bool:
        found: Any = self.results
        for step in path.split("."):
            if not isinstance(found, Mapping) or step not in found:
                return False
            found = found[step]
        return True

    def _fill(self, word: str, kept: str) -> str:
        command, _, rest = word.partition(" ")
        if command == "not":
            return "\n".join(f"- {line}" for line in self._of(rest.split()[1]).get("not_shown", ()))
        if command == "machine":
            return harness.sentence(self._of(rest)["machine"]).rpartition(", load ")[0]
        if command == "run":
            return self._run(rest)
        if command == "tables":
            name, *numbers = rest.split()
            return self._tables(name, [int(number) for number in numbers])
        if command == "plot":
            self.plots.append(rest)
            return f"![{rest}](figures/{rest}.png)"
        if command == "others":
            return self._others(kept)
        return self._figure(word)

    def _of(self, name: str) -> Mapping[str, Any]:
        if name not in self.results:
            raise SystemExit(
                f"the page names bench {name}, and results/ has none of it. Type: python -m bench.record {name}"
            )
        return self.results[name]

    def _run(self, name: str) -> str:
        result = self._of(name)
        machine = result["machine"]
        extent = "" if result["extent"] == "full" else f" ({result['extent']} only)"
        return (
            f"`{result['command']}`{extent}, {result['at'][:10]}, {result['seconds']:.0f} s, "
            f"load {machine['load']} before and {machine['load_after']} after: "
            f"[results/{result['file']}](../results/{result['file']}.md)"
        )

    def _tables(self, name: str, numbers: Sequence[int]) -> str:
        result = self._of(name)
        tables = result.get("tables")
        if tables is None:  # of a time before tables were kept
            return f"[as printed](../results/{result['file']}.md)"
        chosen = [tables[number] for number in numbers] if numbers else tables
        parts = [markdown(table) for table in chosen]
        notes = [f"- {note}" for note in result["notes"]] if not numbers else []
        return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])])

    def _others(self, kept: str) -> str:
        named = {word for found in WORD.findall(kept) for word in re.split(r"[ .|]", found)}
        parts = []
        for name, result in self.results.items():
            if name not in named:
                parts.append(
                    f"### {result.get('question', name)}\n\n{self._run(name)}\n\n{self._tables(name, [])}"
                )
        return "\n\n".join(parts)

    def _figure(self, word: str) -> str:
        path, _, how = word.partition("|")
        name, *steps = path.split(".")
        found: Any = self._of(name)
        for step in steps:
            try:
                found = found[int(step) if isinstance(found, list) else step]
            except (KeyError, IndexError):
                raise SystemExit(
                    f"the page names {path}, and results/{self._of(name)['file']}.json has no {step}"
                ) from None
        return format(found, how)


def markdown(table: Mapping[str, Any]) -> str:
    """A table of a bench, as Markdown."""
    head = "| " + " | ".join(table["columns"]) + " |"
    line = "|---" + "|---:" * (len(table["columns"]) - 1) + "|"
    rows = ["| " + " | ".join(cell.strip() or " " for cell in row) + " |" for row in table["rows"]]
    return "\n".join([f"*{table['title']}*", "", head, line, *rows])


def main(arguments: Sequence[str]) -> int:
    page = Page(TEMPLATE.read_text(encoding="utf-8"), RESULTS)
    text = page.text()
    if "--check" in arguments:
        same = PAGE.exists() and PAGE.read_text(encoding="utf-8") == text
        print(
            "docs/performance.md is up to date"
            if same
            else "docs/performance.md is not: python -m bench.page"
        )
        return 0 if same else 1
    from bench.plots import PLOTS, draw

    FIGURES.mkdir(exist_ok=True)
    for name in page.plots:
        draw(name, page.results[PLOTS[name][0]], FIGURES / f"{name}.png")
    PAGE.write_text(text, encoding="utf-8")
    harness.progress(f"wrote {PAGE.relative_to(ROOT)} and {len(page.plots)} plots")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
