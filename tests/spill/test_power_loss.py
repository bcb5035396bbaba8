"""Whatever a power loss leaves of the file: does it open, and is everything found in it right or absent?

One life of a small file, several turns of its ring with syncs between, is recorded at the disk's boundary; then every
prefix of it with a torn last write, and random parts of what no sync had covered, are opened as files of their
own (see `recording`). What a sync had covered must be found again unless its region was taken since. PEGASHM_LONG=1
tries every sector of every write, and more shuffles.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from pegashm.spill.file import Advance, Append, Fetch, SpillFile

from tests.spill.blocks import NAMESPACE, OTHER, Memory, found
from tests.spill.recording import Log, Note, RecordingDisk, State, Sync, Write, prefixes, shuffled

LONG = bool(os.environ.get("PEGASHM_LONG"))
SIZE = 4096 + 4 * 40960  # four regions of ten pages


class Story:
    """A recorded life: the file's bytes before it, the log, and what the writer was told."""

    def __init__(self, folder: Path, seed: int) -> None:
        chance = random.Random(seed)
        path = str(folder / "recorded")
        SpillFile.open_or_create(path, SIZE, region_bytes=40960).close()
        self.start = (folder / "recorded").read_bytes()
        self.log = Log()

        def make(*arguments: object, **options: object) -> RecordingDisk:
            disk = RecordingDisk(*arguments, **options)  # type: ignore[arg-type]
            disk.log = self.log
            return disk

        memory = Memory(8, 5000)
        with SpillFile.open_or_create(path, SIZE, sync_seconds=1000, make_disk=make) as file:
            number = 0
            for _ in range(14):
                count = chance.randrange(1, 5)
                blocks = memory.blocks(
                    range(number, number + count), chance.choice((700, 4096, 5000))
                )
                number += count
                done = 0
                while done < count:
                    appended = file.append(chance.choice((NAMESPACE, OTHER)), blocks[done:])
                    assert appended.outcome is not Append.FAILED
                    self.log.note("appended", appended.records)
                    done += len(appended.records)
                    if appended.outcome is Append.REGION_FULL:
                        self.log.note("taken", file.next_region().sequence)
                        assert Advance.DONE == file.advance()
                if chance.random() < 0.3:
                    file.sync()
        self.log.under_way.clear()
        self.path = str(folder / "replayed")

    def judge(self, state: State) -> int:
        """Open the state as a file of its own; how many records it has."""
        Path(self.path).write_bytes(state.image)
        with SpillFile.open_or_create(self.path, SIZE, threads=1) as file:
            outcomes = found(file)  # fails on wrong bytes
            assert set(outcomes.values()) <= {Fetch.OK, Fetch.DAMAGED}, state.name
            right = {
                offset: number for (number, offset), got in outcomes.items() if got == Fetch.OK
            }
            for number, offset in self.promised(state):
                assert number == right.get(offset), f"{state.name}: block {number} is gone"
            # And life goes on: what is stored now is found beside it.
            memory = Memory(1, 700)
            if file.append(NAMESPACE, memory.blocks([1 << 40], 700)).outcome is not Append.DONE:
                assert Advance.DONE == file.advance()
        return len(outcomes)

    def promised(self, state: State) -> list[tuple[int, int]]:
        """(number, offset) of records whose writes a sync covered, in regions that were not taken since."""
        taken = {
            event.value
            for event in self.log.events[: state.cut]
            if isinstance(event, Note) and event.what == "taken"
        }
        out = []
        for place, event in enumerate(self.log.events[: state.cut]):
            if not isinstance(event, Note) or event.what != "appended":
                continue
            writes = {
                at for at, each in enumerate(self.log.events[:place]) if isinstance(each, Write)
            }
            if writes <= state.durable:
                out += [
                    (int.from_bytes(row["key"][:8].tobytes(), "big"), int(row["file_offset"]))
                    for row in event.value
                    if int(row["sequence"]) not in taken
                ]
        return out


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    story = Story(tmp_path_factory.mktemp("power"), 11)
    events = story.log.events
    assert sum(isinstance(event, Sync) for event in events) > 4
    assert sum(isinstance(event, Note) and event.what == "taken" for event in events) > 6
    return story


def test_the_recording_is_the_file(story: Story, tmp_path: Path) -> None:
    """Replayed in full, the log gives the bytes that the real file has: nothing was written past it."""
    *_, last = prefixes(story.log, story.start, 0)
    assert last.image == Path(story.path).with_name("recorded").read_bytes()
    assert story.judge(last) > 5


@pytest.mark.timeout(600)
def test_every_prefix_with_a_torn_last_write(story: Story) -> None:
    states = 0
    promised = 0
    for state in prefixes(story.log, story.start, 16 if LONG else 2):
        story.judge(state)
        promised += len(story.promised(state))
        states += 1
    print(f"{states} states, {promised} promises kept")
    assert states > 150
    assert promised > 100


@pytest.mark.timeout(900)
@pytest.mark.parametrize("honest", [True, False], ids=["syncs kept", "syncs ignored"])
def test_any_part_of_what_was_not_synced(story: Story, chance: random.Random, honest: bool) -> None:
    """Also on a device that lies about syncs, where more may be gone, and nothing is wrong."""
    for _ in range(3000 if LONG else 150):
        state = shuffled(story.log, story.start, chance, honest=honest)
        story.judge(state)
