"""A device that fails, hangs or is pulled out: what does it cost, and does the rest go on?

The device is `failing_disk`: a file system whose answers the test decides, under the real file, threads and system calls.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pegashm.errors import ResourceError
from pegashm.spill.file import ERRORS_IN_A_ROW, Advance, Append, Fetch, SpillFile
from pegashm.spill.files import SpillFiles

from tests.spill.blocks import NAMESPACE, Memory, append_all, found
from tests.spill.failing_disk import FailingDisk, failing_disk

SIZE = 4 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FailingDisk]:
    with failing_disk(tmp_path, lambda path: SpillFile.open_or_create(path, SIZE).close()) as made:
        yield made


def until(what: Callable[[], bool]) -> None:
    """Wait for something another thread does; the watchdog ends it."""
    while not what():
        time.sleep(0.005)


def test_the_device_works(disk: FailingDisk) -> None:
    """Or the tests below would prove little."""
    memory = Memory(30, 50_000)
    with SpillFile.open_or_create(disk.path, SIZE) as file:
        assert file.direct
        append_all(file, memory.blocks(range(30), 50_000))
        assert 30 == len(found(file))
        assert file.sync()
    with SpillFile.open_or_create(disk.path, SIZE) as file:
        assert {Fetch.OK} == set(found(file).values())


def test_a_bad_sector_costs_one_block(disk: FailingDisk) -> None:
    """Though its neighbours are read in the same call."""
    memory = Memory(20, 5000)
    with SpillFile.open_or_create(disk.path, SIZE) as file:
        records = append_all(file, memory.blocks(range(20), 5000))
        disk.fail("read", int(records["file_offset"][7]) + 4096, 512)
        outcomes = file.fetch(records, memory.addresses(20), NAMESPACE.fingerprint).tolist()
        assert [Fetch.FAILED if number == 7 else Fetch.OK for number in range(20)] == outcomes
        assert 1 == file.counters["read_errors"]
        assert file.readable


def test_bad_pages_at_open_cost_what_they_lead_to(disk: FailingDisk) -> None:
    memory = Memory(60, 5000)
    with SpillFile.open_or_create(disk.path, SIZE) as file:
        records = append_all(file, memory.blocks(range(60), 5000))
        block = file.superblock
    assert 0 == (int(records["file_offset"][40]) - block.region_start(0)) // block.region_bytes
    disk.fail("read", int(records["file_offset"][40]) - 4096, 4096)
    with SpillFile.open_or_create(disk.path, SIZE) as file:
        assert 40 == len(found(file))
        # What follows is written in a place that may be good.
        assert Append.DONE == file.append(NAMESPACE, memory.blocks(range(100, 110), 5000)).outcome
    disk.heal()
    with SpillFile.open_or_create(disk.path, SIZE) as file:
        assert {Fetch.OK} == set(found(file).values())
    disk.fail("read", block.region_start(0), 4096)
    with SpillFile.open_or_create(disk.path, SIZE) as file:
        assert not found(file)
    disk.fail("read", 0, 4096)
    with pytest.raises(ResourceError, match="cannot be read"):
        SpillFile.open_or_create(disk.path, SIZE)


def test_a_write_that_fails_loses_its_frame_only(disk: FailingDisk) -> None:
    memory = Memory(45, 5000)
    with SpillFile.open_or_create(disk.path, SIZE) as file:
        assert Advance.DONE == file.advance()
        first = file.append(NAMESPACE, memory.blocks(range(10), 5000))
        assert Append.DONE == first.outcome
        end = int(first.records["file_offset"][-1]) + 8192
        disk.fail("write", end + 41 * 8192, 4096)  # in the second frame of what comes
        blocks = memory.blocks(range(10, 55), 5000)
        failed = file.append(NAMESPACE, blocks)
        assert (Append.FAILED, 40) == (failed.outcome, len(failed.records))
        assert 5 == failed.errno
        # The place may be bad for good: the rest of the region is left alone.
        assert Append.REGION_FULL == file.append(NAMESPACE, blocks[40:]).outcome
        assert Advance.DONE == file.advance()
        assert Append.DONE == file.append(NAMESPACE, blocks[40:]).outcome
        assert set(range(55)) == {number for number, _ in found(file)}
    with SpillFile.open_or_create(disk.path, SIZE) as file:
        # The frame that failed may be found, and does not check; the later records of its keys count.
        latest = {number: outcome for (number, _), outcome in found(file).items()}
        assert dict.fromkeys(range(55), Fetch.OK) == dict(sorted(latest.items()))


def test_out_of_use_after_errors_in_a_row_and_back(disk: FailingDisk) -> None:
    memory = Memory(5, 5000)
    with SpillFile.open_or_create(disk.path, SIZE) as file:
        records = append_all(file, memory.blocks(range(5), 5000))
        disk.fail("write", 0, SIZE)
        for number in range(ERRORS_IN_A_ROW):
            assert file.writable
            outcome = file.append(NAMESPACE, memory.blocks(range(5), 5000)).outcome
            assert outcome is (Append.REGION_FULL if number else Append.FAILED)
            if number:
                assert Advance.FAILED == file.advance()
        assert not file.writable
        assert file.readable
        assert Append.FAILED == file.append(NAMESPACE, memory.blocks([1], 5000)).outcome
        assert Advance.FAILED == file.advance()
        assert not file.probe()
        disk.heal()
        assert file.probe()
        assert file.writable

        disk.fail("read", 0, SIZE)
        for _ in range(ERRORS_IN_A_ROW):
            assert file.readable
            file.read(records, memory.addresses(5))
        assert not file.readable
        assert not file.probe()
        disk.heal()
        assert file.probe()
        append_all(file, memory.blocks(range(100, 105), 5000))
        assert {Fetch.OK} == set(found(file).values())


@pytest.mark.parametrize("hanging", ["fetch", "append"])
def test_a_device_that_hangs_holds_its_own_callers_only(
    disk: FailingDisk, tmp_path: Path, hanging: str
) -> None:
    """Others see it, use the other file, and use this one again when it answers."""
    memory, other_memory = Memory(5, 5000), Memory(5, 5000)
    slow = SpillFile.open_or_create(disk.path, SIZE)
    quick = SpillFile.open_or_create(str(tmp_path / "quick"), SIZE)
    with SpillFiles([slow, quick], {}, stall_seconds=0.1) as files:
        records = append_all(slow, memory.blocks(range(5), 5000))
        assert 0b11 == files.usable_mask
        disk.hang()
        answers: list[object] = []

        def work() -> None:
            if hanging == "fetch":
                answers.append(slow.fetch(records, memory.addresses(5), NAMESPACE.fingerprint))
            else:
                answers.append(slow.append(NAMESPACE, memory.blocks(range(5, 10), 5000)))

        held = threading.Thread(target=work)
        held.start()
        until(lambda: slow.waiting_seconds > 0.1)
        assert 0b10 == files.usable_mask
        for _ in range(3):
            chosen = files.choose(1)
            assert 1 == chosen
            files.settle(chosen, 1)
        theirs = append_all(quick, other_memory.blocks(range(50, 55), 5000))
        outcomes = quick.fetch(theirs, other_memory.addresses(5), NAMESPACE.fingerprint)
        assert {Fetch.OK} == set(outcomes.tolist())
        assert held.is_alive()
        disk.go_on()
        held.join()
        assert 1 == len(answers)
        until(lambda: files.usable_mask == 0b11)


def test_closing_a_hanging_file_does_not_hang(disk: FailingDisk) -> None:
    memory = Memory(5, 5000)
    file = SpillFile.open_or_create(disk.path, SIZE)
    records = append_all(file, memory.blocks(range(5), 5000))
    disk.hang()
    held = threading.Thread(target=lambda: file.read(records, memory.addresses(5)))
    held.start()
    until(lambda: file.waiting_seconds > 0)
    assert not file.close(patience_seconds=0.05)
    disk.go_on()
    held.join()


def test_pulled_out(disk: FailingDisk, tmp_path: Path) -> None:
    """Its records are gone, those of the other file are not; a hung reader gets an error."""
    memory, other_memory = Memory(5, 5000), Memory(5, 5000)
    gone = SpillFile.open_or_create(disk.path, SIZE)
    stays = SpillFile.open_or_create(str(tmp_path / "stays"), SIZE)
    with SpillFiles([gone, stays], {}) as files:
        records = append_all(gone, memory.blocks(range(5), 5000))
        kept = append_all(stays, other_memory.blocks(range(5), 5000))
        disk.pull_out()
        for _ in range(ERRORS_IN_A_ROW):
            outcomes = gone.fetch(records, memory.addresses(5), NAMESPACE.fingerprint)
            assert {Fetch.FAILED} == set(outcomes.tolist())
        assert 0b10 == files.usable_mask
        assert [] == files.probe_due()
        assert 1 == files.choose(1)
        outcomes = stays.fetch(kept, other_memory.addresses(5), NAMESPACE.fingerprint)
        assert {Fetch.OK} == set(outcomes.tolist())
