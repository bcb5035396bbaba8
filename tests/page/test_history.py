"""Does the ring of samples say what was put in, in as many points as asked for, however long it runs?"""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from pegashm.exporter.page.history import HISTORY_SECONDS, SAMPLE_SECONDS, SPANS, History

NAMES = ("memory", "missed")


def samples(history: History, numbers: range) -> None:
    """Sample n: n memory hits and 2 misses in 5 s, of 40 % and 50 %."""
    for number in numbers:
        values = {"memory": number, "missed": 2, "hit_rate": 0.4, "ceiling": 0.5, "ready_bytes": 7}
        history.add(1000 + SAMPLE_SECONDS * number, SAMPLE_SECONDS, values)


def test_nothing_yet() -> None:
    history = History(NAMES)
    for span in SPANS:
        answer = history.answer(span, 0, "")
        assert (0, []) == (answer["newest"], answer["columns"]["at"])
    assert {"memory": 0.0, "missed": 0.0, "seconds": 0.0} == history.recent(60)


def test_amounts_are_rates_and_levels_are_levels() -> None:
    history = History(NAMES)
    samples(history, range(3))
    columns = history.answer(900, 0, "")["columns"]
    assert [1000, 1005, 1010] == columns["at"]
    assert [0.0, 0.2, 0.4] == columns["memory"]
    assert [0.4] * 3 == columns["missed"]
    assert [0.4] * 3 == columns["hit_rate"]
    assert [7] * 3 == columns["ready_bytes"]
    assert {"memory": 3.0, "missed": 6.0, "seconds": 15.0} == history.recent(60)
    assert {"memory": 2.0, "missed": 2.0, "seconds": 5.0} == history.recent(5)


def test_only_what_is_new() -> None:
    history = History(NAMES)
    samples(history, range(10))
    first = history.answer(900, 0, history.incarnation)
    samples(history, range(10, 13))
    second = history.answer(900, first["newest"], history.incarnation)
    assert (10, 13) == (second["after"], second["newest"])
    assert [1050, 1055, 1060] == second["columns"]["at"]
    assert [] == history.answer(900, 13, history.incarnation)["columns"]["at"]
    for after, of in ((10, "another"), (99, history.incarnation), (-3, history.incarnation)):
        assert 0 == history.answer(900, after, of)["after"], "all of it"


def test_points_of_several_samples_are_whole() -> None:
    history = History(NAMES)
    samples(history, range(25))
    answer = history.answer(6 * 3600, 0, "")
    assert (12, 2) == (SPANS[6 * 3600], answer["newest"])
    assert [1055, 1115] == answer["columns"]["at"]
    assert [pytest.approx(sum(range(12)) / 60), pytest.approx(sum(range(12, 24)) / 60)] == answer[
        "columns"
    ]["memory"]


def test_gaps() -> None:
    """No reading, or nothing asked for: null, and the rates around it are right."""
    history = History(NAMES)
    history.add(1000, 0.0, None)
    history.add(1005, 5.0, {"memory": 10, "missed": 0, "hit_rate": None})
    columns = history.answer(900, 0, "")["columns"]
    assert [None, 2.0] == columns["memory"]
    assert [None, None] == columns["hit_rate"]
    assert [2.0] == history.answer(3600, 0, "")["columns"]["memory"], (
        "of the seconds that were read"
    )
    assert 5.0 == history.recent(60)["seconds"]
    json.dumps(columns, allow_nan=False)


@pytest.mark.parametrize("span", SPANS)
def test_bounded(span: int) -> None:
    """Longer than it remembers: as many points as the span has, the newest; and no more memory than at first."""
    history = History(NAMES)
    before = history.nbytes
    total = int(HISTORY_SECONDS / SAMPLE_SECONDS) * 2 + 7
    samples(history, range(total))
    answer = history.answer(span, 0, "")
    each = SPANS[span]
    at = answer["columns"]["at"]
    assert span / SAMPLE_SECONDS / each == len(at)
    assert 1000 + SAMPLE_SECONDS * (total // each * each - 1) == at[-1]
    assert {SAMPLE_SECONDS * each} == {b - a for a, b in pairwise(at)}
    assert before == history.nbytes
    assert before < 500_000
    assert len(json.dumps(answer)) < 60_000
