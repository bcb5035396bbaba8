"""Are these the bytes that were stored? Checksums (XXH3-64) of payloads, and what follows when they differ.

A writer stores the checksum of each part that it copied into a claimed block (`store_sums`), before it
reports the part. A reader of a pinned block asks `check` before it uses the bytes; what does not hold is
for `condemn`: from then on nobody can pin the block, and whoever stores its key next evicts it first.
Where checksums lie and how long they are valid is said in `_core/FORMAT.md`, "Checksums".

Called by the connector's workers, by `Cache` and `Copyist`, by fsck; by all that move payloads between
hosts or devices. Checksums find damage (a flipped bit, a stray write, a torn copy), not malice: whoever may
write to the arena may write the checksum too. Hashing runs without the GIL.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any, Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from pegashm import _native
from pegashm.errors import ConfigError

__all__ = [
    "PARTS_MAX",
    "Checked",
    "Checksums",
    "Damage",
    "Hasher",
    "Part",
    "Verdict",
    "check",
    "checksums_of",
    "condemn",
    "has_sums",
    "payload_sum",
    "store_sums",
    "verify",
]

PARTS_MAX: Final = _native.SUM_COUNT

_Handles = NDArray[np.uint64]
_Offsets = NDArray[np.uint64]


class Checksums(Enum):
    """What an engine does about checksums of blocks in memory."""

    OFF = "off"  # stores none, looks at none
    ON = "on"  # stores them, and verifies what has them
    REQUIRED = "required"  # and takes a block without them for a miss


class Verdict(IntEnum):
    """What `check` says of one block."""

    OK = 0
    MISMATCH = 1  # other bytes than were stored, or marked as such before
    NO_SUM = 2  # nothing to compare with: stored without, or the handle's life is over


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One writer's share of a payload: bytes [index * nbytes, (index + 1) * nbytes), `count` shares in all."""

    index: int
    count: int
    nbytes: int

    def __post_init__(self) -> None:
        if not 1 <= self.count <= PARTS_MAX:
            raise ConfigError(
                f"a block can have checksums for 1 to {PARTS_MAX} parts, this one is written in {self.count}: "
                "turn them off (checksums: off)"
            )
        if not 0 <= self.index < self.count or self.nbytes < 1:
            raise ConfigError(f"part {self.index} of {self.count}, of {self.nbytes} bytes")

    @property
    def start(self) -> int:
        return self.index * self.nbytes

    @property
    def end(self) -> int:
        return self.start + self.nbytes


@dataclass(frozen=True, slots=True)
class Damage:
    """One part whose bytes are not those that were stored. `part` -1: the block had been marked before."""

    handle: int
    offset: int
    part: int
    expected: int
    found: int

    def __str__(self) -> str:
        block = f"block {self.handle & 0xFFFFFF} (handle {self.handle:#x}) at payload offset {self.offset}"
        if self.part < 0:
            return f"{block} is marked as damaged"
        return (
            f"{block}, part {self.part}: the bytes have checksum {self.found:016x}, "
            f"those stored had {self.expected:016x}"
        )


@dataclass(frozen=True, slots=True)
class Checked:
    """A verdict for each block, in order, and what was wrong with those that do not hold."""

    verdicts: NDArray[np.uint8]
    damages: tuple[Damage, ...]

    @property
    def all_ok(self) -> bool:
        return not self.verdicts.any()


