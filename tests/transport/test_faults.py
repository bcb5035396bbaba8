"""Workers killed and stopped, devices that fail and hang, files that are not there: hits are lost, nothing else."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pegashm import _native, fsck
from pegashm._native import MISSING, SPILLED
from pegashm.arena import open_arena
from pegashm.cache import Cache
from pegashm.spill.file import SpillFile
from pegashm.transport import promoter
from pegashm.transport.client import TransportClient
from pegashm.transport.messages import Answer, Promote
from pegashm.transport.promoter import Promoter
from pegashm.transport.tier import Tier
from pegashm.units import MIB

from tests.spill.failing_disk import failing_disk
from tests.transport.rig import BYTES, Rig, eventually, key_of

ROUNDS = 60 if os.environ.get("PEGASHM_LONG") else 12


# -- killed and stopped --------------------------------------------------------------------------


def test_killed_at_random_moments(rig: Callable[..., Rig], chance: random.Random) -> None:
    """A client stores, finds, asks and judges every byte, while the worker dies again and again."""
    one = rig(low=0.1, high=0.3, files=2)
    keys = [key_of(number) for number in range(1, 301)]
    judged = answered = 0
    for round_number in range(ROUNDS):
        if round_number % 4 == 3:  # before it listens, in the middle of opening
            one.spawn()
            time.sleep(chance.random() * 0.6)
        else:
            one.start()
        until = time.monotonic() + chance.random() * 0.6
        while time.monotonic() < until:
            first = chance.randrange(1, 290)
            one.store(range(first, first + chance.randrange(1, 12)))
            some = chance.sample(keys, 24)
            one.client.promote(some, one.cache.namespace_id, chance.choice((1, 50, 1000)))
            answered += sum(
                outcome == Answer.OK for reply in one.client.replies() for outcome in reply.outcomes
            )
            judged += one.judge(some)
        one.kill()
        judged += one.judge(keys)
    one.start()
    assert one.spilled(keys) > 100
    for first in range(0, 300, 20):
        one.promote(keys[first : first + 20])
        judged += one.judge(keys[first : first + 20])
    assert judged > 100
    assert answered > 0
    assert 0 == one.counter("spill_damaged")
    one.kill()
    one.cache.reap_dead()
    assert fsck.check(one.arena).clean
    print(f"{ROUNDS} kills, {judged} blocks judged, {answered} promoted on request")


def test_open_tickets_of_a_dead_worker_are_lost(rig: Callable[..., Rig]) -> None:
    one = rig().start()
    keys = one.store(range(1, 9))
    one.wait_stored(8)
    one.promote(keys)
    one.evict(keys)
    one.process.send_signal(signal.SIGSTOP)
    ticket = one.ask(keys)
    one.kill()
    (reply,) = eventually(one.client.replies)
    assert (ticket, bytes([Answer.LOST] * 8)) == (reply.request_id, reply.outcomes)
    assert not one.client.alive
    assert one.client.promote(keys, one.cache.namespace_id, 100) is None
    one.start()
    assert [Answer.OK] * 8 == one.promote(keys)


def test_a_stopped_worker_holds_nobody(rig: Callable[..., Rig]) -> None:
    """Calls return at once, whatever waits; after a while nobody is sent to it; it goes on where it was."""
    one = rig().start()
    keys = one.store(range(1, 9))
    one.wait_stored(8)
    one.evict(keys)
    one.promote(keys)
    one.evict(keys)
    one.process.send_signal(signal.SIGSTOP)
    longest = 0.0
    taken = 0
    until = time.monotonic() + 4.5
    while time.monotonic() < until:
        began = time.monotonic()
        ticket = one.client.promote(keys, one.cache.namespace_id, 200)
        one.client.replies()
        longest = max(longest, time.monotonic() - began)
        taken += ticket is not None
        time.sleep(0.01)
    assert longest < 1.0  # far above what a loaded machine does to a call that waits for nothing
    assert taken > 0
    assert one.client.promote(keys, one.cache.namespace_id, 200) is None  # silent for 3 s
    one.process.send_signal(signal.SIGCONT)

    def asked_again() -> bool:
        one.client.replies()
        return one.client.promote(keys, one.cache.namespace_id, 9000) is not None

    eventually(asked_again)
    eventually(lambda: one.judge(keys) == 8)


def test_two_workers_of_one_arena(rig: Callable[..., Rig]) -> None:
    one = rig()
    one.options = replace(one.options, lock_seconds=0.3)
    one.start()
    first = one.process
    second = one.spawn()
    assert 1 == second.wait(30)
    assert f"has a transport worker (pid {first.pid})" in one.said()
    assert first.poll() is None
    keys = one.store(range(1, 4))
    one.wait_stored(3)
    one.evict(keys)
    assert 3 == one.spilled(keys)


def test_two_workers_of_one_file(rig: Callable[..., Rig]) -> None:
    one = rig().start()
    other = rig(paths=one.paths)
    assert 1 == other.spawn().wait(30)
    assert "is in use by another process" in one.said()
    assert one.process.poll() is None


def test_a_successor_waits_for_the_lock(rig: Callable[..., Rig]) -> None:
    one = rig().start()
    first = one.process
    one.spawn()
    time.sleep(0.8)
    first.terminate()
    assert 0 == first.wait(30)
    eventually(
        lambda: (
            int(one.arena.region.header["transport_pid"]) == one.process.pid
            and one.arena.region.header["spill_usable"]
        )
    )


def test_ends_with_its_parent(rig: Callable[..., Rig]) -> None:
    one = rig()
    one.options = replace(one.options, parent_pid=1)
    assert 1 == one.spawn().wait(30)
    assert "its supervisor is gone" in one.said()


# -- files ---------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_opened_costs_itself_only(
    rig: Callable[..., Rig], tmp_path: Path
) -> None:
    others = tmp_path / "other"
    others.write_bytes(b"somebody's thesis" * 1000)
    paths = (str(tmp_path / "good"), str(others), str(tmp_path / "missing" / "file"))
    one = rig(paths=paths).start(files=1)
    keys = one.store(range(1, 9))
    one.wait_stored(8)
    one.evict(keys)
    assert [Answer.OK] * 8 == one.promote(keys)
    eventually(lambda: "is no spill file" in one.said())
    assert "there is no such file or folder" in one.said()
    assert others.read_bytes() == b"somebody's thesis" * 1000


def test_no_file_no_worker(rig: Callable[..., Rig], tmp_path: Path) -> None:
    one = rig(paths=(str(tmp_path / "missing" / "file"),))
    assert 1 == one.spawn().wait(30)
    assert "no spill file can be used" in one.said()
    assert "Traceback" not in one.said()


def test_flipped_bytes_in_the_file(rig: Callable[..., Rig]) -> None:
    one = rig().start()
    keys = one.store(range(1, 11))
    one.wait_stored(10)
    one.evict(keys)
    rows = _native.SpillTable(one.arena.region).find(keys, one.cache.namespace_id)
    with open(one.paths[0], "r+b") as file:
        for row in rows[3:6]:
            file.seek(int(row["file_offset"]) + 1234)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 0x40]))
    answers = one.promote(keys)
    assert [Answer.OK] * 3 + [Answer.DAMAGED] * 3 + [Answer.OK] * 4 == answers
    assert 7 == one.judge(keys)
    assert [MISSING] * 3 == one.outcomes(keys[3:6])
    assert 3 == one.counter("spill_damaged")
    assert keys[4].hex() in one.said()
    assert [Answer.MISSING] * 3 == one.promote(keys[3:6])
    one.store(range(4, 7))  # stored again, it is written again
    one.wait_stored(13)


def make_spill_file(path: str) -> None:
    SpillFile.open_or_create(path, 16 * MIB).close()


def test_a_device_that_fails(rig: Callable[..., Rig], tmp_path: Path) -> None:
    """Reads that fail are misses, several in a row take the file out of use; healed, it is in use again."""
    with failing_disk(tmp_path, make_spill_file) as disk:
        one = rig(paths=(disk.path, str(tmp_path / "good"))).start()
        keys = []
        for first in range(1, 61, 4):
            keys += one.store(range(first, first + 4))
            one.wait_stored(first + 3)
        one.evict(keys)
        rows = _native.SpillTable(one.arena.region).find(keys, one.cache.namespace_id)
        bad = [key for key, row in zip(keys, rows, strict=True) if row["file"] == 0]
        good = [key for key in keys if key not in bad]
        assert len(bad) > 12
        assert good
        disk.fail(
            "read", 0, 16 * MIB
        )  # its first page too: a probe must not find it healthy in between
        assert [Answer.FAILED] * 4 == one.promote(bad[:4])
        assert [Answer.OK] * len(good) == one.promote(good)
        for first in (4, 6):
            assert {Answer.FAILED} == set(one.promote(bad[first : first + 2]))
        eventually(lambda: set(one.outcomes(bad[8:])) == {MISSING})
        assert "it is taken out of use" in one.said()
        assert len(good) == one.judge(good)
        disk.heal()
        eventually(lambda: one.spilled(bad[8:]) == len(bad) - 8)
        assert {Answer.OK} == set(one.promote(bad[8:]))
        assert len(bad) - 8 == one.judge(bad)
        one.kill()


def test_a_device_that_refuses_writes(rig: Callable[..., Rig], tmp_path: Path) -> None:
    with failing_disk(tmp_path, make_spill_file) as disk:
        one = rig(paths=(disk.path, str(tmp_path / "good"))).start()
        disk.fail("write", 4096, 16 * MIB)
        stored: list[bytes] = []

        def settled() -> bool:
            return one.counter("spill_stored") + one.counter("spill_late") >= len(stored)

        for first in range(1, 41, 4):
            stored += one.store(range(first, first + 4))
            eventually(settled)
        assert one.counter("spill_write_errors") > 0
        assert one.counter("spill_stored") >= 8
        one.evict(stored)
        spilled = [key for key in stored if one.spilled([key])]
        assert len(spilled) == one.counter("spill_stored")
        assert {Answer.OK} == set(one.promote(spilled))
        assert len(spilled) == one.judge(spilled)
        one.kill()


def test_a_device_that_hangs(rig: Callable[..., Rig], tmp_path: Path) -> None:
    """Answers are late, then its blocks are misses; the other file goes on; when it answers, all is back."""
    with failing_disk(tmp_path, make_spill_file) as disk:
        one = rig(paths=(disk.path, str(tmp_path / "good")), stall_seconds=0.7).start()
        keys = []
        for first in range(1, 41, 4):
            keys += one.store(range(first, first + 4))
            one.wait_stored(first + 3)
        one.evict(keys)
        rows = _native.SpillTable(one.arena.region).find(keys, one.cache.namespace_id)
        bad = [key for key, row in zip(keys, rows, strict=True) if row["file"] == 0]
        good = [key for key in keys if key not in bad]
        assert bad
        assert good
        disk.hang()
        began = time.monotonic()
        assert [Answer.LATE] * len(bad) == one.promote(bad, deadline_ms=300)
        assert time.monotonic() - began < 20
        assert [Answer.OK] * len(good) == one.promote(good)
        eventually(lambda: set(one.outcomes(bad)) <= {MISSING, _native.PENDING})
        eventually(lambda: "has not answered for" in one.said())
        assert {Answer.FAILED} == set(one.promote(bad))
        more = one.store(range(100, 110))  # goes to the other file
        before = one.counter("spill_stored")
        eventually(lambda: one.counter("spill_stored") >= before or one.spilled(more))
        disk.go_on()
        eventually(lambda: one.judge(bad) + one.spilled(bad) == len(bad))
        one.promote([key for key in bad if one.spilled([key])])
        eventually(lambda: one.judge(bad) == len(bad))


def test_killed_while_its_device_hangs(rig: Callable[..., Rig], tmp_path: Path) -> None:
    """What it had claimed is given to nobody until the kernel has ended its reads; then it is reaped."""
    with failing_disk(tmp_path, make_spill_file) as disk:
        one = rig(paths=(disk.path,), stall_seconds=60).start()
        keys = one.store(range(1, 9))
        one.wait_stored(8)
        one.evict(keys)
        disk.hang()
        assert [Answer.LATE] * 8 == one.promote(keys, deadline_ms=300)
        assert 8 == one.arena.region.tally()["claimed"]
        # What is ahead has waited longer than these may: no use in queueing.
        assert [Answer.OVERLOADED] * 8 == one.promote(keys, deadline_ms=100)
        slot = next(
            client["slot"]
            for client in one.arena.region.clients()
            if "transport" in str(client["label"])
        )
        one.process.send_signal(signal.SIGKILL)
        time.sleep(0.3)
        one.cache.reap_dead()
        assert one.process.poll() is not None or 8 == one.arena.region.tally()["claimed"]
        disk.go_on()
        one.process.wait(30)
        one.cache.reap_dead()
        assert slot not in [client["slot"] for client in one.arena.region.clients()]
        assert 0 == one.arena.region.tally()["claimed"]
        one.start()
        assert [SPILLED] * 8 == one.outcomes(keys)


def test_a_file_that_hangs_while_it_is_opened(rig: Callable[..., Rig], tmp_path: Path) -> None:
    with failing_disk(tmp_path, make_spill_file) as disk:
        disk.hang()
        one = rig(paths=(disk.path, str(tmp_path / "good"))).start(files=1)
        assert 0b10 == one.arena.region.header["spill_usable"]
        disk.go_on()
        eventually(lambda: one.arena.region.header["spill_usable"] == 0b11)


# -- overload ------------------------------------------------------------------------------------


def test_what_waits_is_bounded(rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, with nobody reading: beyond the bound the answer is there at once."""
    one = rig()
    monkeypatch.setattr(promoter, "_QUEUE_BLOCKS", 10)
    monkeypatch.setattr(promoter, "_JOBS_MAX", 3)
    with Cache.attach(one.name, namespace=None) as cache:
        tier = Tier(cache, one.options.spill, stall_seconds=2.0)
        tier.clear()
        assert tier.open(0)
        keys = tuple(key_of(number) for number in range(1, 21))
        rows = np.zeros(20, _native.SPILL_FIELDS)
        for row, key in zip(rows, keys, strict=True):
            row["key"][:] = np.frombuffer(key[:32], np.uint8)
        rows["key_bytes"], rows["namespace_id"] = 32, one.cache.namespace_id
        rows["payload_bytes"], rows["file_offset"] = BYTES, 1 << 20
        tier.table.store(rows)
        judge = Promoter(tier, lambda: None, lambda: None)

        def ask(request_id: int, deadline_ms: int = 60_000) -> None:
            judge.submit(
                b"peer",
                Promote(
                    request_id=request_id,
                    region_id=cache.region_id,
                    namespace_id=one.cache.namespace_id,
                    deadline_ms=deadline_ms,
                    keys=keys,
                ),
            )

        ask(1, deadline_ms=1)
        assert [] == judge.replies()
        judge.expire(time.monotonic() + 1)
        (reply,) = judge.replies()
        assert bytes([Answer.LATE] * 10 + [Answer.OVERLOADED] * 10) == reply.done.outcomes
        for request_id in (2, 3, 4):
            ask(request_id)
        assert [] == judge.replies()
        ask(5)
        (reply,) = judge.replies()
        assert (5, bytes([Answer.OVERLOADED] * 20)) == (reply.done.request_id, reply.done.outcomes)
        assert tier.files.close()


