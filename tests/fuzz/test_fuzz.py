"""Can any bytes in a region crash, hang or lead astray the core?

`fuzz.cpp` says what one run is. The short form runs some 50,000 damaged regions through two engines: the
program's own loop with inputs from a seed, and libFuzzer, guided by coverage, where clang is installed.
The long form (PEGASHM_LONG=1) runs more than a million. `during.cpp` damages a region while it is used. The
planted mistakes show that what these runs look for is what they would find.
"""

from __future__ import annotations

import concurrent.futures
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.figures import LONG, report
from tests.fuzz.programs import ADDRESS, CLANG, Program, build, mutated, run

HERE = Path(__file__).parent
OWN = Program(source=HERE / "fuzz.cpp", flags=(*ADDRESS, "-DPEGASHM_FUZZ_MAIN"))
GUIDED = Program(
    source=HERE / "fuzz.cpp",
    flags=("-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"),
    compiler=CLANG,
)
DURING = Program(source=HERE / "during.cpp")

PROCESSES = 2
OWN_RUNS = 600_000 if LONG else 20_000  # each process
GUIDED_RUNS = 75_000 if LONG else 5_000
DURING_SECONDS = 20 if LONG else 3
LIMIT_S = 900 if LONG else 100
CONTROL_RUNS = 20_000

pytestmark = pytest.mark.timeout(2 * LIMIT_S)


def counted(outs: Sequence[str]) -> Counter[str]:
    """The figures that the programs printed, added up."""
    total: Counter[str] = Counter()
    for out in outs:
        line = next(line for line in out.splitlines() if line.startswith("regions "))
        for name, value in re.findall(r"(\w+) (\d+)", line):
            total[name] += int(value)
    return total


def test_damaged_regions(seed: int, tmp_path: Path) -> None:
    """No crash, no hang, no access out of bounds, no hit of another key; whole again after one repair."""
    own = build(OWN)
    with concurrent.futures.ThreadPoolExecutor(PROCESSES) as pool:
        outs = list(
            pool.map(
                lambda one: run(own, one, OWN_RUNS, folder=tmp_path, seconds=LIMIT_S),
                range(seed, seed + PROCESSES),
            )
        )
    total = counted(outs)
    assert PROCESSES * OWN_RUNS == total["regions"]
    assert total["regions"] * 6 // 10 < total["repaired"]  # most were opened, not refused
    report("fuzz", engine="loop", **total, wrong_bytes=0, hangs=0)


def test_damaged_regions_guided_by_coverage(seed: int, tmp_path: Path) -> None:
    """The same runs, with inputs that libFuzzer grows towards code not reached before."""
    guided = build(GUIDED)

    def one(number: int) -> str:
        corpus = tmp_path / f"corpus{number}"
        corpus.mkdir()
        return run(
            guided,
            corpus,
            f"-runs={GUIDED_RUNS}",
            f"-seed={(seed + number) % (1 << 31) + 1}",
            "-max_len=320",
            "-len_control=0",
            "-timeout=10",
            "-verbosity=0",
            f"-artifact_prefix={tmp_path}/",
            folder=tmp_path,
            seconds=LIMIT_S,
        )

    with concurrent.futures.ThreadPoolExecutor(PROCESSES) as pool:
        total = counted(list(pool.map(one, range(PROCESSES))))
    assert PROCESSES * GUIDED_RUNS <= total["regions"]
    report("fuzz", engine="libFuzzer", **total, wrong_bytes=0, hangs=0)


def test_damage_during_use(seed: int, tmp_path: Path) -> None:
    """Bytes that change between two looks lead nowhere either."""
    out = run(build(DURING), DURING_SECONDS, seed, folder=tmp_path)
    figures = {name: int(value) for name, value in re.findall(r"(\w+) (\d+)", out)}
    assert figures["strikes"]
    assert figures["operations"]
    report("fuzz", engine="during", **figures, wrong_bytes=0, hangs=0)


# A mistake planted in the core: header, what stands there, what is put there, what must be said of it.
MISTAKES = {
    "an entry's record is not bounded": (
        "index.hpp",
        "record - geometry.record_count >= geometry.spill_record_count",
        "false",
        "AddressSanitizer",
    ),
    "a shift by a whole record number": (
        "blocks.hpp",
        "const uint64_t bit = uint64_t{1} << (record % 64);",
        "const uint64_t bit = uint64_t{1} << record;",
        "shift exponent",
    ),
    "a stride of 0 divides": (
        "view.hpp",
        "if (stride == 0) return 0;",
        "",
        "division by zero|FPE|SIGFPE",
    ),
    "a segment's capacity is not bounded": (
        "view.hpp",
        "return count < geometry.records_per_segment ? static_cast<uint32_t>(count)",
        "return true ? static_cast<uint32_t>(count * 8)",
        "AddressSanitizer|one place for two blocks",  # whichever comes first: the seed decides
    ),
    "a place is not bounded": (
        "client.hpp",
        "length > total || offset > total - length ||",
        "",
        "outside the payload|AddressSanitizer",
    ),
    "only the fingerprint is compared": (
        "index.hpp",
        "if (load_acquire(block.key[i]) != key.words[i]) return false;",
        "",
        "a hit of another key",
    ),
    "a candidate is looked at for ever": (
        "evict.hpp",
        "out = candidates_[taken_++];",
        "out = candidates_[taken_];",
        "hang",
    ),
    "a header is not compared with its file": (
        "header.hpp",
        "if (file_bytes <",
        "if (false && file_bytes <",
        "larger than its file",
    ),
}
SHORT = ("an entry's record is not bounded", "a shift by a whole record number")


@pytest.mark.parametrize("mistake", MISTAKES if LONG else SHORT)
def test_planted_mistake_is_found(mistake: str, seed: int, tmp_path: Path) -> None:
    """These very runs, over a core with one mistake, fail and say what was wrong."""
    header, before, after, words = MISTAKES[mistake]
    core = mutated(tmp_path / "core", header, before, after)
    program = build(Program(source=OWN.source, flags=(*OWN.flags, "-Wno-error"), core=core))
    with pytest.raises(AssertionError, match=words):
        run(program, seed, CONTROL_RUNS, folder=tmp_path, seconds=LIMIT_S, keep=False)
