"""Is everything right after a death? What the living see at once, and what one repair must restore.

Every check answers with complaints, none when all is well. The raw words (free bits, bytes of
namespaces) are read through a mapping of our own, by the offsets in the header. Runs in the
survivor, with the release build.
"""

from __future__ import annotations

import mmap
import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pegashm import _native, fsck
from pegashm.cache import Cache
from pegashm.names import control_path

from tests.crash.blocks import BIG, BLOCKS, SMALL, numbered, store, wrong_payloads

__all__ = ["Verdict", "judge"]

FREE = 0
HANG_SECONDS = 5.0  # of a call that takes microseconds, on a machine that may be busy
NAMESPACE_BYTES, RESIDENT_OFFSET, BLOCK_BYTES, PINS_OFFSET = 256, 56, 128, 64
PROBE, SMALL_FILL, BIG_FILL = 399, range(200, 300), range(310, 399)


@dataclass(slots=True)
class Verdict:
    """What was wrong after one death, and how much was looked at."""

    complaints: list[str] = field(default_factory=list)
    wrong_bytes: int = 0
    leaked_blocks: int = 0
    hangs: int = 0
    reads: int = 0


def judge(survivor: Cache, *, probe: bool) -> Verdict:
    """All of it, in order: the living go on, one repair, a second finds nothing, no block is lost.

    `probe`: whether the living store and evict before the repair. Both matter: it shows that they can, and
    it hides what a change of theirs puts right by the way.
    """
    verdict = Verdict()
    if probe:
        goes_on(survivor, verdict)
    repaired(survivor, verdict)
    no_block_lost(survivor, verdict)
    return verdict


def goes_on(survivor: Cache, verdict: Verdict) -> None:
    """Beside the debris: look all up, store one, have it, evict it."""
    began = time.monotonic()
    read_all(survivor, verdict)
    outcome = store(survivor, [PROBE])[0]
    if outcome == _native.OK:
        handles, found = survivor.find(numbered([PROBE]), pin=True)
        if found[0] != _native.OK:
            verdict.complaints.append("beside the debris: a block just stored is not found")
        read_all(survivor, verdict)
        survivor.unpin(handles)
        survivor.touch(handles)
        evicted = survivor.evict(handles)[0]
        # A reader that died with its pin on that record keeps it until it is reaped: death row 7.
        if evicted != _native.OK and not (evicted == _native.PINNED and pins_of_others(survivor)):
            name = _native.STATUS_NAMES[int(evicted)]
            verdict.complaints.append(f"beside the debris: our own block cannot be evicted: {name}")
    else:
        name = _native.STATUS_NAMES[int(outcome)]
        verdict.complaints.append(f"beside the debris: a claim answered {name}")
    if time.monotonic() - began > HANG_SECONDS:
        verdict.hangs += 1
        verdict.complaints.append(f"beside the debris: {time.monotonic() - began:.1f} s")


def repaired(survivor: Cache, verdict: Verdict) -> None:
    """One reap makes everything as if nobody had died; a second, and a rebuild, find nothing.

    What a dead transport worker had listed is forgotten by the next one, first of all.
    """
    survivor.reap_dead()
    _native.SpillTable(survivor.region).clear()
    _native.RemoteTable(survivor.region).clear()
    complain_of_state(survivor, verdict)
    read_all(survivor, verdict)
    again = survivor.reap_dead()
    rebuilt = {what: count for what, count in survivor.region.repair().items() if count}
    if again or rebuilt:
        verdict.complaints.append(f"a second repair found {again} dead clients and {rebuilt}")


