"""Does a spill file give back what was put in, in any life of it, and nothing else?"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pegashm.spill.checksums import seed_of
from pegashm.spill.file import Advance, Append, Fetch, SpillFile
from pegashm.spill.format import PAGE_BYTES, RECORDS_PER_FRAME

from tests.spill.blocks import NAMESPACE, OTHER, Memory, append_all, found, number_of

SIZE = 8 << 20


def open_file(folder: Path, size: int = SIZE, **options: object) -> SpillFile:
    return SpillFile.open_or_create(str(folder / "spill"), size, **options)  # type: ignore[arg-type]


def numbers(outcomes: dict[tuple[int, int], Fetch]) -> list[int]:
    assert {Fetch.OK} >= set(outcomes.values())
    return [number for number, _ in outcomes]


def test_written_read_and_found_again(tmp_path: Path) -> None:
    memory = Memory(100, 9000)
    with open_file(tmp_path) as file:
        assert not list(file.records())
        records = append_all(file, memory.blocks(range(100), 9000))
        assert list(range(100)) == numbers(found(file))
    with open_file(tmp_path) as file:
        lots = list(file.records())
        assert {NAMESPACE} == {lot.namespace for lot in lots}
        assert (records == np.concatenate([lot.records for lot in lots])).all()
        assert list(range(100)) == numbers(found(file))


@pytest.mark.parametrize("size", [1, 4096, 4097, 100_000, (1 << 20) - 2 * PAGE_BYTES])
def test_any_size_up_to_a_region(tmp_path: Path, size: int) -> None:
    memory = Memory(3, size)
    with open_file(tmp_path, region_bytes=1 << 20) as file:
        append_all(file, memory.blocks(range(3), size))
    with open_file(tmp_path) as file:
        assert [0, 1, 2] == numbers(found(file))


def test_what_cannot_be_is_said_at_once(tmp_path: Path) -> None:
    memory = Memory(2, 1 << 20)
    with open_file(tmp_path, region_bytes=1 << 20) as file:
        with pytest.raises(ValueError, match="does not fit into a region"):
            file.append(NAMESPACE, memory.blocks([1], 1 << 20))
        unaligned = memory.blocks([1], 4096)
        unaligned["address"] += np.uint64(8)
        with pytest.raises(ValueError, match="page-aligned"):
            file.append(NAMESPACE, unaligned)


def test_the_log_goes_on_behind_its_last_frame(tmp_path: Path) -> None:
    """Lives of the file, none of which wastes a region."""
    memory = Memory(10, 5000)
    for life in range(5):
        with open_file(tmp_path) as file:
            append_all(file, memory.blocks(range(10 * life, 10 * life + 10), 5000))
            assert 1 == file.sequence
    with open_file(tmp_path) as file:
        assert list(range(50)) == numbers(found(file))


def test_two_namespaces_share_a_file_and_no_block(tmp_path: Path) -> None:
    memory = Memory(10, 5000)
    with open_file(tmp_path) as file:
        ours = append_all(file, memory.blocks(range(10), 5000))
        append_all(file, memory.blocks(range(10), 5000), OTHER)
        assert [NAMESPACE, OTHER] == [lot.namespace for lot in file.records()]
        outcomes = file.fetch(ours, memory.addresses(10), OTHER.fingerprint)
        assert {Fetch.DAMAGED} == set(outcomes.tolist())
        assert 10 == file.counters["damaged"]


def test_a_payload_is_bound_to_its_key(tmp_path: Path) -> None:
    """Records swapped between blocks of one size: bytes are there, and are not believed."""
    memory = Memory(2, 5000)
    with open_file(tmp_path) as file:
        records = append_all(file, memory.blocks(range(2), 5000))
        swapped = records.copy()
        swapped[["key", "group"]] = records[["key", "group"]][::-1]
        outcomes = file.fetch(swapped, memory.addresses(2), NAMESPACE.fingerprint)
    assert [Fetch.DAMAGED] * 2 == outcomes.tolist()
    assert seed_of(b"f" * 32, b"k", 1) != seed_of(b"f" * 32, b"k", 256)


def test_round_and_round(tmp_path: Path) -> None:
    """Several turns of the ring: always the newest, in order, and found again by another life."""
    memory = Memory(64, 20_000)
    size = 2 << 20
    next_number = 0
    for _ in range(4):
        with open_file(tmp_path, size) as file:
            for _ in range(6):
                append_all(file, memory.blocks(range(next_number, next_number + 30), 20_000))
                next_number += 30
            there = numbers(found(file))
            assert there == list(range(there[0], next_number))
            assert len(there) > 50
        with open_file(tmp_path, size) as file:
            assert there == numbers(found(file))
            assert file.regions_used == file.superblock.region_count


def test_a_region_that_is_read_from_is_not_taken(tmp_path: Path) -> None:
    memory = Memory(40, 20_000)
    with open_file(tmp_path, 2 << 20) as file:
        records = []
        while file.next_region().sequence == 0:
            assert Advance.DONE == file.advance()
            records.append(append_all(file, memory.blocks(range(5), 20_000)))
        victim = file.next_region()
        assert victim.sequence == records[0]["sequence"][0]
        with file._reading(records[0]):
            assert Advance.BUSY == file.advance()
            assert 1 == file.counters["busy"]
            assert [Fetch.OK] * 5 == file.read(records[0], memory.addresses(5)).tolist()
        assert Advance.DONE == file.advance()
        assert [Fetch.STALE] * 5 == file.read(records[0], memory.addresses(5)).tolist()
        assert [Fetch.OK] * 5 == file.read(records[1], memory.addresses(5)).tolist()


def test_hostile_records_are_stale(tmp_path: Path) -> None:
    """Whatever a table of records says, nothing outside the file's regions is read."""
    memory = Memory(1, 1 << 16)
    with open_file(tmp_path) as file:
        (record,) = append_all(file, memory.blocks([1], 5000))
        end = file.superblock.region_end(0)
        for field, value in [
            ("file_offset", 0),
            ("file_offset", 4096),
            ("file_offset", SIZE),
            ("file_offset", 2**64 - 4096),
            ("file_offset", end - 4096),  # would go on in the next region
            ("payload_bytes", 0),
            ("payload_bytes", 2**64 - 1),
            ("payload_bytes", SIZE),
            ("sequence", 0),
            ("sequence", 2),
        ]:
            rows = np.array([record])
            rows[field] = value
            outcomes = file.fetch(rows, memory.addresses(1), NAMESPACE.fingerprint)
            assert [Fetch.STALE] == outcomes.tolist(), (field, value)


