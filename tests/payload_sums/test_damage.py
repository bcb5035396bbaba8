"""Is any payload taken for right that is not, when payloads, checksums and what leads to them are damaged at random?

Blocks with checksums are stored, hit at random, and read as an engine reads them: found and pinned, located, checked,
and, where the check has nothing against it, compared with what was stored. What is hit is one or several of the payload
(flipped bits, stray writes, another block's bytes, torn copies), the checksums' table and the block's
own record (its layout of checksums, its place, its length). Only a payload that is whole may be accepted, and a block
that nobody touched must be. Not found, and not done here: bytes, place and checksums of one block all put in the
place of another's (they are not bound to the key), and checksums and their layout both erased, which makes a
block one that was stored without: only `checksums: required` refuses it.
"""

from __future__ import annotations

import mmap
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import pytest
from numpy.typing import NDArray

from pegashm import _native
from pegashm.cache import Cache
from pegashm.keys import namespace_of
from pegashm.names import control_path
from pegashm.payload_sums import Checked, Part, Verdict, check, store_sums
from pegashm.units import KIB

from tests.arenas import Shape
from tests.figures import LONG, report

BLOCKS: Final = 250_000 if LONG else 20_000
ROUND: Final = 320  # blocks at a time
NBYTES: Final = 4096
SHAPE: Final = Shape(segment_bytes=256 * KIB, segments_per_arena=(8,))
NAMESPACE: Final = namespace_of({"test": "damage"}, label="damage")

# Offsets in a block's record, FORMAT.md.
RECORD_BYTES, PAYLOAD_OFFSET, PAYLOAD_BYTES, SUM_LAYOUT = 128, 48, 56, 88
SUM_BYTES = 64

pytestmark = pytest.mark.timeout(300)


