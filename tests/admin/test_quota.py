"""Does `pegashm quota` set what the core then keeps to?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pegashm import _native
from pegashm.fsck import check_name
from pegashm.units import KIB

from tests.admin.scenes import attach, key_of, run, said, store


def _row(report: dict[str, Any], label: str) -> dict[str, Any]:
    return next(row for row in report["namespaces"] if row["label"] == label)


def test_a_maximum_holds_from_then_on(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    with attach(name, "a") as cache:
        store(cache, range(4))
        before = cache.region.namespaces()[0]["attached_at_ns"]
        report = said("quota", "--name", name, "--namespace", "model a", "--maximum", "32K")
        assert 32 * KIB == _row(report, "model a")["maximum_bytes"]
        store(cache, range(4, 20))
        assert 8 == cache.region.namespaces()[0]["blocks"]
        assert before == cache.region.namespaces()[0]["attached_at_ns"], "nobody has attached"
        said("quota", "--name", name, "--namespace", "model a", "--maximum", "0")
        store(cache, range(20, 30))
        assert 18 == cache.region.namespaces()[0]["blocks"]
    assert 0 == check_name(name).exit_status


def test_trim_takes_the_oldest(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    with attach(name, "a") as cache:
        store(cache, range(16))
        status, text = run("quota", "--name", name, "--namespace", "model a", "--maximum", "32K")
        assert (0, True) == (status, "--trim evicts" in text)
        pinned, _ = cache.find([key_of(0)], pin=True)
        report = said(
            "quota", "--name", name, "--namespace", "model a", "--maximum", "32K", "--trim"
        )
        assert (0, 32 * KIB) == (report["exit_status"], _row(report, "model a")["resident_bytes"])
        outcomes = cache.find([key_of(n) for n in range(16)])[1]
        assert {0, *range(9, 16)} == {n for n in range(16) if outcomes[n] == _native.OK}
        cache.unpin(pinned)
        held, _ = cache.find([key_of(n) for n in range(16)], pin=True)
        report = said(
            "quota", "--name", name, "--namespace", "model a", "--maximum", "4K", "--trim"
        )
        assert 1 == report["exit_status"]
        assert any("pinned" in note for note in report["notes"])
        cache.unpin(held)


def test_a_reserve_keeps_others_away(arena_name: Callable[..., str]) -> None:
    name = arena_name()  # 64 blocks of 4 KiB
    with attach(name, "a") as one, attach(name, "b") as two:
        store(one, range(10))
        assert (
            0
            == said("quota", "--name", name, "--namespace", "model a", "--reserved", "40K")[
                "exit_status"
            ]
        )
        store(two, range(100, 200))
        outcomes = one.find([key_of(n) for n in range(10)])[1]
        assert (outcomes == _native.OK).all()


def test_less_is_granted_than_there_is(arena_name: Callable[..., str]) -> None:
    name = arena_name()  # 256 KiB
    with attach(name, "a", reserved_bytes=200 * KIB), attach(name, "b"):
        report = said("quota", "--name", name, "--namespace", "model b", "--reserved", "128K")
        assert (1, 56 * KIB) == (report["exit_status"], _row(report, "model b")["reserved_bytes"])
        assert any("others have reserved the rest" in note for note in report["notes"])
        assert report["reserved_bytes"] == report["payload_bytes"] == 256 * KIB


def test_one_is_set_and_the_other_stays(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    with attach(name, "a", reserved_bytes=16 * KIB, maximum_bytes=64 * KIB):
        row = _row(
            said("quota", "--name", name, "--namespace", "model a", "--reserved", "32K"), "model a"
        )
        assert (32 * KIB, 64 * KIB) == (row["reserved_bytes"], row["maximum_bytes"])
        row = _row(
            said("quota", "--name", name, "--namespace", "model a", "--maximum", "1T"), "model a"
        )
        assert (32 * KIB, 256 * KIB) == (row["reserved_bytes"], row["maximum_bytes"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--reserved", "4K"), "need --namespace"),
        (("--namespace", "model a", "--reserved", "64K", "--maximum", "32K"), "above the maximum"),
        (("--namespace", "model a", "--trim"), "--trim goes with"),
        (("--namespace", "model a", "--maximum", "plenty"), "is not a size"),
    ],
)
def test_wrong_usage(
    arena_name: Callable[..., str], arguments: tuple[str, ...], words: str
) -> None:
    name = arena_name()
    with attach(name, "a"):
        status, text = run("quota", "--name", name, *arguments)
    assert (2, True) == (status, words in text), text


def test_shown(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    with attach(name, "a", reserved_bytes=16 * KIB), attach(name, "b"):
        status, text = run("quota", "--name", name)
        assert (0, True, True) == (status, "model b" in text, "no limit" in text)
        assert 1 == len(said("quota", "--name", name, "--namespace", "model b")["namespaces"])
