"""Is each invariant of FORMAT.md checked, and restored? Each is broken in a real region, in each of its ways.

fsck names it, a repair restores the region, a second repair finds nothing, and then every block works.
"""

from __future__ import annotations

import re

import pytest

from pegashm import fsck
from pegashm.arena import Arena
from pegashm.fsck_report import Report
from pegashm.invariants import INVARIANTS

from tests.format.spec import read_spec
from tests.fsck.plantings import PLANTINGS, Planting
from tests.fsck.scene import Hand, filled, works

CASES = [
    pytest.param(number, planting, id=f"I{number}-{way}")
    for number, plantings in PLANTINGS.items()
    for way, planting in enumerate(plantings)
]


def restored(arena: Arena) -> Report:
    """Repair, and see that nothing is left and that all works."""
    report = fsck.repair(arena)
    assert report.clean, report.lines()
    assert report.account.adds_up
    again = fsck.repair(arena)
    assert again.found_nothing, again.lines()
    arena.region.set_segments_ready(
        4
    )  # as a supervisor's next start would: unused ones are unknown
    works(arena, known=19 not in report.repaired_counts)
    assert fsck.check(arena).clean
    return report


@pytest.mark.parametrize(("number", "planting"), CASES)
def test_broken_invariant_is_named_and_restored(number: int, planting: Planting) -> None:
    with filled() as arena:
        assert fsck.check(arena).clean
        planting(Hand(arena))
        found = fsck.check(arena)
        assert number in found.counts, found.lines()
        assert (1, False) == (found.exit_status, found.clean)
        assert found.account.adds_up
        assert number in restored(arena).repaired_counts


def test_every_invariant_is_in_the_document_and_planted() -> None:
    rows = dict(
        re.findall(r"^\| I(\d+) \|.*?\| (damage|debris|drift) \|", read_spec(), re.MULTILINE)
    )
    assert {str(row.number): row.kind for row in INVARIANTS.values()} == rows
    assert set(INVARIANTS) == set(PLANTINGS) | {1, 2}


def test_account_of_each_block() -> None:
    """Blocks and bytes are told apart, and add up to the region."""
    with filled() as arena:
        hand = Hand(arena)
        hand.put(hand.free_word(hand.free[0]), 0)
        hand.put(hand.block(hand.ready[5], 64), 1 << 20)
        account = fsck.check(arena).account
        assert account.adds_up
        assert len(hand.free) == account.blocks["lost"] + account.blocks["free"]
        assert account.blocks["lost"] >= 1
        assert (39, 1) == (account.blocks["ready"], account.blocks["ready_held"])
        assert 39 * 4096 == account.bytes["ready"]
        assert 64 * 1024 == account.unassigned_bytes
