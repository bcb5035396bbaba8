"""Is docs/performance.md made of results, and of nothing else?

On results made here: figures, tables, sections of benches that were not run, and what a wrong name says. On the real template:
every figure it names is in the newest results.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.page import RESULTS, TEMPLATE, Page

RESULT: dict[str, Any] = {
    "bench": "toy",
    "question": "How fast is a toy?",
    "extent": "full",
    "command": "python -m bench.toy",
    "at": "2026-01-02T03:04:05+00:00",
    "seconds": 7.4,
    "machine": {"load": 0.1, "load_after": 0.5},
    "notes": ["a note"],
    "not_shown": ["a real one"],
    "speed": {"best": 2.5, "each": [1, 2]},
    "tables": [
        {"title": "toys", "columns": ["toy", "m/s"], "rows": [["car", "2.5"], ["  top", "1"]]}
    ],
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for date, best in (("2026-01-01", 9.0), ("2026-01-02", 2.5)):
        result = {**RESULT, "speed": {**RESULT["speed"], "best": best}}
        (tmp_path / f"toy-{date}.json").write_text(json.dumps(result), encoding="utf-8")
    (tmp_path / "note-2026-01-02.json").write_text("{}", encoding="utf-8")  # of no bench
    return tmp_path


def filled(template: str, results: Path) -> str:
    return Page(template, results).text().split("\n\n", 1)[1]


def test_figures_come_from_the_newest_results(results: Path) -> None:
    assert "2.50 and 2" == filled("{{toy.speed.best|.2f}} and {{toy.speed.each.1}}", results)


def test_tables_keep_their_columns_and_notes(results: Path) -> None:
    text = filled("{{tables toy}}", results)

    assert "*toys*" in text
    assert "| toy | m/s |\n|---|---:|\n| car | 2.5 |\n| top | 1 |" in text
    assert "- a note" in text
    assert "- a note" not in filled("{{tables toy 0}}", results)


def test_a_section_stands_only_when_its_bench_was_run(results: Path) -> None:
    template = "{{if toy}}\nyes\n{{end}}\n{{if absent}}\nno {{absent.x}}\n{{end}}\nend"

    assert "yes\nend" == filled(template, results)
    assert (
        "end"
        == filled("{{if toy.speed.worst}}\n{{toy.speed.worst}}\n{{end}}\nend", results).strip()
    )
    nested = "{{if toy}}\na\n{{if absent}}\nb\n{{end}}\nc\n{{end}}\n"
    assert "a\nc\n" == filled(nested, results)
    assert "2.5" in filled("{{if toy.speed.best}}\n{{toy.speed.best}}\n{{end}}\n", results)


def test_what_the_page_does_not_name_stands_among_the_others(results: Path) -> None:
    assert "How fast is a toy?" in filled("{{others}}", results)
    assert "How fast is a toy?" not in filled("{{run toy}}\n{{others}}", results)
    assert "results/toy-2026-01-02" in filled("{{run toy}}", results)
    assert "- a real one" == filled("{{not shown toy}}", results)


@pytest.mark.parametrize("word", ["{{toy.speed.worst}}", "{{absent.speed}}"])
def test_a_name_that_is_nowhere_is_an_error(word: str, results: Path) -> None:
    with pytest.raises(SystemExit, match="the page names"):
        filled(word, results)


def test_the_real_page_finds_all_it_names() -> None:
    Page(TEMPLATE.read_text(encoding="utf-8"), RESULTS).text()
