"""What do the pages of a spill file mean? Packing, unpacking and judging superblock, region header and frame page.

The tables are in `_core/FORMAT.md`, "The spill file"; bytes, names and golden tests change in one commit. All
pages begin alike (magic, checksum, version, file id); the checksum covers all that follows it, so a page
with any flipped bit is no page. What is unpacked has been judged: offsets lie inside the frame, the frame inside its
region, so a caller need not bound them again. Pure functions; no file is opened here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from pegashm.errors import ConfigError, FormatError
from pegashm.units import GIB, KIB, MIB, format_bytes

__all__ = [
    "BLOCK_FIELDS",
    "DESCRIPTOR_FIELDS",
    "PAGE_BYTES",
    "RECORDS_PER_FRAME",
    "RECORD_FIELDS",
    "VERSION_MAJOR",
    "VERSION_MINOR",
    "FramePlace",
    "RegionHeader",
    "SpillNamespace",
    "Superblock",
    "default_region_bytes",
    "judge_frames",
    "pack_frame",
    "pack_region_header",
    "pack_superblock",
    "plan_superblock",
    "strides_of",
    "unpack_records",
    "unpack_region_header",
    "unpack_superblock",
]

PAGE_BYTES: Final = 4096
RECORDS_PER_FRAME: Final = 40
VERSION_MAJOR: Final = 1
VERSION_MINOR: Final = 0
REGION_COUNT_MIN: Final = 8
# Beside a round number of payload bytes: the header's page and fifteen frames' (FORMAT.md says why).
_REGION_BYTES: Final = 64 * MIB + 64 * KIB
# Between two regions the device waits for us: in files with room for many regions they are up to four times as long.
_FILE_BYTES_A_STEP: Final = 4 * GIB
_REGION_STEPS_MAX: Final = 4

SUPERBLOCK_MAGIC: Final = b"PEGASPL1"
REGION_MAGIC: Final = b"PEGASPLR"
FRAME_MAGIC: Final = b"PEGASPLF"

_PREFIX: Final = struct.Struct("<8sQHHI16s")  # magic, checksum, major, minor, page bytes, file id
_CHECKED_FROM: Final = 16  # what stands behind the checksum
_SUPERBLOCK: Final = struct.Struct("<QQQQ")
_REGION: Final = struct.Struct("<QQQ")
_FRAME: Final = struct.Struct("<QQQQQIHH32s64s")
_DESCRIPTORS_AT: Final = 256

_KEY: Final = ("key", "u1", (32,))

# A descriptor as it lies in a frame page.
DESCRIPTOR_FIELDS: Final = np.dtype(
    [
        _KEY,
        ("key_bytes", "u1"),
        ("reserved0", "u1"),
        ("group", "<u2"),
        ("reserved1", "<u4"),
        ("payload_bytes", "<u8"),
        ("offset", "<u8"),
        ("checksum", "<u8"),
        ("sum_layout", "<u8"),
        ("published_at_ns", "<u8"),
        ("reserved2", "<u8", (2,)),
    ]
)
_PAGE_FIELDS: Final = np.dtype(
    {
        "names": [
            "magic",
            "major",
            "file_id",
            "region_index",
            "sequence",
            "offset",
            "number",
            "frame_bytes",
            "record_count",
            "label_bytes",
            "fingerprint",
            "label",
            "descriptors",
        ],
        "formats": [
            "V8",
            "<u2",
            "V16",
            "<u8",
            "<u8",
            "<u8",
            "<u8",
            "<u8",
            "<u4",
            "<u2",
            "V32",
            "V64",
            (DESCRIPTOR_FIELDS, (RECORDS_PER_FRAME,)),
        ],
        "offsets": [0, 16, 24, 40, 48, 56, 64, 72, 80, 84, 88, 120, _DESCRIPTORS_AT],
        "itemsize": PAGE_BYTES,
    }
)

# A block to be written. `address`: page-aligned, readable up to the next multiple of 4 KiB behind the payload.
# `checksum` 0: computed on the way.
BLOCK_FIELDS: Final = np.dtype(
    [
        _KEY,
        ("key_bytes", "u1"),
        ("group", "u2"),
        ("address", "u8"),
        ("payload_bytes", "u8"),
        ("checksum", "u8"),
        ("sum_layout", "u8"),
        ("published_at_ns", "u8"),
    ]
)
# A block that is in the file. `sequence` is its region's: another one there now means that it is overwritten.
RECORD_FIELDS: Final = np.dtype(
    [
        _KEY,
        ("key_bytes", "u1"),
        ("group", "u2"),
        ("file_offset", "u8"),
        ("payload_bytes", "u8"),
        ("checksum", "u8"),
        ("sum_layout", "u8"),
        ("published_at_ns", "u8"),
        ("sequence", "u8"),
    ]
)
_COPIED: Final = (
    "key",
    "key_bytes",
    "group",
    "payload_bytes",
    "checksum",
    "sum_layout",
    "published_at_ns",
)

Rows = NDArray[Any]
Words = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class SpillNamespace:
    """Who may share a frame's blocks: the digest decides, the label is for people."""

    fingerprint: bytes
    label: str = ""

    def __post_init__(self) -> None:
        if len(self.fingerprint) != 32:
            raise ValueError(f"a fingerprint has 32 bytes, got {len(self.fingerprint)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Superblock:
    """Page 0: written once, when the file is made."""

    file_id: bytes
    file_bytes: int
    region_bytes: int
    region_count: int
    created_at_ns: int

    def region_start(self, region: int) -> int:
        return PAGE_BYTES + region * self.region_bytes

    def region_end(self, region: int) -> int:
        return self.region_start(region + 1)

    def region_of(self, offsets: Words) -> Words:
        """The region of each file offset behind page 0."""
        regions: Words = (offsets - np.uint64(PAGE_BYTES)) // np.uint64(self.region_bytes)
        return regions

    @property
    def payload_bytes_max(self) -> int:
        """The largest block that a region holds."""
        return self.region_bytes - 2 * PAGE_BYTES


@dataclass(frozen=True, slots=True)
class RegionHeader:
    """First page of a region. `sequence` is unique in the file and grows with every use of a region."""

    region_index: int
    sequence: int
    opened_at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FramePlace:
    """Where a frame lies: in its page as well, so that no page counts anywhere else."""

    region_index: int
    sequence: int
    offset: int
    number: int
    nbytes: int


def default_region_bytes(file_bytes: int) -> int:
    """64 MiB of payload, 256 MiB in files of 16 GiB and more; at least eight regions in any."""
    share = (file_bytes - PAGE_BYTES) // REGION_COUNT_MIN // PAGE_BYTES * PAGE_BYTES
    steps = min(max(file_bytes // _FILE_BYTES_A_STEP, 1), _REGION_STEPS_MAX)
    return min(steps * _REGION_BYTES, share)


def plan_superblock(
    file_bytes: int, region_bytes: int | None, *, file_id: bytes, created_at_ns: int
) -> Superblock:
    """Regions for a file of that size; ConfigError when it is too small for any."""
    region = default_region_bytes(file_bytes) if region_bytes is None else region_bytes
    if region % PAGE_BYTES or region < 3 * PAGE_BYTES:
        raise ConfigError(
            f"a spill file of {format_bytes(file_bytes)} has regions of {region} bytes: expected a multiple of "
            f"4096 and at least {3 * PAGE_BYTES}. Give it a larger size, for example 1G"
        )
    count = (file_bytes - PAGE_BYTES) // region
    if count < 2:
        raise ConfigError(
            f"a spill file of {format_bytes(file_bytes)} has no room for two regions of {format_bytes(region)}"
        )
    return Superblock(
        file_id=file_id,
        file_bytes=file_bytes,
        region_bytes=region,
        region_count=count,
        created_at_ns=created_at_ns,
    )


def strides_of(payload_bytes: Words) -> Words:
    """What payloads occupy: whole pages."""
    page = np.uint64(PAGE_BYTES)
    strides: Words = (payload_bytes + page - np.uint64(1)) // page * page
    return strides


# -- superblock and region header ------------------------------------------------------------------------


def pack_superblock(superblock: Superblock) -> bytes:
    body = _SUPERBLOCK.pack(
        superblock.file_bytes,
        superblock.region_bytes,
        superblock.region_count,
        superblock.created_at_ns,
    )
    return _page(SUPERBLOCK_MAGIC, superblock.file_id, body)


def unpack_superblock(page: bytes, path: str) -> Superblock:
    """FormatError when this is not the first page of a spill file that this build reads."""
    magic, checksum, major, minor, page_bytes, file_id = _PREFIX.unpack_from(page)
    if magic != SUPERBLOCK_MAGIC:
        raise FormatError(
            f"{path} exists and is no spill file (it begins with {magic!r}, expected {SUPERBLOCK_MAGIC!r}): it is "
            "left as it is. Name another path, or remove it if it is not needed"
        )
    if major != VERSION_MAJOR:
        raise FormatError(
            f"spill file {path} has format {major}.{minor}, this build reads {VERSION_MAJOR}.x: it is left as it "
            f"is. Run the build that wrote it, or type `rm {path}` to start with an empty one"
        )
    if checksum != _checksum(page):
        raise FormatError(
            f"the first page of spill file {path} is damaged (checksum {_checksum(page):016x}, it says "
            f"{checksum:016x}): nothing in the file can be found. Type `rm {path}` to start with an empty one"
        )
    file_bytes, region_bytes, region_count, created_at_ns = _SUPERBLOCK.unpack_from(
        page, _PREFIX.size
    )
    sizes_hold = (
        page_bytes == PAGE_BYTES
        and region_bytes % PAGE_BYTES == 0
        and region_bytes >= 3 * PAGE_BYTES
        and region_count >= 2
        and PAGE_BYTES + region_count * region_bytes <= file_bytes
    )
    if not sizes_hold:
        raise FormatError(
            f"spill file {path} says {region_count} regions of {region_bytes} bytes in {file_bytes} bytes, pages of "
            f"{page_bytes}: that does not fit. Type `rm {path}` to start with an empty one"
        )
    return Superblock(
        file_id=file_id,
        file_bytes=file_bytes,
        region_bytes=region_bytes,
        region_count=region_count,
        created_at_ns=created_at_ns,
    )


def pack_region_header(file_id: bytes, header: RegionHeader) -> bytes:
    body = _REGION.pack(header.region_index, header.sequence, header.opened_at_ns)
    return _page(REGION_MAGIC, file_id, body)


def unpack_region_header(
    page: bytes | memoryview, file_id: bytes, region_index: int
) -> RegionHeader | None:
    """None when the page is not a header of this region of this file: never used, torn or damaged."""
    magic, checksum, major, _minor, _page_bytes, found_id = _PREFIX.unpack_from(page)
    if magic != REGION_MAGIC or major != VERSION_MAJOR or found_id != file_id:
        return None
    header = RegionHeader(*_REGION.unpack_from(page, _PREFIX.size))
    if header.region_index != region_index or header.sequence == 0 or checksum != _checksum(page):
        return None
    return header


# -- frames ----------------------------------------------------------------------------------------------


def pack_frame(
    file_id: bytes,
    place: FramePlace,
    namespace: SpillNamespace,
    records: Rows,
) -> bytes:
    """The first page of a frame with these records (RECORD_FIELDS, payloads inside the frame)."""
    label = _cut_label(namespace.label)
    descriptors = np.zeros(len(records), DESCRIPTOR_FIELDS)
    for name in _COPIED:
        descriptors[name] = records[name]
    descriptors["offset"] = records["file_offset"] - np.uint64(place.offset)
    body = _FRAME.pack(
        place.region_index,
        place.sequence,
        place.offset,
        place.number,
        place.nbytes,
        len(records),
        len(label),
        0,
        namespace.fingerprint,
        label,
    )
    filler = bytes(_DESCRIPTORS_AT - _PREFIX.size - len(body))
    return _page(FRAME_MAGIC, file_id, body + filler + descriptors.tobytes())


def judge_frames(
    pages: NDArray[np.uint8],
    file_id: bytes,
    *,
    regions: Words,
    sequences: Words,
    offsets: Words,
    numbers: Words,
    ends: Words,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], Words]:
    """Which pages (a row each) are the frames expected there; which are damaged; the length of each frame.

    Damaged: it says that it is the expected frame, and its checksum does not hold. All else is simply the end.
    """
    page = pages.view(_PAGE_FIELDS)[:, 0]
    sizes: Words = page["frame_bytes"]
    ours: NDArray[np.bool_] = (
        (page["magic"] == np.void(FRAME_MAGIC))
        & (page["major"] == VERSION_MAJOR)
        & (page["file_id"] == np.void(file_id))
        & (page["region_index"] == regions)
        & (page["sequence"] == sequences)
    )
    holds = ours.copy()
    for row in np.flatnonzero(ours).tolist():
        data = pages[row].tobytes()
        holds[row] = _PREFIX.unpack_from(data)[1] == _checksum(data)
    damaged = ours & ~holds
    holds &= (page["offset"] == offsets) & (page["number"] == numbers)
    holds &= (page["record_count"] >= 1) & (page["record_count"] <= RECORDS_PER_FRAME)
    holds &= (page["label_bytes"] <= 64) & (sizes % np.uint64(PAGE_BYTES) == 0)
    holds &= (sizes >= 2 * PAGE_BYTES) & (sizes <= ends - offsets)
    holds &= _descriptors_fit(page)
    return holds, damaged, sizes


def unpack_records(
    pages: NDArray[np.uint8],
) -> tuple[Rows, NDArray[np.int64], list[SpillNamespace]]:
    """Records of pages that were judged, in order; the page of each record; the namespace of each page."""
    page = pages.view(_PAGE_FIELDS)[:, 0]
    present = np.arange(RECORDS_PER_FRAME) < page["record_count"][:, None]
    descriptors = page["descriptors"][present]
    page_of = np.nonzero(present)[0]
    records = np.zeros(len(descriptors), RECORD_FIELDS)
    for name in _COPIED:
        records[name] = descriptors[name]
    records["file_offset"] = descriptors["offset"] + page["offset"][page_of]
    records["sequence"] = page["sequence"][page_of]
    return records, page_of, _namespaces(page)


def _namespaces(page: Rows) -> list[SpillNamespace]:
    known: dict[tuple[bytes, bytes], SpillNamespace] = {}
    out = []
    for fingerprint, label, nbytes in zip(
        page["fingerprint"].tolist(),
        page["label"].tolist(),
        page["label_bytes"].tolist(),
        strict=True,
    ):
        pair = (fingerprint, label[:nbytes])
        if pair not in known:
            known[pair] = SpillNamespace(fingerprint, pair[1].decode("utf-8", "replace"))
        out.append(known[pair])
    return out


def _descriptors_fit(page: Rows) -> NDArray[np.bool_]:
    """Whether every record of each page has a key, and a payload inside the frame."""
    rows = page["descriptors"]
    frame = page["frame_bytes"][:, None]
    sizes, offsets = rows["payload_bytes"], rows["offset"]
    fits = (sizes >= 1) & (sizes <= frame) & (offsets <= frame)
    fits &= (offsets >= PAGE_BYTES) & (offsets % np.uint64(PAGE_BYTES) == 0)
    fits &= strides_of(np.minimum(sizes, frame)) <= frame - np.minimum(offsets, frame)
    fits &= (rows["key_bytes"] >= 1) & (rows["key_bytes"] <= 32)
    behind = np.arange(32) >= rows["key_bytes"][..., None]
    fits &= np.equal(np.where(behind, rows["key"], 0).max(axis=-1), 0)
    absent = np.arange(RECORDS_PER_FRAME) >= page["record_count"][:, None]
    judged: NDArray[np.bool_] = np.asarray((fits | absent).all(axis=1))
    return judged


def _page(magic: bytes, file_id: bytes, body: bytes) -> bytes:
    page = bytearray(PAGE_BYTES)
    _PREFIX.pack_into(page, 0, magic, 0, VERSION_MAJOR, VERSION_MINOR, PAGE_BYTES, file_id)
    page[_PREFIX.size : _PREFIX.size + len(body)] = body
    struct.pack_into("<Q", page, 8, _checksum(page))
    return bytes(page)


def _checksum(page: bytes | bytearray | memoryview) -> int:
    return xxhash.xxh3_64_intdigest(memoryview(page)[_CHECKED_FROM:PAGE_BYTES])


def _cut_label(label: str) -> bytes:
    """At most 64 bytes, and no half of a character."""
    return label.encode("utf-8", "replace")[:64].decode("utf-8", "ignore").encode()