def complain_of_state(survivor: Cache, verdict: Verdict) -> None:
    region = survivor.region
    tally = region.tally()
    if tally["claimed"] or tally["evicting"] or tally["damaged"]:
        verdict.complaints.append(f"after the repair: {tally}")
    slots = [client["slot"] for client in region.clients()]
    if slots != [survivor.slot]:
        verdict.complaints.append(f"after the repair: clients {slots} are attached")
    strange = [
        s["state"] for s in region.segments() if s["state"] not in ("assigned", "unassigned")
    ]
    if strange:
        verdict.complaints.append(f"after the repair: segments are {strange}")
    if pins := pins_of_others(survivor):
        verdict.complaints.append(f"after the repair: pins of the dead: {pins:#x}")
    verdict.complaints += wrong_words(survivor, control_bytes(survivor))
    report = fsck.check(survivor.arena)
    if not report.clean:
        verdict.complaints.append(f"after the repair: fsck says {report.as_json()['findings']}")


def control_bytes(survivor: Cache) -> NDArray[np.uint8]:
    """A copy of the whole control region."""
    with (
        open(control_path(survivor.name), "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as control,
    ):
        return np.frombuffer(control[:], dtype=np.uint8)


def pins_of_others(survivor: Cache) -> int:
    """All pin bits of every record, FREE ones too, but our own."""
    header = survivor.region.header
    records = control_bytes(survivor)[header["blocks_offset"] :]
    rows = records[: header["record_count"] * BLOCK_BYTES].reshape(-1, BLOCK_BYTES)
    words = rows[:, PINS_OFFSET : PINS_OFFSET + 16].copy().view(np.uint64)
    low, high = np.bitwise_or.reduce(words, axis=0).tolist()
    return int((low | high << 64) & ~(1 << survivor.slot))


def wrong_words(survivor: Cache, raw: NDArray[np.uint8]) -> list[str]:
    """Free bits that are missing, and namespaces whose bytes are not the sum of their blocks."""
    region, header = survivor.region, survivor.region.header
    complaints = []
    records = header["record_count"]
    states = raw[header["blocks_offset"] :][: records * BLOCK_BYTES : BLOCK_BYTES]
    bits = np.unpackbits(
        raw[header["free_bits_offset"] :][: records // 8], bitorder="little"
    ).astype(bool)
    for segment in region.segments():
        first = segment["index"] * header["records_per_segment"]
        there = slice(first, first + segment["blocks"])
        lost = np.flatnonzero((states[there] == FREE) & ~bits[there])
        if lost.size:
            complaints.append(
                f"after the repair: free bits of {(first + lost).tolist()} are missing"
            )
    blocks = region.blocks()
    for entry in region.namespaces():
        offset = header["namespaces_offset"] + (entry["id"] & 0xFFFF) * NAMESPACE_BYTES
        resident = int(raw[offset + RESIDENT_OFFSET :][:8].view(np.uint64)[0])
        own = blocks["payload_bytes"][blocks["namespace_id"] == entry["id"]]
        expected = int(np.maximum((own + 4095) // 4096 * 4096, SMALL).sum())
        if resident != expected:
            complaints.append(
                f'after the repair: namespace "{entry["label"]}" says {resident} bytes, has {expected}'
            )
    return complaints


def no_block_lost(survivor: Cache, verdict: Verdict) -> None:
    """The whole arena can be claimed, first in small blocks and then in big ones."""
    handles, _ = survivor.find(numbered(range(400)))
    for handle in handles[handles != 0]:  # what the survivor pinned in the course of the operation
        survivor.unpin(np.array([handle], dtype=np.uint64))
    for numbers, nbytes in ((SMALL_FILL, SMALL), (BIG_FILL, BIG)):
        wanted = BLOCKS * SMALL // nbytes
        claimed, outcomes = survivor.claim(numbered(numbers[:wanted]), nbytes)
        lost = wanted - int((outcomes == _native.OK).sum())
        if lost:
            verdict.leaked_blocks += lost
            names = [_native.STATUS_NAMES[int(outcome)] for outcome in outcomes]
            verdict.complaints.append(f"{lost} of {wanted} blocks of {nbytes} are lost: {names}")
        survivor.abandon(claimed)


def read_all(survivor: Cache, verdict: Verdict) -> None:
    wrong, found = wrong_payloads(survivor)
    verdict.reads += found
    verdict.wrong_bytes += len(wrong)
    verdict.complaints += wrong
