"""Does `pegashm drop` evict what was meant, and nothing that is in use?"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from pegashm import _native
from pegashm.fsck import check_name

from tests.admin.scenes import attach, hash_of, key_of, run, said, store


def test_a_namespace_and_not_the_other(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    with attach(name, "a") as one, attach(name, "b") as two:
        store(one, range(8))
        store(two, range(8))
        report = said("drop", "--name", name, "--namespace", "model a", "--yes")
        assert (8, 8, 0, 8 * 4096) == tuple(
            report[key] for key in ("found", "evicted", "pinned", "evicted_bytes")
        )
        assert not (one.find([key_of(n) for n in range(8)])[1] == _native.OK).any()
        assert (two.find([key_of(n) for n in range(8)])[1] == _native.OK).all()
        store(one, range(8))  # nothing keeps it out
    assert 0 == check_name(name).exit_status


def test_a_key_in_all_groups_or_one(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    with attach(name) as cache:
        for group in range(3):
            store(cache, range(4), group)
        key = hash_of(2).hex()
        report = said("drop", "--name", name, "--key", key, "--group", "1", "--yes")
        assert (1, 1) == (report["found"], report["evicted"])
        report = said("drop", "--name", name, "--key", key_of(2, 2).hex(), "--yes")
        assert (1, 1) == (report["found"], report["evicted"])
        report = said("drop", "--name", name, "--key", key, "--yes")
        assert (1, 1) == (report["found"], report["evicted"])
        assert 0 == said("drop", "--name", name, "--key", key, "--yes")["found"]


def test_what_is_pinned_or_stored_stays(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    with attach(name) as cache:
        store(cache, range(8))
        held, _ = cache.find([key_of(n) for n in range(3)], pin=True)
        cache.claim([key_of(30)], 4096)
        report = said("drop", "--name", name, "--all", "--yes")
        assert (5, 3, 1, 1) == tuple(
            report[key] for key in ("evicted", "pinned", "stored", "exit_status")
        )
        status, text = run("drop", "--name", name, "--all", "--yes")
        assert (1, True) == (status, "3 are pinned and stayed" in text)
        release = threading.Timer(0.3, lambda: cache.unpin(held))
        release.start()
        report = said("drop", "--name", name, "--key", hash_of(1).hex(), "--wait", "30", "--yes")
        release.join()
        assert (1, 0, 0) == tuple(report[key] for key in ("evicted", "pinned", "exit_status"))


def test_only_counts_without_yes(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    with attach(name) as cache:
        store(cache, range(4))
        report = said("drop", "--name", name, "--all")
        assert (4, 0, False, 1) == tuple(
            report[key] for key in ("found", "evicted", "done", "exit_status")
        )
        assert (cache.find([key_of(n) for n in range(4)])[1] == _native.OK).all()
        assert "add --yes" in run("drop", "--name", name, "--all")[1]


def test_beside_an_engine_at_work(arena_name: Callable[..., str]) -> None:
    """An engine that stores and reads all the time while everything is dropped again and again sees misses, never an error."""
    name = arena_name()
    stop = threading.Event()
    wrong: list[str] = []

    def engine() -> None:
        keys = [key_of(n) for n in range(16)]
        with attach(name, "b") as cache:
            while not stop.is_set():
                handles, outcomes = cache.claim(keys, 4096)
                cache.publish(handles[handles != 0])
                found, outcomes = cache.find(keys, pin=True)
                offsets, _ = cache.locate(found)
                pinned = found[outcomes == _native.OK]
                if len(pinned) and offsets[outcomes == _native.OK].size != len(pinned):
                    wrong.append("a pinned block has no place")
                cache.unpin(found)

    thread = threading.Thread(target=engine)
    thread.start()
    try:
        dropped = 0
        deadline = time.monotonic() + 30
        while dropped < 100 and time.monotonic() < deadline:
            dropped += said("drop", "--name", name, "--all", "--yes")["evicted"]
    finally:
        stop.set()
        thread.join()
    assert [] == wrong
    assert dropped >= 100
    assert 0 == check_name(name).exit_status


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give --namespace"),
        (("--all", "--namespace", "a"), "give --namespace"),
        (("--namespace", "zebra"), "no namespace is called"),
        (("--namespace", "model"), "may be any of"),
        (("--key", "xyz"), "is no key"),
        (("--key", "00" * 33), "is no key"),
    ],
)
def test_wrong_usage(
    arena_name: Callable[..., str], arguments: tuple[str, ...], words: str
) -> None:
    name = arena_name()
    with attach(name, "a"), attach(name, "b"):
        status, text = run("drop", "--name", name, *arguments, "--yes")
    assert (2, True) == (status, words in text), text


def test_namespaces_by_id_fingerprint_and_part_of_a_label(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    with attach(name, "a") as cache, attach(name, "b"):
        store(cache, range(2))
        for spelling in (
            str(cache.namespace_id),
            hex(cache.namespace_id),
            "61" * 4,
            "el a",
            "model a",
        ):
            assert 2 == said("drop", "--name", name, "--namespace", spelling)["found"], spelling