def test_readers_beside_the_appender(tmp_path: Path) -> None:
    """Four readers of whatever is there while the ring turns: right or stale, never wrong."""
    memory = Memory(32, 20_000)
    problems: list[object] = []
    stop = threading.Event()
    counts = dict.fromkeys(Fetch, 0)
    with open_file(tmp_path, 2 << 20) as file:
        shared = [append_all(file, memory.blocks(range(32), 20_000))]

        def read(seed: int) -> None:
            chance = np.random.default_rng(seed)
            mine = Memory(8, 20_000)
            try:
                while not stop.is_set():
                    lot = shared[int(chance.integers(max(0, len(shared) - 6), len(shared)))]
                    rows = lot[chance.permutation(len(lot))[:8]]
                    outcomes = file.fetch(
                        rows, mine.addresses(len(rows)), NAMESPACE.fingerprint
                    ).tolist()
                    for outcome, row in zip(outcomes, rows, strict=True):
                        counts[Fetch(outcome)] += 1
                        assert outcome in (Fetch.OK, Fetch.STALE), (outcome, number_of(row))
            except BaseException as error:  # noqa: BLE001 - told to the test, which fails
                problems.append(error)

        readers = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for reader in readers:
            reader.start()
        busy = 0
        for lot in range(1, 60):
            blocks = memory.blocks(range(32 * lot, 32 * lot + 32), 20_000)
            done = 0
            while done < 32:
                appended = file.append(NAMESPACE, blocks[done:])
                shared.append(appended.records)
                done += len(appended.records)
                while appended.outcome is Append.REGION_FULL and (Advance.BUSY == file.advance()):
                    busy += 1
                    time.sleep(0.0005)
            shared[:] = [rows for rows in shared if len(rows)]
        stop.set()
        for reader in readers:
            reader.join()
    assert not problems
    assert counts[Fetch.OK] > 100


