"""What does a soak do, how much and how long? One frozen object, and the constants both sides share."""

from __future__ import annotations

from dataclasses import dataclass

from pegashm.keys import Namespace, namespace_of
from pegashm.units import KIB

from tests.arenas import Shape

__all__ = ["FENCES", "KEYS", "SHAPE", "SIZES", "SoakPlan"]

# Far more keys than blocks: 96 KiB segments of 4 KiB, 12 KiB and 48 KiB blocks, evicting all the time.
SHAPE = Shape(segment_bytes=96 * KIB, block_bytes_min=4 * KIB, segments_per_arena=(5, 3))
SIZES = (4 * KIB, 10 * KIB, 48 * KIB)
KEYS = [
    (index * 0x9E3779B97F4A7C15 % (1 << 64)).to_bytes(8, "little") * 4
    + (index % 4).to_bytes(4, "big")
    for index in range(160)
]
FENCES: tuple[Namespace, ...] = (
    namespace_of({"model": 0}, label="soak 0"),
    namespace_of({"model": 1}, label="soak 1", maximum_bytes=160 * KIB),
    namespace_of({"model": 2}, label="soak 2", reserved_bytes=96 * KIB),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakPlan:
    """How long, how many processes, and how roughly they are treated."""

    seconds: float
    seed: int
    processes: int = 6
    kill_every_seconds_max: float = 0.6
    hang_seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.processes < 2 or self.seconds <= 0:
            raise ValueError("a soak needs at least 2 processes and some time")
