"""What is in a spill file, and does all of it check? For `pegashm fsck --spill` and `pegashm-dump --spill`.

Reads only, takes no lock, and works on a file in use: what a transport worker overwrites meanwhile is left out, since
a region whose header has changed is not reported. By default headers alone are read, as at open; with
`payloads` every block is read and compared with its checksum. There is nothing to repair: what does not check is
never used, and is overwritten when the ring comes by.
"""

from __future__ import annotations

import errno
import mmap
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from pegashm.liveness import holder_alive
from pegashm.spill.checksums import checksum_at, seeds_of
from pegashm.spill.disk import Disk
from pegashm.spill.format import (
    PAGE_BYTES,
    RegionHeader,
    Superblock,
    strides_of,
    unpack_region_header,
)
from pegashm.spill.opening import LOCK_BYTE, OpenFile, open_file
from pegashm.spill.scan import CHAINS_AT_ONCE, Chain, Lot, read_chains, read_regions
from pegashm.units import format_bytes

__all__ = ["Survey", "survey"]

Progress = Callable[[str, int, int], None]
_FINDINGS_MAX: Final = 100
_READ_AT_ONCE_BYTES: Final = 32 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """`torn`: a write that a crash or power loss cut short, as is normal. `damage`: bytes have changed."""

    kind: str  # "torn" | "damage" | "unreadable"
    offset: int
    message: str


@dataclass(slots=True)
class Namespaced:
    """What one namespace has in the file."""

    label: str
    records: int = 0
    payload_bytes: int = 0


@dataclass(slots=True)
class Survey:
    """What was seen. `superseded`: records whose key was written again later."""

    path: str
    superblock: Superblock
    in_use: bool
    regions_used: int = 0
    frames: int = 0
    records: int = 0
    superseded: int = 0
    payload_bytes: int = 0
    payloads_checked: int = 0
    namespaces: dict[bytes, Namespaced] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def exit_status(self) -> int:
        """0: nothing is wrong; a torn write is not. 1: bytes have changed, or could not be read."""
        return 1 if self.counts["damage"] or self.counts["unreadable"] else 0

    def add(self, finding: Finding) -> None:
        self.counts[finding.kind] += 1
        if len(self.findings) < _FINDINGS_MAX:
            self.findings.append(finding)

    def as_json(self) -> dict[str, Any]:
        return {
            "tool": "pegashm-fsck",
            "spill": self.path,
            "file_id": self.superblock.file_id.hex(),
            "file_bytes": self.superblock.file_bytes,
            "region_bytes": self.superblock.region_bytes,
            "regions": self.superblock.region_count,
            "regions_used": self.regions_used,
            "in_use": self.in_use,
            "frames": self.frames,
            "records": self.records,
            "superseded": self.superseded,
            "payload_bytes": self.payload_bytes,
            "payloads_checked": self.payloads_checked,
            "namespaces": [
                {
                    "fingerprint": fingerprint.hex(),
                    "label": one.label,
                    "records": one.records,
                    "payload_bytes": one.payload_bytes,
                }
                for fingerprint, one in self.namespaces.items()
            ],
            "counts": dict(self.counts),
            "findings": [
                {"kind": one.kind, "offset": one.offset, "message": one.message}
                for one in self.findings
            ],
            "exit_status": self.exit_status,
        }

    def lines(self) -> list[str]:
        """For people."""
        block = self.superblock
        use = "in use by a transport worker" if self.in_use else "not in use"
        region, payload = format_bytes(block.region_bytes), format_bytes(self.payload_bytes)
        again = f", {self.superseded} of them written again later" if self.superseded else ""
        lines = [
            f"spill file {self.path}: {format_bytes(block.file_bytes)}, {use}",
            f"  regions     {self.regions_used} of {block.region_count} used, {region} each",
            f"  records     {self.records} in {self.frames} frames, {payload} of payload{again}",
        ]
        if self.payloads_checked:
            lines.append(f"  payloads    {self.payloads_checked} read and compared")
        lines += [
            f"  namespace   {one.label or fingerprint.hex()[:16]}: {one.records} records, "
            f"{format_bytes(one.payload_bytes)}"
            for fingerprint, one in self.namespaces.items()
        ]
        lines += [f"{one.kind:>11} at {one.offset}: {one.message}" for one in self.findings]
        left = self.counts.total() - len(self.findings)
        lines += [f"            ... and {left} more"] if left else []
        if self.exit_status:
            lines.append(
                "What does not check is never used: it costs hits, no more. The device has changed or lost bytes; "
                "look at its health (smartctl -a), and give it up if this goes on"
            )
        else:
            lines.append("clean")
        return lines


def survey(path: str, *, payloads: bool = False, progress: Progress | None = None) -> Survey:
    """Look at all of a file. Raises as `open_file`: FormatError, ResourceError, ArenaMissingError."""
    opened = open_file(path, writable=False)
    disk = Disk(opened.descriptor, direct=opened.direct)
    try:
        return _Surveyor(opened, disk, payloads, progress or _quiet).run()
    finally:
        disk.close()


def _quiet(_what: str, _done: int, _total: int) -> None:
    """Nobody watches."""