def test_amplification_is_pages_only(tmp_path: Path) -> None:
    memory = Memory(60, 65536)
    with open_file(tmp_path, 64 << 20) as file:
        for lot in range(10):
            append_all(file, memory.blocks(range(60 * lot, 60 * lot + 60), 65536))
        assert 600 == file.counters["records_written"]
        assert 600 * 65536 == file.counters["payload_bytes_written"]
        assert file.amplification < 1.01


def test_syncs_by_itself(tmp_path: Path) -> None:
    """A full region at once, otherwise after `sync_seconds`; and at the end."""
    memory = Memory(4, 4096)
    with open_file(tmp_path, sync_seconds=0.05) as file:
        append_all(file, memory.blocks(range(4), 4096))
        deadline = time.monotonic() + 30
        while file.counters["syncs"] < 2 and time.monotonic() < deadline:
            append_all(file, memory.blocks(range(4), 4096))
            time.sleep(0.02)
        assert 2 <= file.counters["syncs"]
        before = file.counters["syncs"]
        append_all(file, memory.blocks(range(4), 4096))
    assert before < file.counters["syncs"]


def test_many_frames_in_one_call(tmp_path: Path) -> None:
    """More than may be under way at once."""
    count = 70 * RECORDS_PER_FRAME
    memory = Memory(count, 4096)
    with open_file(tmp_path, 64 << 20, region_bytes=16 << 20) as file:
        append_all(file, memory.blocks(range(count), 4096))
        assert 70 <= file.counters["frames"]
    with open_file(tmp_path, 64 << 20) as file:
        assert list(range(count)) == numbers(found(file))


def test_a_flipped_byte_anywhere_is_never_a_wrong_block(tmp_path: Path) -> None:
    """Every byte of the pages is flipped in test_format; here pages and payloads in a real file."""
    memory = Memory(45, 5000)
    with open_file(tmp_path) as file:
        records = append_all(file, memory.blocks(range(45), 5000))
        block = file.superblock
    chance = np.random.default_rng(7)
    second = int(records["file_offset"][40]) - PAGE_BYTES
    pages = {"superblock": 0, "region": block.region_start(0), "frame": second}
    places = [(name, at + int(chance.integers(PAGE_BYTES))) for name, at in pages.items()] * 5
    places += [
        ("payload", int(offset) + int(chance.integers(5000))) for offset in records["file_offset"]
    ]
    path = str(tmp_path / "spill")
    for name, at in places:
        with open(path, "r+b") as raw:
            before = os.pread(raw.fileno(), 1, at)
            os.pwrite(raw.fileno(), bytes([before[0] ^ 1 << int(chance.integers(8))]), at)
        if name == "superblock":
            with pytest.raises(Exception, match="spill file"):
                open_file(tmp_path)
        else:
            with open_file(tmp_path) as file:
                outcomes = found(file)
            bad = [key for key, outcome in outcomes.items() if outcome != Fetch.OK]
            expected = {"region": (0, 0), "frame": (40, 0), "payload": (45, 1)}[name]
            assert expected == (len(outcomes), len(bad)), (name, at)
        with open(path, "r+b") as raw:
            os.pwrite(raw.fileno(), before, at)


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    """Nor can it use the file: the threads are its parent's."""
    file = open_file(tmp_path)
    go, stop = os.pipe()
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            try:
                file.probe()
            except ValueError:
                code = 0
            os.write(tell, b"x")
            os.close(stop)
            os.read(go, 1)
        finally:
            os._exit(code)
    os.close(go)
    try:
        assert b"x" == os.read(told, 1)
        assert file.close()
        with open_file(tmp_path) as again:
            assert again.writable
    finally:
        for descriptor in (stop, told, tell):
            os.close(descriptor)
        assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
