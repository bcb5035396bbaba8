"""Is a living arena left in peace? fsck beside processes that do everything at random, and after they were killed."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pegashm import fsck
from pegashm.arena import Arena
from pegashm.cache import Cache, Copyist

from tests.arenas import temporary_arena
from tests.figures import LONG, report
from tests.fsck.scene import BLOCKS, FENCE, PAYLOAD_BYTES, Hand, filled, key_of, works

SECONDS = 60.0 if LONG else 4.0
ROUNDS = 40 if LONG else 3
PROCESSES = 3


@contextlib.contextmanager
def churning(arena: Arena, seed: int) -> Iterator[list[subprocess.Popen[str]]]:
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.fsck.churn", arena.name, str(seed + number)],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(PROCESSES)
    ]
    try:
        for child in children:
            assert child.stdout is not None
            assert "ready\n" == child.stdout.readline()
        yield children
    finally:
        for child in children:
            child.kill()
            child.communicate()


def test_nothing_is_found_beside_living_clients(seed: int) -> None:
    """Checks and repairs in a loop: nothing is wrong, nothing gets wrong."""
    checks = 0
    with temporary_arena() as arena:
        with churning(arena, seed) as children:
            until = time.monotonic() + SECONDS
            while time.monotonic() < until:
                seen = fsck.check(arena)
                assert (True, True) == (seen.live, seen.clean), seen.lines()
                if checks % 8 == 0:
                    repaired = fsck.repair(arena)
                    assert repaired.found_nothing, repaired.lines()
                checks += 1
            ends = [json.loads(child.communicate("end\n")[0]) for child in children]
        assert 0 == sum(end["wrong"] for end in ends)
        assert fsck.repair(arena).clean
        assert fsck.repair(arena).found_nothing
        works(arena)
    operations = sum(end["operations"] for end in ends)
    report("fsck", live_checks=checks, operations=operations, wrong_bytes=0, hangs=0)


def test_killed_clients_are_reaped(seed: int) -> None:
    """SIGKILL at any instruction: what they left is debris or drift, and one repair ends it."""
    kills = 0
    with temporary_arena() as arena:
        for number in range(ROUNDS):
            with churning(arena, seed + number) as children:
                time.sleep(0.05)
                for child in children:
                    child.kill()
                    child.wait()
                kills += len(children)
            seen = fsck.check(arena)
            assert 11 in seen.counts
            assert {"damage"} & {finding.kind for finding in seen.findings} == set(), seen.lines()
            assert fsck.repair(arena).clean
            assert fsck.repair(arena).found_nothing
            works(arena)
    report("fsck", kills=kills, wrong_bytes=0, leaked_blocks=0, hangs=0)


def test_blocks_of_a_dead_owner_wait_for_its_worker() -> None:
    with temporary_arena() as arena, Copyist.open(arena.name) as worker:
        with churning(arena, 1) as children:
            (client, *_) = worker.region.clients()
            assert worker.serve(worker.region_id, client["slot"], client["incarnation"])
            for child in children:
                child.kill()
                child.wait()
        seen = fsck.repair(arena)
        assert seen.clean, seen.lines()
        assert [client["slot"]] == [each["slot"] for each in arena.region.clients()]


def test_unreadable_state_waits_for_the_living() -> None:
    """It may have said that somebody writes there: freed only when nobody is attached."""
    with filled() as arena:
        hand = Hand(arena)
        hand.put(hand.block(hand.ready[0]), hand.get(hand.block(hand.ready[0])) | 0xF0)
        with Cache.attach(arena.name, namespace=FENCE):
            seen = fsck.repair(arena)
            assert {14: 1} == seen.counts, seen.lines()
            assert not seen.findings[0].repairable
            assert not seen.clean
        assert fsck.repair(arena).clean
        works(arena)


def test_pinned_damage_waits_for_the_pin() -> None:
    with filled() as arena, Cache.attach(arena.name, namespace=FENCE) as cache:
        handles, _ = cache.find([key_of(1)], pin=True)
        record = int(handles[0]) & 0xFFFFFF
        hand = Hand(arena)
        hand.put(hand.block(record, 48), hand.get(hand.block(record, 48)) + 4096)
        assert {18: 1} == fsck.repair(arena).counts
        cache.unpin(handles)
        assert fsck.repair(arena).clean


def test_repair_leaves_claims_and_content_alone() -> None:
    """Beside a client with a claim and pins, one damage costs one block and nothing else."""
    with filled() as arena, Cache.attach(arena.name, namespace=FENCE) as cache:
        handles, _ = cache.claim([key_of(400)], PAYLOAD_BYTES)
        hand = Hand(arena)
        hand.put(hand.entry(hand.entry_of(hand.ready[0])), 0)
        assert {20: 1} == fsck.repair(arena).repaired_counts
        assert [0] == cache.publish(handles).tolist()
        found, _ = cache.find([key_of(number) for number in range(1, BLOCKS)])
        assert 39 == int((found != 0).sum())
