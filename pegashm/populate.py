"""How do the pages of an arena become resident, while it already serves?

The payload is cut into chunks; a few threads populate (and lock) them in order, each call without the
GIL. Whenever the chunks done reach from the start over whole segments, those are declared ready, so that
engines store into the first segments while the last are still being filled. The data in pages that exist
is not touched, so the same runs over a re-adopted arena. Started by the supervisor, which watches the
`Progress` from its own loop; nothing here logs.
"""

import errno
import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from pegashm._native import Region
from pegashm.units import MIB

__all__ = ["PopulatePlan", "Populator", "Progress"]

_CHUNK_BYTES: Final = 64 * MIB
_THREADS_MAX: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class PopulatePlan:
    """What to do to which pages; `ranges` is (offset, bytes, NUMA node or -1) of each arena."""

    ranges: tuple[tuple[int, int, int], ...]
    segment_bytes: int
    page_bytes: int
    huge: bool
    lock: bool
    require_lock: bool
    threads: int | None = None

    @property
    def payload_bytes(self) -> int:
        return sum(nbytes for _, nbytes, _ in self.ranges)


@dataclass(slots=True)
class Progress:
    """Written by the populating threads, read by anyone; each field is replaced whole."""

    done_bytes: int = 0
    segments_ready: int = 0
    bind_errno: int = 0
    lock_errno: int = 0
    populate_errno: int = 0
    failure: BaseException | None = None
    finished: bool = False


@dataclass(slots=True)
class Populator:
    """Populates one region in the background, until done or stopped."""

    region: Region
    plan: PopulatePlan
    progress: Progress = field(default_factory=Progress)
    _stopped: bool = False
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="populate", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop after the chunks in hand; returns when no thread touches the region any more."""
        self._stopped = True
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._prepare()
            self._fill()
        except BaseException as error:  # noqa: BLE001 - handed to the supervisor, which raises it
            self.progress.failure = error
        finally:
            self.progress.finished = True

    def _prepare(self) -> None:
        for offset, nbytes, node in self.plan.ranges:
            if node >= 0:
                self.progress.bind_errno |= self.region.bind(offset, nbytes, node)
            if self.plan.huge:
                self.region.huge(offset, nbytes)

    def _fill(self) -> None:
        """Keep a window of chunks in flight; results are taken in order, so readiness is a prefix."""
        threads = self.plan.threads or min(_THREADS_MAX, os.cpu_count() or 1)
        in_flight: deque[tuple[int, Future[int]]] = deque()
        chunks = self._chunks()
        with ThreadPoolExecutor(threads, thread_name_prefix="populate") as pool:
            while True:
                while len(in_flight) < 2 * threads and not self._stopped:
                    chunk = next(chunks, None)
                    if chunk is None:
                        break
                    in_flight.append((chunk[1], pool.submit(self._fill_chunk, *chunk)))
                if not in_flight:
                    return
                nbytes, result = in_flight.popleft()
                if error := result.result():
                    self._stopped = True
                    self.progress.populate_errno = 0 if error == errno.ECANCELED else error
                    return
                self._advance(nbytes)

    def _advance(self, nbytes: int) -> None:
        progress, plan = self.progress, self.plan
        if progress.lock_errno and plan.require_lock:
            self._stopped = True
            return
        progress.done_bytes += nbytes
        ready = progress.done_bytes // plan.segment_bytes
        if ready > progress.segments_ready:
            self.region.set_segments_ready(ready)
            progress.segments_ready = ready

    def _fill_chunk(self, offset: int, nbytes: int) -> int:
        """Populate, then lock; the errno of populating. A failed lock is noted and not tried again."""
        if self._stopped:
            return errno.ECANCELED
        error = self.region.populate(offset, nbytes)
        if not error and self.plan.lock and not self.progress.lock_errno:
            self.progress.lock_errno = self.region.lock(offset, nbytes)
        return error

    def _chunks(self) -> Iterator[tuple[int, int]]:
        """(offset, bytes) in order; none crosses a segment, each a multiple of the page size."""
        step = min(max(_CHUNK_BYTES, self.plan.page_bytes), self.plan.segment_bytes)
        for offset, nbytes, _ in self.plan.ranges:
            for start in range(offset, offset + nbytes, step):
                yield start, min(step, offset + nbytes - start)