@dataclass
class Scene:
    """One round: blocks of one cut, what was stored, and a hand on every byte there is."""

    cache: Cache
    control: mmap.mmap
    payloads: NDArray[np.uint8]
    header: dict[str, int]
    chance: random.Random
    handles: NDArray[np.uint64]
    offsets: NDArray[np.uint64]
    stored: NDArray[np.uint8]  # a row for each block
    parts: int

    def record(self, block: int) -> int:
        return int(self.handles[block]) & 0xFFFFFF

    def field(self, block: int, offset: int) -> int:
        return self.header["blocks_offset"] + self.record(block) * RECORD_BYTES + offset

    def word(self, block: int) -> int:
        """Where the checksum of one of its parts stands."""
        part = self.chance.randrange(self.parts)
        return self.header["sums_offset"] + self.record(block) * SUM_BYTES + 8 * part

    def any_word(self, block: int) -> int:
        return self.header["sums_offset"] + self.record(block) * SUM_BYTES + 8 * self.chance.randrange(8)  # fmt: skip

    def get(self, at: int) -> int:
        return int.from_bytes(self.control[at : at + 8], "little")

    def put(self, at: int, value: int) -> None:
        self.control[at : at + 8] = value.to_bytes(8, "little")

    def erased(self, block: int) -> bool:
        """Whether word and layout are gone, all 72 bytes: FORMAT.md's one way to become a block stored without."""
        words = self.header["sums_offset"] + self.record(block) * SUM_BYTES
        return not any(self.control[words : words + SUM_BYTES]) and not self.get(
            self.field(block, SUM_LAYOUT)
        )

    def flip(self, at: int, bits: int) -> None:
        value = self.get(at)
        for bit in self.chance.sample(range(64), bits):
            value ^= 1 << bit
        self.put(at, value)

    def payload(self, block: int) -> NDArray[np.uint8]:
        start = int(self.offsets[block])
        return self.payloads[start : start + NBYTES]

    def other(self, block: int, odd: int = 0) -> int:
        """Another block. Checksums come from odd distances, all else from even ones: never from one block."""
        return (block + odd + 2 * self.chance.randrange(1, ROUND // 2)) % ROUND


# -- what happens to a block -----------------------------------------------------------------------------

Hit = Callable[[Scene, int], None]


def bits_flipped(scene: Scene, block: int) -> None:
    payload = scene.payload(block)
    for _ in range(scene.chance.choice((1, 1, 2, 3, 16))):
        payload[scene.chance.randrange(NBYTES)] ^= 1 << scene.chance.randrange(8)


def word_written(scene: Scene, block: int) -> None:
    start = 8 * scene.chance.randrange(NBYTES // 8)
    scene.payload(block)[start : start + 8] = list(scene.chance.randbytes(8))


def line_zeroed(scene: Scene, block: int) -> None:
    start = 64 * scene.chance.randrange(NBYTES // 64)
    scene.payload(block)[start : start + 64] = 0


def lines_swapped(scene: Scene, block: int) -> None:
    payload, (one, two) = scene.payload(block), scene.chance.sample(range(NBYTES // 64), 2)
    kept = payload[64 * one : 64 * one + 64].copy()
    payload[64 * one : 64 * one + 64] = payload[64 * two : 64 * two + 64]
    payload[64 * two : 64 * two + 64] = kept


def torn(scene: Scene, block: int) -> None:
    """Its end is another block's, as of a copy that was cut short."""
    start = scene.chance.randrange(NBYTES)
    scene.payload(block)[start:] = scene.stored[scene.other(block)][start:]


def replaced(scene: Scene, block: int) -> None:
    scene.payload(block)[:] = scene.stored[scene.other(block)]


def emptied(scene: Scene, block: int) -> None:
    scene.payload(block)[:] = scene.chance.choice((0, 255))


def checksum_flipped(scene: Scene, block: int) -> None:
    scene.flip(scene.word(block), scene.chance.choice((1, 1, 2, 8, 32)))


def checksum_written(scene: Scene, block: int) -> None:
    scene.put(scene.any_word(block), scene.chance.getrandbits(64) or 1)


def checksum_of_another(scene: Scene, block: int) -> None:
    start = scene.header["sums_offset"] + scene.record(scene.other(block, 1)) * SUM_BYTES
    target = scene.header["sums_offset"] + scene.record(block) * SUM_BYTES
    scene.control[target : target + SUM_BYTES] = scene.control[start : start + SUM_BYTES]


def checksum_erased(scene: Scene, block: int) -> None:
    scene.put(scene.word(block), 0)


def layout_flipped(scene: Scene, block: int) -> None:
    # Above part_count stands the mark of damage.
    at = scene.field(block, SUM_LAYOUT)
    scene.put(at, scene.get(at) ^ 1 << scene.chance.choice([*range(48), *list(range(48, 64)) * 4]))


def layout_written(scene: Scene, block: int) -> None:
    nbytes = scene.chance.choice((NBYTES, NBYTES // 2, NBYTES // 4, scene.chance.getrandbits(48)))
    count = scene.chance.choice((0, 1, 2, 4, 8, 255))
    scene.put(scene.field(block, SUM_LAYOUT), nbytes | count << 48)


def layout_erased(scene: Scene, block: int) -> None:
    scene.put(scene.field(block, SUM_LAYOUT), 0)


def place_flipped(scene: Scene, block: int) -> None:
    scene.flip(scene.field(block, PAYLOAD_OFFSET), scene.chance.choice((1, 1, 2)))


def place_of_another(scene: Scene, block: int) -> None:
    scene.put(scene.field(block, PAYLOAD_OFFSET), int(scene.offsets[scene.other(block)]))


def length_flipped(scene: Scene, block: int) -> None:
    scene.flip(scene.field(block, PAYLOAD_BYTES), 1)


PAYLOAD_HITS: Final[tuple[Hit, ...]] = (
    bits_flipped, bits_flipped, bits_flipped, word_written, line_zeroed, lines_swapped, torn, replaced, emptied,
)  # fmt: skip
RECORD_HITS: Final[tuple[Hit, ...]] = (
    checksum_flipped, checksum_flipped, checksum_written, checksum_of_another, checksum_erased, layout_flipped,
    layout_flipped, layout_written, layout_erased, place_flipped, place_of_another, length_flipped,
)  # fmt: skip


def hit(scene: Scene, block: int) -> list[Hit]:
    """What was done to it: to a third of all blocks nothing, to the others one to three things."""
    kind = scene.chance.random()
    hits: list[Hit] = []
    if kind < 1 / 3:
        return hits
    if kind < 0.75:
        hits.append(scene.chance.choice(PAYLOAD_HITS))
    if kind > 0.55:
        some = scene.chance.choices(RECORD_HITS, k=scene.chance.choice((1, 1, 2)))
        # Erased with its words as well it would be a block stored without checksums.
        hits += [layout_erased] if layout_erased in some else some
    for one in hits:
        one(scene, block)
    return hits


# -- the rounds ------------------------------------------------------------------------------------------


@pytest.fixture
def cache(arena_name: Callable[..., str]) -> Iterator[Cache]:
    with Cache.attach(arena_name(SHAPE), namespace=NAMESPACE) as attached:
        yield attached


@pytest.fixture
def control(cache: Cache) -> Iterator[mmap.mmap]:
    descriptor = os.open(control_path(cache.name), os.O_RDWR)
    mapped = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
    os.close(descriptor)
    yield mapped
    mapped.close()


def stored_round(cache: Cache, control: mmap.mmap, chance: random.Random) -> Scene:
    """So many published and pinned blocks, each with the checksums of all its parts."""
    region = cache.region
    keys = [chance.randbytes(32) + bytes(4) for _ in range(ROUND)]
    handles, outcomes = cache.claim(keys, NBYTES)
    assert not outcomes.any()
    offsets, _ = cache.locate(handles)
    payloads = np.frombuffer(region.payload(0, region.payload_bytes), dtype=np.uint8)
    stored = np.frombuffer(chance.randbytes(ROUND * NBYTES), dtype=np.uint8).reshape(ROUND, NBYTES)
    for offset, row in zip(offsets.tolist(), stored, strict=True):
        payloads[offset : offset + NBYTES] = row
    parts = chance.choice((1, 1, 2, 4, 8))
    for index in range(parts):
        part = Part(index=index, count=parts, nbytes=NBYTES // parts)
        assert store_sums(region, handles, offsets, part).all()
    assert not cache.publish(handles).any()
    assert not cache.pin(handles).any()
    header = {name: int(region.header[name]) for name in ("blocks_offset", "sums_offset")}
    return Scene(
        cache, control, payloads, header, chance, handles, offsets, stored, parts
    )  # fmt: skip


def checked_alone(scene: Scene, handle: NDArray[np.uint64], part: Part | None) -> Checked | None:
    """As a worker checks one block; None when it cannot be located any more."""
    offset, nbytes = scene.cache.locate(handle)
    if not nbytes[0] or int(offset[0]) + NBYTES > scene.cache.region.payload_bytes:
        return None
    return check(scene.cache.region, handle, offset, part)


def judge(scene: Scene, done: list[list[Hit]], figures: Counter[str]) -> None:
    """Read each block as engines do: all of it, its share of it, or in halves."""
    for block, hits in enumerate(done):
        cut = scene.chance.choice((1, 1, 2, scene.parts))
        readers: list[Part | None] = [None] if scene.chance.random() < 0.2 else [
            Part(index=index, count=cut, nbytes=NBYTES // cut) for index in range(cut)
        ]  # fmt: skip
        handle = scene.handles[block : block + 1]
        verdicts = []
        whole = True
        for reader in readers:
            checked = checked_alone(scene, handle, reader)
            if checked is None:
                verdicts.append(Verdict.MISMATCH)
                continue
            verdicts.append(Verdict(int(checked.verdicts[0])))
            start, end = (0, NBYTES) if reader is None else (reader.start, reader.end)
            place = int(scene.cache.locate(handle)[0][0])
            right = np.array_equal(
                scene.payloads[place + start : place + end], scene.stored[block][start:end]
            )
            whole &= right
        figures["blocks"] += 1
        figures["damaged"] += bool(hits)
        figures["payloads_hit"] += not whole
        # What one rank refuses is loaded by none; `checksums: on` uses what was stored without any as well.
        refused = Verdict.MISMATCH in verdicts
        figures["refused"] += refused
        figures["without"] += not refused and Verdict.NO_SUM in verdicts
        figures["wrong_bytes"] += not refused and not whole and not scene.erased(block)
        if not hits:
            assert set(verdicts) == {Verdict.OK}, (
                f"block {block}: {verdicts}, and nobody touched it"
            )
        assert not figures["wrong_bytes"], (
            f"block {block} accepted: {[one.__name__ for one in hits]}, {verdicts}, "
            f"stored in {scene.parts} parts, read as {readers}"
        )


def clear(scene: Scene) -> None:
    """The records as they were, and the blocks evicted."""
    for block, offset in enumerate(scene.offsets.tolist()):
        scene.put(scene.field(block, PAYLOAD_OFFSET), offset)
        scene.put(scene.field(block, PAYLOAD_BYTES), NBYTES)
        # As if all words were in use, for the next claimer to clear.
        scene.put(scene.field(block, SUM_LAYOUT), 1 << 48 | NBYTES)
    scene.cache.unpin(scene.handles)
    assert (scene.cache.evict(scene.handles) == _native.OK).all()


def test_no_wrong_payload_is_accepted(
    cache: Cache, control: mmap.mmap, chance: random.Random
) -> None:
    figures: Counter[str] = Counter()
    while figures["blocks"] < BLOCKS:
        scene = stored_round(cache, control, chance)
        done = [hit(scene, block) for block in range(ROUND)]
        judge(scene, done, figures)
        clear(scene)
    names = ("blocks", "damaged", "payloads_hit", "refused", "without", "wrong_bytes")
    report("sums", **{name: figures[name] for name in names}, hangs=0)
    assert figures["payloads_hit"] > BLOCKS // 4
    assert figures["refused"] > BLOCKS // 3


def test_a_checksum_beside_a_layout_that_does_not_know_it(
    cache: Cache, control: mmap.mmap, chance: random.Random
) -> None:
    """A layout that was erased, lost or won a part does not make a block one that was stored without."""
    for left in range(8):
        scene = stored_round(cache, control, chance)
        for block in range(ROUND):
            scene.put(scene.field(block, SUM_LAYOUT), min(left, scene.parts - 1) << 48 | NBYTES // scene.parts if left else 0)  # fmt: skip
        checked = cache.verify(scene.handles)
        assert (checked.verdicts == Verdict.MISMATCH).all()
        clear(scene)