class Hasher:
    """Hashes runs of payload bytes with a fixed number of threads, the caller's own among them."""

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads - 1, "pegashm-hash") if threads > 1 else None

    def sums(self, region: _native.Region, runs: Sequence[tuple[int, int]]) -> list[int]:
        """The checksum of each (payload offset, bytes). ValueError for one outside the arenas."""
        if self._pool is None or len(runs) < 2:
            return [_sum_at(region, run) for run in runs]
        cuts = [len(runs) * n // self._threads for n in range(self._threads + 1)]
        lots = [runs[start:end] for start, end in itertools.pairwise(cuts)]
        others = [self._pool.submit(_sums_at, region, lot) for lot in lots[1:]]
        done = _sums_at(region, lots[0])
        for other in others:
            done += other.result()
        return done

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()


_INLINE: Final = Hasher()


def checksums_of(value: object, name: str = "checksums") -> Checksums:
    """A setting as people write it; ConfigError names it, what it was and what would do."""
    if isinstance(value, bool):
        return Checksums.ON if value else Checksums.OFF
    try:
        return Checksums(str(value).strip().lower())
    except ValueError:
        choices = ", ".join(choice.value for choice in Checksums)
        raise ConfigError(f"{name} must be one of {choices}, got {value!r}") from None


def payload_sum(payload: bytes | bytearray | memoryview) -> int:
    """XXH3-64 of some bytes; never 0, which means "no checksum"."""
    return xxhash.xxh3_64_intdigest(payload) or 1


def store_sums(
    region: _native.Region,
    handles: _Handles,
    offsets: _Offsets,
    part: Part,
    hasher: Hasher = _INLINE,
) -> NDArray[np.bool_]:
    """Hash `part` of each claimed block, as it lies in the arena now, and keep the checksum.

    After the copy and before the part is reported. False where the claim is over.
    """
    runs = [(offset + part.start, part.nbytes) for offset in offsets.tolist()]
    sums = np.array(hasher.sums(region, runs), dtype=np.uint64)
    return _native.write_sums(
        region,
        handles,
        sums,
        part=part.index,
        part_count=part.count,
        part_bytes=part.nbytes,
    )


def check(
    region: _native.Region,
    handles: _Handles,
    offsets: _Offsets,
    part: Part | None = None,
    hasher: Hasher = _INLINE,
) -> Checked:
    """Compare the bytes of pinned blocks with their checksums; `part`: only what it covers, None: all.

    Says nothing about generations: whoever is not sure of its pins asks `generations_hold` after this.
    """
    sums, part_bytes, part_counts, damaged = _native.read_sums(region, handles)
    verdicts = np.zeros(len(handles), dtype=np.uint8)
    damages: list[Damage] = []
    wanted: list[tuple[int, int]] = []  # (block, part) of each run
    runs: list[tuple[int, int]] = []
    for block, (nbytes, count) in enumerate(
        zip(part_bytes.tolist(), part_counts.tolist(), strict=True)
    ):
        # Within a namespace all writers and readers share the same bytes: no writer leaves some of them out.
        short = count != 0 and part is not None and part.end > count * nbytes
        if damaged[block] or short:
            verdicts[block] = Verdict.MISMATCH
            damages.append(Damage(int(handles[block]), int(offsets[block]), -1, 0, 0))
            continue
        if count == 0:
            verdicts[block] = Verdict.NO_SUM
        for index in _parts_wanted(part, nbytes, count):
            if sums[block, index] == 0:
                verdicts[block] = Verdict.NO_SUM
            else:
                wanted.append((block, index))
                runs.append((int(offsets[block]) + index * nbytes, nbytes))
    for (block, index), found in zip(wanted, hasher.sums(region, runs), strict=True):
        expected = int(sums[block, index])
        if found != expected:
            verdicts[block] = Verdict.MISMATCH
            damages.append(Damage(int(handles[block]), int(offsets[block]), index, expected, found))
    return Checked(verdicts, tuple(damages))


def condemn(region: _native.Region, damages: Sequence[Damage]) -> int:
    """Mark these blocks, so that nobody pins them again; how many nobody had marked before.

    They are counted as `payloads_damaged`. Their memory comes back when their key is stored again, when
    somebody evicts them by handle, or by age: a block under pins cannot be evicted at once.
    """
    handles = np.array(sorted({damage.handle for damage in damages}), dtype=np.uint64)
    marked = int(_native.mark_damaged(region, handles).sum())
    if marked:
        region.count("payloads_damaged", marked)
    return marked


def has_sums(region: _native.Region, handles: _Handles) -> NDArray[np.bool_]:
    """Whether each block has a checksum for each of its parts; reads no payload."""
    sums, _, part_counts, _ = _native.read_sums(region, handles)
    present = np.asarray((sums != 0).sum(axis=1), dtype=np.uint32)
    return np.asarray((part_counts != 0) & (present >= part_counts), dtype=np.bool_)


def verify(region: _native.Region, block: Any) -> Verdict:
    """Compare one READY block with its checksums; `block`: a row of `region.blocks()`. Marks nothing.

    For scrubs of regions that others use: a block that is evicted meanwhile counts as NO_SUM. A payload
    that lies outside the arenas is a MISMATCH.
    """
    handle = np.array([int(block["generation"]) << 24 | int(block["record"])], dtype=np.uint64)
    offset = np.array([int(block["payload_offset"])], dtype=np.uint64)
    try:
        checked = check(region, handle, offset)
    except ValueError:
        return Verdict.MISMATCH
    if not _native.generations_hold(region, handle)[0]:
        return Verdict.NO_SUM
    return Verdict(int(checked.verdicts[0]))


def _parts_wanted(part: Part | None, nbytes: int, count: int) -> range:
    """Which of a block's parts cover the bytes of `part`: one, when reader and writer cut alike."""
    if part is None or count == 0:
        return range(count)
    first = part.start // nbytes
    last = -(-part.end // nbytes)
    return range(min(first, count), min(last, count))


def _sums_at(region: _native.Region, runs: Sequence[tuple[int, int]]) -> list[int]:
    return [_sum_at(region, run) for run in runs]


def _sum_at(region: _native.Region, run: tuple[int, int]) -> int:
    return payload_sum(region.payload(*run))
