"""How does the GPU driver learn of the arena's memory? In bounded chunks, in a background thread.

Memory that the driver knows is copied by its copy engines; memory that it does not know is copied all the same,
through staging buffers and slower. Registering costs about 0.1 s/GB, and one call for 512 GiB or more fails:
so this is done piece by piece while the engine already works. The two driver calls are handed in, so that this
needs no device. One `Registrar` serves one mapping, for a worker that copies blocks of one stride.

What keeps copies right meanwhile:
- No copy straddles two registrations, or a registered and an unregistered piece: drivers refuse such copies, and
  vLLM's path for older ones does not look at the answer. A chunk ends only at a multiple of the stride or at the end
  of a segment, and a block lies between two multiples of its stride, in one segment.
- A copy may use a chunk while it is being registered. The driver decides how to copy when the copy is
  submitted, in calls that are thread-safe, and finds the chunk either registered as a whole or not at all.
  A copy that began as an unregistered one reads or writes through the process's own mapping, which
  registration does not change: these pages are populated, it only counts a reference to each.
- Only populated segments are registered (nobody claims blocks in others), as they become ready.
- Nothing is unregistered before all copies have ended: `retire` is called after they have been drained. It
  does not wait either: unregistering takes its time, and the mapping stays until that is done.
- A chunk that cannot be registered ends the work; what is registered stays so, the rest stays slow.
"""

import math
import mmap
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vllm.logger import init_logger

from pegashm.logs import tell
from pegashm.notices import CONNECTOR_FAILED, GPU_MEMORY_NOT_REGISTERED, GPU_MEMORY_REGISTERED

__all__ = ["CHUNK_BYTES", "Driver", "Ground", "Registrar", "next_chunk"]

# While the driver registers it may hold up the engine's own calls: 25 ms at 0.1 s/GB with 4 KiB pages.
CHUNK_BYTES: Final = 256 << 20
_POLL_S: Final = 1.0

logger = init_logger(f"vllm.{__name__}")  # under vLLM's own, whose handlers print it


@dataclass(frozen=True, slots=True)
class Driver:
    """`register(address, nbytes)` says whether it worked; `unregister(address)` undoes one of those."""

    register: Callable[[int, int], bool]
    unregister: Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """The mapping to register. `arena_bytes`: sizes of the payload files, mapped one after the other."""

    address: int
    arena_bytes: tuple[int, ...]
    segment_bytes: int
    stride: int

    @property
    def total_bytes(self) -> int:
        return sum(self.arena_bytes)


def next_chunk(ground: Ground, start: int, ready_bytes: int, chunk_bytes: int) -> int:
    """Where the chunk that begins at offset `start` ends; `start` itself when nothing more is ready.

    About `chunk_bytes` long: longer when no cut is allowed earlier. Never spans two payload files.
    """
    end = min(ready_bytes, _file_end(ground, start))
    if end - start <= chunk_bytes:
        return max(start, end)
    # Whole pages of this machine: two registrations may not share one.
    unit = math.lcm(ground.stride, mmap.PAGESIZE)
    cut = (start + chunk_bytes) // unit * unit
    if cut <= start:
        cut = (start // unit + 1) * unit
    return min(cut, end)


def _file_end(ground: Ground, offset: int) -> int:
    end = 0
    for nbytes in ground.arena_bytes:
        end += nbytes
        if offset < end:
            break
    return end


class Registrar:
    """Registers a mapping from a thread of its own, from the moment it is made until `retire`."""

    def __init__(
        self,
        ground: Ground,
        segments_ready: Callable[[], int],
        driver: Driver,
        *,
        chunk_bytes: int = CHUNK_BYTES,
        poll_s: float = _POLL_S,
    ) -> None:
        self._ground = ground
        self._segments_ready = segments_ready
        self._driver = driver
        self._chunk_bytes = chunk_bytes
        self._poll_s = poll_s
        self._addresses: list[int] = []
        self._registered_bytes = 0
        self._closing = threading.Event()
        self._then: Callable[[], None] = _nothing
        self._thread = threading.Thread(target=self._serve, name="pegashm-register", daemon=True)
        self._thread.start()

    @property
    def registered_bytes(self) -> int:
        """The first so many bytes are registered."""
        return self._registered_bytes

    @property
    def complete(self) -> bool:
        """Whether all of it is registered: from then on any block's address is one the device can use."""
        return self._registered_bytes == self._ground.total_bytes

    def retire(self, then: Callable[[], None]) -> None:
        """Stop, unregister all, then call `then`: all in the registrar's thread, soon.

        Call when no copy is under way. The memory must stay mapped until `then` is called.
        """
        self._then = then
        self._closing.set()

    def join(self, seconds: float) -> bool:
        """Whether the thread has ended, after at most so long a wait; only after `retire`."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _serve(self) -> None:
        started = time.monotonic()
        try:
            self._register_all()
        except Exception:  # noqa: BLE001 - told, with the traceback
            tell(
                CONNECTOR_FAILED,
                "registering memory with the GPU driver failed: copies are slower",
                subject="register",
                to=logger,
                trace=True,
            )
        if self.complete:
            tell(
                GPU_MEMORY_REGISTERED,
                "%d bytes registered with the GPU driver in %d chunks, %.1f s",
                self._registered_bytes,
                len(self._addresses),
                time.monotonic() - started,
                to=logger,
            )
        elif not self._closing.is_set():
            tell(
                GPU_MEMORY_NOT_REGISTERED,
                "the GPU driver has registered %d of %d bytes and refuses more: the rest is "
                "copied through pageable memory, slower",
                self._registered_bytes,
                self._ground.total_bytes,
                to=logger,
            )
        self._closing.wait()
        self._registered_bytes = 0
        try:
            while self._addresses:
                self._driver.unregister(self._addresses.pop())
        except Exception:  # noqa: BLE001 - told, with the traceback
            tell(
                CONNECTOR_FAILED,
                "unregistering memory with the GPU driver failed: the end of this process does it",
                subject="unregister",
                to=logger,
                trace=True,
            )
        self._then()

    def _register_all(self) -> None:
        """Until all is registered, the driver refuses a chunk, or we are to stop."""
        ground = self._ground
        while not self.complete and not self._closing.is_set():
            start = self._registered_bytes
            ready = min(self._segments_ready() * ground.segment_bytes, ground.total_bytes)
            end = next_chunk(ground, start, ready, self._chunk_bytes)
            if end == start:
                self._closing.wait(self._poll_s)
                continue
            began = time.monotonic()
            if not self._driver.register(ground.address + start, end - start):
                return
            self._addresses.append(ground.address + start)
            self._registered_bytes = end
            # As long a pause as it took: the engine's calls into the driver get their turn.
            self._closing.wait(time.monotonic() - began)


def _nothing() -> None:
    """What follows when nobody said what."""
