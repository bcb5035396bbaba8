"""The child of `test_kills`: appends for ever, telling on standard output what is in the file.

`python -m tests.spill.killed PATH SIZE FIRST_NUMBER SEED`. A line `ok NUMBER SEQUENCE` a block, after append() returned it;
a line `taken SEQUENCE` before a region is taken.
"""

from __future__ import annotations

import random
import sys

from pegashm.spill.file import Advance, Append, SpillFile

from tests.spill.blocks import NAMESPACE, Memory, number_of


def main(path: str, size: int, number: int, seed: int) -> None:
    chance = random.Random(seed)
    memory = Memory(50, 60_000)
    with SpillFile.open_or_create(path, size, sync_seconds=0.02) as file:
        print("ready", flush=True)
        while True:
            count = chance.randrange(1, 50)
            blocks = memory.blocks(range(number, number + count), chance.choice((900, 60_000)))
            number += count
            done = 0
            while done < count:
                appended = file.append(NAMESPACE, blocks[done:])
                assert appended.outcome is not Append.FAILED
                said = [f"ok {number_of(row)} {row['sequence']}" for row in appended.records]
                if said:
                    print("\n".join(said), flush=True)
                done += len(appended.records)
                if appended.outcome is Append.REGION_FULL:
                    print(f"taken {file.next_region().sequence}", flush=True)
                    assert Advance.DONE == file.advance()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
