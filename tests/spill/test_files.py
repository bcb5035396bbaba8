"""Several spill files: are blocks spread by how quick each is, and does one that fails cost only its own?"""

from __future__ import annotations

from pathlib import Path

import pytest

from pegashm.errors import FormatError
from pegashm.spill.file import Fetch, SpillFile
from pegashm.spill.files import SpillFiles

from tests.spill.blocks import Memory, append_all, found

SIZE = 4 << 20


def paths(folder: Path, count: int) -> list[str]:
    return [str(folder / f"spill{number}") for number in range(count)]


def test_the_least_busy_is_chosen_in_turn(tmp_path: Path) -> None:
    with SpillFiles.open_or_create(paths(tmp_path, 3), SIZE) as files:
        assert 0b111 == files.usable_mask
        assert [0, 1, 2, 0] == [files.choose(10) for _ in range(4)]
        files.settle(2, 10)
        assert [2, 1, 2] == [files.choose(10) for _ in range(3)]


def test_striped_blocks_are_all_found_again(tmp_path: Path) -> None:
    memory = Memory(8, 5000)
    with SpillFiles.open_or_create(paths(tmp_path, 3), SIZE) as files:
        for lot in range(9):
            number = files.choose(1)
            assert number is not None
            file = files.files[number]
            assert file is not None
            append_all(file, memory.blocks(range(8 * lot, 8 * lot + 8), 5000))
            files.settle(number, 1)
    with SpillFiles.open_or_create(paths(tmp_path, 3), SIZE) as files:
        outcomes = [found(file) for file in files.files if file is not None]
    assert [24] * 3 == [len(each) for each in outcomes]
    assert set(range(72)) == {number for each in outcomes for number, _ in each}


def test_one_that_cannot_be_opened_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = paths(tmp_path, 2)
    Path(first).write_text("not yours")
    memory = Memory(5, 5000)
    with SpillFile.open_or_create(second, SIZE) as file:
        append_all(file, memory.blocks(range(5), 5000))
    with SpillFiles.open_or_create([first, second], SIZE) as files:
        assert [first] == list(files.failures)
        assert "the other spill files are used" in caplog.text
        assert 0b10 == files.usable_mask
        assert 1 == files.choose(1)
        assert files.files[1] is not None
        assert {Fetch.OK} == set(found(files.files[1]).values())
    assert "not yours" == Path(first).read_text()
    with pytest.raises(FormatError, match="no spill file"):
        SpillFiles.open_or_create([first], SIZE)


def test_records_are_of_their_own_file(tmp_path: Path) -> None:
    """A record looked for in another file, same places and sequences: never a wrong block."""
    memory = Memory(5, 5000)
    with SpillFiles.open_or_create(paths(tmp_path, 2), SIZE) as files:
        one, two = files.files
        assert one is not None
        assert two is not None
        records = append_all(one, memory.blocks(range(5), 5000))
        append_all(two, memory.blocks(range(5, 10), 5000))
        outcomes = two.fetch(records, memory.addresses(5), bytes(range(32)))
        assert {Fetch.DAMAGED} == set(outcomes.tolist())
