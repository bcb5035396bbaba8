"""Do `pegashm clients` and `pegashm namespaces` say what is there?"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from pegashm.keys import Namespace

from tests.admin.scenes import attach, key_of, run, said, store


def test_who_is_there_and_holds_what(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    with attach(name, "a") as cache, attach(name, "b"):
        store(cache, range(8))
        cache.find([key_of(n) for n in range(3)], pin=True)
        cache.claim([key_of(20)], 4096)
        rows = {row["label"]: row for row in said("clients", "--name", name)["clients"]}
        assert {"engine a", "engine b"} == set(rows)
        assert (3, 1, True) == tuple(rows["engine a"][key] for key in ("pins", "claims", "alive"))
        assert (os.getpid(), 0) == (rows["engine b"]["pid"], rows["engine b"]["pins"])
        status, text = run("clients", "--name", name)
        assert (0, True) == (status, "engine a" in text)
    assert [] == said("clients", "--name", name)["clients"]


def test_the_dead_are_said_to_be_dead(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    child = os.fork()
    if child == 0:
        try:
            cache = attach(name, "a")
            store(cache, range(2))
            cache.find([key_of(0)], pin=True)
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    os.waitpid(child, 0)
    report = said("clients", "--name", name)
    assert 1 == report["exit_status"]
    assert [(False, 1)] == [(row["alive"], row["pins"]) for row in report["clients"]]
    assert "dead" in run("clients", "--name", name)[1]


def test_namespaces(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    with (
        attach(name, "a", reserved_bytes=8192) as one,
        attach(name, "b", maximum_bytes=65536) as two,
    ):
        store(one, range(5))
        store(two, range(3))
        rows = {row["label"]: row for row in said("namespaces", "--name", name)["namespaces"]}
        assert (5, 1, 8192, 0) == tuple(
            rows["model a"][key] for key in ("blocks", "clients", "reserved_bytes", "maximum_bytes")
        )
        assert (3, 1, 0, 65536) == tuple(
            rows["model b"][key] for key in ("blocks", "clients", "reserved_bytes", "maximum_bytes")
        )
        two.enter(Namespace(fingerprint=b"c" * 32, label="model c"))
        rows = {row["label"]: row for row in said("namespaces", "--name", name)["namespaces"]}
        assert (0, 1) == (rows["model b"]["clients"], rows["model c"]["clients"])
        assert "model b" in run("namespaces", "--name", name)[1]


def test_no_such_arena() -> None:
    for command in ("clients", "namespaces", "quota"):
        report = said(command, "--name", "test-none")
        assert 2 == report["exit_status"]
        assert "there is no arena" in report["error"]
        status, text = run(command, "--name", "test-none")
        assert (2, True) == (status, "pegashm serve" in text)