def test_a_late_request_does_not_spoil_anothers(rig: Callable[..., Rig]) -> None:
    """A block that one request gave up, and another asked for meanwhile, is read after all."""
    one = rig().start()
    keys = one.store(range(1, 41))
    one.wait_stored(40)
    for _ in range(30):
        one.evict(keys)
        for _ in range(5):
            one.client.promote(keys, one.cache.namespace_id, 1)
        assert set(one.promote(keys, deadline_ms=20_000)) <= {Answer.OK, Answer.PENDING}
        assert 40 == eventually(lambda: one.judge(keys) == 40 and 40)


def test_no_space_in_memory(rig: Callable[..., Rig]) -> None:
    """All is pinned: nobody's memory is taken."""
    one = rig().start()
    keys = one.store(range(1, 5))
    one.wait_stored(4)
    one.evict(keys)
    others = one.store(range(100, 164))
    handles, _ = one.cache.find(others, pin=True)
    assert [Answer.NO_SPACE] * 4 == one.promote(keys)
    assert 64 == one.judge(others)
    one.cache.unpin(handles)
    # That nothing could be evicted is remembered for 10 ms.
    eventually(lambda: one.promote(keys) == [Answer.OK] * 4)


def test_a_forked_child_asks_nobody(rig: Callable[..., Rig]) -> None:
    one = rig().start()
    keys = one.store(range(1, 3))
    eventually(lambda: one.client.alive)
    read_fd, write_fd = os.pipe()
    child = os.fork()
    if child == 0:
        answer = one.client.promote(keys, 1, 100) is None and not one.client.replies()
        os.write(write_fd, b"y" if answer else b"n")
        os._exit(0)
    os.waitpid(child, 0)
    assert b"y" == os.read(read_fd, 1)
    os.close(read_fd)
    os.close(write_fd)
    with open_arena(one.name) as arena, TransportClient(arena) as client:
        eventually(lambda: client.alive)
