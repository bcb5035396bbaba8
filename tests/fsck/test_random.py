"""Does a repair end, whatever the bytes? After any random damage one repair leaves nothing for a second."""

from __future__ import annotations

import random

from pegashm import fsck

from tests.figures import LONG, report
from tests.fsck.scene import Hand, filled, works
from tests.model.vandal import TABLES, Vandal

REGIONS = 2000 if LONG else 60
MUTABLE = ((256, 512), (3584, 4096))  # of the header: the rest is judged before a region is mapped


def scribble(hand: Hand, chance: random.Random) -> None:
    """Random bytes anywhere but in what the header's checksum covers."""
    size = len(hand.bytes)
    for _ in range(chance.randrange(1, 120)):
        start, end = chance.choice((*MUTABLE, (4096, size), (4096, size), (4096, size)))
        at = chance.randrange(start, end)
        count = min(chance.choice((1, 1, 8, 64, 300)), end - at)
        hand.bytes[at : at + count] = chance.randbytes(count)


def test_random_damage_is_repaired_at_once(seed: int) -> None:
    found = 0
    for number in range(REGIONS):
        chance = random.Random(seed + number)
        with filled() as arena:
            hand = Hand(arena)
            if number % 2:
                scribble(hand, chance)
            else:  # words that could be, where they could be
                vandal = Vandal(arena.name, chance, "all", hand.header)
                vandal.tables = [*TABLES, "header"]
                for _ in range(chance.randrange(1, 60)):
                    vandal.strike()
            first = fsck.repair(arena)
            assert first.clean, (seed + number, first.lines())
            second = fsck.repair(arena)
            assert second.found_nothing, (seed + number, second.lines())
            found += sum(first.repaired_counts.values())
            if number % 5 == 0:
                arena.region.set_segments_ready(4)  # as a supervisor's next start would
                for slot in range(256):  # limits are settings: any number could have been asked for
                    place = hand.header["namespaces_offset"] + 256 * slot
                    hand.put(place + 40, 0)
                    hand.put(place + 48, 0)
                works(arena, known=False)
    report("fsck", regions_damaged=REGIONS, findings_repaired=found, leaked_blocks=0, hangs=0)