class _Surveyor:
    """One walk; holds what its steps share."""

    def __init__(self, opened: OpenFile, disk: Disk, payloads: bool, progress: Progress) -> None:
        self.disk = disk
        self.payloads = payloads
        self.progress = progress
        self.result = Survey(
            opened.path, opened.superblock, in_use=holder_alive(opened.descriptor, LOCK_BYTE)
        )
        self.seen: set[tuple[bytes, bytes]] = set()

    def run(self) -> Survey:
        block = self.result.superblock
        regions = read_regions(self.disk, block)
        if regions.unreadable:
            self.result.add(
                Finding("unreadable", 0, f"{regions.unreadable} region headers cannot be read")
            )
        headers = regions.in_log_order()
        self.result.regions_used = len(headers)
        newest = headers[-1].sequence if headers else 0
        for first in range(0, len(headers), CHAINS_AT_ONCE):
            self.progress("reading records", first, len(headers))
            for chain in read_chains(self.disk, block, headers[first : first + CHAINS_AT_ONCE]):
                self._judge_chain(chain, newest)
                for lot in chain.lots:
                    self._book(lot)
                    if self.payloads:
                        self._compare(lot, chain)
        return self.result

    def _judge_chain(self, chain: Chain, newest: int) -> None:
        self.result.frames += chain.frames
        if not (chain.damaged or chain.unreadable) or not self._still(chain):
            return
        if chain.unreadable:
            self.result.add(Finding("unreadable", chain.end, "a frame's page cannot be read"))
        elif chain.sequence == newest:
            self.result.add(Finding("torn", chain.end, "the newest frame was not written whole"))
        else:
            self.result.add(
                Finding(
                    "damage", chain.end, f"a frame's page does not check (region {chain.region})"
                )
            )

    def _book(self, lot: Lot) -> None:
        fingerprint = lot.namespace.fingerprint
        one = self.result.namespaces.setdefault(fingerprint, Namespaced(lot.namespace.label))
        one.records += len(lot.records)
        nbytes = int(lot.records["payload_bytes"].sum())
        one.payload_bytes += nbytes
        self.result.records += len(lot.records)
        self.result.payload_bytes += nbytes
        keys = np.ascontiguousarray(lot.records["key"]).tobytes()
        groups = lot.records["group"].tolist()
        for at, group in enumerate(groups):
            name = (fingerprint, keys[32 * at : 32 * at + 32] + group.to_bytes(2, "big"))
            self.result.superseded += name in self.seen
            self.seen.add(name)

    def _compare(self, lot: Lot, chain: Chain) -> None:
        records = lot.records
        strides = strides_of(records["payload_bytes"].astype(np.uint64))
        ends = np.cumsum(strides)
        first = 0
        while first < len(records):
            before = int(ends[first - 1]) if first else 0
            last = max(first + 1, int(np.searchsorted(ends, before + _READ_AT_ONCE_BYTES, "right")))
            self._compare_some(lot, records[first:last], strides[first:last], chain)
            first = last

    def _compare_some(self, lot: Lot, records: Any, strides: Any, chain: Chain) -> None:
        with mmap.mmap(-1, int(strides.sum())) as memory:
            held = np.frombuffer(memory, np.uint8)
            starts = int(held.ctypes.data) + np.concatenate(([0], np.cumsum(strides)[:-1]))
            starts = starts.astype(np.uint64)
            offsets = records["file_offset"].astype(np.uint64)
            errors = self.disk.transfer(offsets, starts, strides, write=False)
            seeds = seeds_of(lot.namespace.fingerprint, records)
            for row, start, seed, error in zip(
                records, starts.tolist(), seeds, errors.tolist(), strict=True
            ):
                self._judge_payload(row, start, seed, error, chain)
            del held
        self.result.payloads_checked += len(records)

    def _judge_payload(self, row: Any, start: int, seed: int, error: int, chain: Chain) -> None:
        found = 0 if error else checksum_at(start, int(row["payload_bytes"]), seed)
        if not error and found == int(row["checksum"]):
            return
        if not self._still(chain):
            return
        key = bytes(row["key"][: row["key_bytes"]]).hex()
        if error:
            why = f"block {key} cannot be read: {errno.errorcode.get(error, error)}"
            self.result.add(Finding("unreadable", int(row["file_offset"]), why))
        else:
            why = f"block {key}: checksum {found:016x}, stored was {int(row['checksum']):016x}"
            self.result.add(Finding("damage", int(row["file_offset"]), why))

    def _still(self, chain: Chain) -> bool:
        """Whether the region is still in the use in which it was walked."""
        return self._header(chain.region) == chain.sequence

    def _header(self, region: int) -> int | None:
        block = self.result.superblock
        with mmap.mmap(-1, PAGE_BYTES) as memory:
            held = np.frombuffer(memory, np.uint8)
            one = np.array([block.region_start(region)], np.uint64)
            address = np.array([held.ctypes.data], np.uint64)
            size = np.array([PAGE_BYTES], np.uint64)
            errors = self.disk.transfer(one, address, size, write=False)
            header: RegionHeader | None = (
                None if errors[0] else unpack_region_header(bytes(held), block.file_id, region)
            )
            del held
        return None if header is None else header.sequence
