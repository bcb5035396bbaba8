"""Is the arena registered with the driver as `registration.py` promises? With a driver of the test's own."""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from pegashm.connector.registration import Driver, Ground, Registrar, next_chunk

KIB = 1024


class Ledger:
    """A driver that remembers, refuses from some call on, and can be made to take its time."""

    def __init__(self, accepts: int = 1 << 30) -> None:
        self.accepts = accepts
        self.held: dict[int, int] = {}
        self.calls: list[tuple[int, int]] = []
        self.undone: list[int] = []
        self.go_on = threading.Event()
        self.go_on.set()

    def register(self, address: int, nbytes: int) -> bool:
        assert self.go_on.wait(30)
        self.calls.append((address, nbytes))
        if len(self.calls) > self.accepts:
            return False
        self.held[address] = nbytes
        return True

    def unregister(self, address: int) -> None:
        del self.held[address]
        self.undone.append(address)

    @property
    def driver(self) -> Driver:
        return Driver(self.register, self.unregister)


def ground(*, segments: tuple[int, ...] = (4, 4), stride: int = 12 * KIB) -> Ground:
    return Ground(
        address=1 << 40,
        arena_bytes=tuple(64 * KIB * count for count in segments),
        segment_bytes=64 * KIB,
        stride=stride,
    )


def ended(registrar: Registrar) -> bool:
    """Retire it; whether that came to its end, what follows included."""
    followed = threading.Event()
    registrar.retire(followed.set)
    return registrar.join(30) and followed.is_set()


def until(what: Callable[[], bool]) -> None:
    """Wait for something that another thread does; the watchdog ends a wait in vain."""
    while not what():
        time.sleep(0.001)


@given(
    segment_pages=st.integers(1, 64),
    files=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    stride_pages=st.integers(1, 70),
    chunk_pages=st.integers(1, 200),
    steps=st.lists(st.integers(1, 4), min_size=1, max_size=8),
)
def test_no_block_straddles_two_chunks(
    segment_pages: int, files: list[int], stride_pages: int, chunk_pages: int, steps: list[int]
) -> None:
    """However large segments, blocks and chunks are, and in whatever steps segments become ready."""
    segment_bytes, stride = segment_pages * mmap.PAGESIZE, stride_pages * mmap.PAGESIZE
    ground = Ground(
        address=0,
        arena_bytes=tuple(segment_bytes * count for count in files),
        segment_bytes=segment_bytes,
        stride=stride,
    )
    chunks: list[tuple[int, int]] = []
    ready = start = 0
    for step in [*steps, sum(files)]:
        ready = min(ready + step, sum(files))
        limit = ready * segment_bytes
        while (end := next_chunk(ground, start, limit, chunk_pages * mmap.PAGESIZE)) > start:
            assert end <= limit
            assert 0 == end % mmap.PAGESIZE
            chunks.append((start, end))
            start = end
        assert limit == start

    assert ground.total_bytes == start  # all of it, once, in order
    file_ends = [sum(ground.arena_bytes[: i + 1]) for i in range(len(files))]
    assert set(file_ends) <= {end for _, end in chunks}  # none spans two files
    for segment in range(sum(files)):
        first, last = segment * segment_bytes, (segment + 1) * segment_bytes
        block = -(-first // stride) * stride
        while block + stride <= last:
            assert any(begin <= block and block + stride <= end for begin, end in chunks)
            block += stride


def test_all_is_registered_then_undone_backwards() -> None:
    ledger = Ledger()
    registrar = Registrar(ground(), lambda: 8, ledger.driver, chunk_bytes=100 * KIB)
    until(lambda: registrar.complete)

    assert all(nbytes <= 100 * KIB for nbytes in ledger.held.values())
    assert 8 * 64 * KIB == sum(ledger.held.values())
    assert ended(registrar)
    assert {} == ledger.held
    assert [address for address, _ in reversed(ledger.calls)] == ledger.undone
    assert not registrar.complete


def test_only_ready_segments_and_the_others_as_they_come() -> None:
    ledger, ready = Ledger(), [0]
    registrar = Registrar(ground(), lambda: ready[0], ledger.driver, poll_s=0.001)
    time.sleep(0.02)
    assert [] == ledger.calls

    for count in (1, 3, 8):
        ready[0] = count
        until(lambda: registrar.registered_bytes == ready[0] * 64 * KIB)
        assert max(address + nbytes for address, nbytes in ledger.held.items()) == (
            (1 << 40) + count * 64 * KIB
        )
    assert registrar.complete
    assert ended(registrar)


def test_a_refused_chunk_ends_it_and_undoes_nothing() -> None:
    ledger = Ledger(accepts=2)
    registrar = Registrar(ground(), lambda: 8, ledger.driver, chunk_bytes=64 * KIB)
    until(lambda: len(ledger.calls) == 3)
    time.sleep(0.02)

    assert 2 == len(ledger.held)
    assert [] == ledger.undone
    assert not registrar.complete
    assert sum(ledger.held.values()) == registrar.registered_bytes
    assert 3 == len(ledger.calls)  # it does not try again
    assert ended(registrar)
    assert {} == ledger.held


def test_a_driver_that_raises_is_one_that_refuses() -> None:
    ledger = Ledger()

    def raising(address: int, nbytes: int) -> bool:
        if ledger.held:
            raise OSError("the driver is gone")
        return ledger.register(address, nbytes)

    registrar = Registrar(
        ground(), lambda: 8, Driver(raising, ledger.unregister), chunk_bytes=64 * KIB
    )
    until(lambda: len(ledger.held) == 1)
    time.sleep(0.02)
    assert 1 == len(ledger.held)
    assert ended(registrar)
    assert {} == ledger.held


def test_retiring_waits_for_nobody_and_undoes_the_call_under_way() -> None:
    """The mapping may go (`then`) only when the driver has come back and let go of what it registered."""
    ledger = Ledger()
    ledger.go_on.clear()
    registrar = Registrar(ground(), lambda: 8, ledger.driver, chunk_bytes=64 * KIB)
    held_then: list[int] = []
    registrar.retire(lambda: held_then.append(len(ledger.held)))
    assert not registrar.join(0.02)
    assert [] == held_then
    ledger.go_on.set()

    assert registrar.join(30)
    assert [0] == held_then
    assert len(ledger.calls) == len(ledger.undone) <= 1


def test_a_driver_that_does_not_let_go_is_not_waited_for() -> None:
    def unregister(_address: int) -> None:
        raise OSError("the driver is gone")

    registrar = Registrar(ground(), lambda: 8, Driver(lambda _a, _n: True, unregister))
    until(lambda: registrar.complete)
    assert ended(registrar)
    assert not registrar.complete
