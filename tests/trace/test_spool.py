"""Does what engines leave arrive whole, whatever happens to writers, reader and file?"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pegashm.creation import purge
from pegashm.errors import ArenaBusyError
from pegashm.names import trace_path
from pegashm.trace import spool as spools
from pegashm.trace.spool import Asked, Spool, Tracer

FINGERPRINT = b"f" * 32


def _keys(*numbers: int) -> list[bytes]:
    return [number.to_bytes(16, "big") * 2 + bytes(4) for number in numbers]


def _saw(tracer: Tracer, *numbers: int) -> None:
    tracer.saw(_keys(*numbers), fingerprint=FINGERPRINT, tokens=16 * len(numbers), group=0)


def _at_once(tracer: Tracer) -> Tracer:
    tracer._look_at = 0.0
    return tracer


def test_off_without_a_recorder(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    tracer = Tracer(name, 4096)
    assert not tracer.on
    _saw(tracer, 1, 2)
    assert not os.path.exists(trace_path(name))


def test_what_one_engine_says_the_recorder_hears(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    with Spool(name) as spool:
        tracer = Tracer(name, 4096)
        before = time.time_ns()
        _saw(tracer, 1, 2, 3)
        _saw(tracer, 4)
        first, second = spool.take()
        assert (48, 4096, 0, FINGERPRINT, 0) == (
            first.tokens,
            first.block_bytes,
            first.group,
            first.fingerprint,
            first.lost,
        )
        assert [key[:16] for key in _keys(1, 2, 3)] == list(first.keys)
        assert before <= first.at_ns <= second.at_ns
        assert [] == list(spool.take())
        tracer.close()
    assert not os.path.exists(trace_path(name))
    assert not _at_once(tracer).on


def test_several_engines_at_once(arena_name: Callable[..., str]) -> None:
    """Processes that append at the same time: each request once, whole, in the order of its engine."""
    name = arena_name()
    with Spool(name) as spool:
        children = []
        for engine in range(4):
            child = os.fork()
            if child == 0:
                try:
                    tracer = Tracer(name, 4096)
                    for number in range(200):
                        _saw(tracer, *range(engine * 1000 + number, engine * 1000 + number + 300))
                finally:
                    os._exit(0)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)
        heard = list(spool.take())
    assert (800, 0) == (len(heard), spool.damaged_bytes)
    assert {300} == {len(asked.keys) for asked in heard}
    for engine in range(4):
        firsts = [int.from_bytes(asked.keys[0], "big") for asked in heard]
        own = [first for first in firsts if first // 1000 == engine]
        assert sorted(own) == own
        assert 200 == len(own)


def test_the_file_is_bounded_and_what_is_left_out_is_counted(
    arena_name: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spools, "SPOOL_BYTES", 64 << 10)
    name = arena_name()
    with Spool(name) as spool:
        tracer = Tracer(name, 4096)
        for _ in range(40):
            _saw(tracer, *range(200))  # 3.3 KB
        assert os.stat(trace_path(name)).st_blocks * 512 <= 64 << 10
        heard = list(spool.take())
        assert len(heard) < 40
        assert os.stat(trace_path(name)).st_blocks * 512 <= 4096, (
            "memory that was read is given back"
        )
        _saw(tracer, 1)
        (last,) = spool.take()
        assert 40 == len(heard) + last.lost
        tracer.close()


def test_a_record_cut_short_costs_itself_only(arena_name: Callable[..., str]) -> None:
    """As by a writer that was killed in the middle: at every length, and with other bytes in it."""
    name = arena_name()
    whole = Asked(1, 32, 4096, 0, FINGERPRINT, tuple(_keys(1, 2))).pack()
    with Spool(name) as spool:
        descriptor = os.open(trace_path(name), os.O_WRONLY | os.O_APPEND)
        expected = 0
        for cut in range(1, len(whole), 3):
            os.write(descriptor, whole[:cut])
            for _ in range(3):
                os.write(descriptor, whole)
            expected += 3
        broken = bytearray(whole)
        broken[-1] ^= 1
        os.write(descriptor, bytes(broken) + whole)
        os.close(descriptor)
        heard = list(spool.take())
        assert expected + 1 == len(heard)
        assert spool.damaged_bytes > 0


def test_one_recorder_an_arena_and_the_next_after_its_death(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    with Spool(name), pytest.raises(ArenaBusyError, match="already"):
        Spool(name)
    child = os.fork()
    if child == 0:
        Spool(name)
        os._exit(0)  # dies without cleaning up
    os.waitpid(child, 0)
    tracer = Tracer(name, 4096)
    assert not tracer.on, "nobody records, though the file is there"
    with Spool(name) as spool:
        assert _at_once(tracer).on
        _saw(tracer, 5)
        assert 1 == len(list(spool.take()))
        tracer.close()


def test_a_file_of_somebody_else_is_told_nothing(arena_name: Callable[..., str]) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a file away")
    name = arena_name()
    with Spool(name) as spool:
        os.chown(trace_path(name), 65534, 65534)
        tracer = Tracer(name, 4096)
        assert not tracer.on
        _saw(tracer, 1)
        assert [] == list(spool.take())


def test_a_purge_takes_it_along(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    spool = Spool(name)
    assert trace_path(name) in purge(name, force=False)
    assert not Path(trace_path(name)).exists()
    spool.close()


def test_permissions_are_the_arenas(arena_name: Callable[..., str]) -> None:
    name = arena_name()
    with Spool(name):
        assert 0o600 == os.stat(trace_path(name)).st_mode & 0o777
