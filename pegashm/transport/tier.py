"""Which spill files are open, and which of their blocks may lookups see?

Each file is opened by a thread of its own, since one that hangs or fails must not keep the others: its blocks are
listed in the shared table, its namespaces registered, and only then does its bit of `spill_usable` go on. The bit
goes off while the device does not answer, and when it failed several times in a row (`spill.files` judges). What
all threads of the worker share hangs here: the client of the arena, the table, the namespaces, the budget.

Called by the worker's main thread (`watch`), and by spiller, writers and promoter.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final

from numpy.typing import NDArray

from pegashm import _native
from pegashm.cache import Cache
from pegashm.config import SpillConfig
from pegashm.errors import PegaShmError
from pegashm.logs import tell
from pegashm.notices import (
    SPILL_IN_USE,
    SPILL_NOT_OPENED,
    SPILL_OPENED,
    SPILL_OUT_OF_USE,
    SPILL_TABLE_FULL,
)
from pegashm.spill.file import Advance, SpillFile
from pegashm.spill.files import SpillFiles
from pegashm.transport.budget import WriteBudget
from pegashm.transport.namespaces import Namespaces
from pegashm.transport.rows import table_rows
from pegashm.units import format_bytes

__all__ = ["Tier"]

_BUSY_TRIES: Final = 50
# In a table that is too small, the oldest blocks give way in such parts of a region.
_PIECES: Final = 16
_BUSY_PAUSE_SECONDS: Final = 0.005

Rows = NDArray[Any]
SpillFileOpener = Callable[..., SpillFile]


class Tier:
    """The spill files of one arena, and the shared table that lists what is in them."""

    def __init__(
        self,
        cache: Cache,
        config: SpillConfig,
        *,
        stall_seconds: float,
        open_file: SpillFileOpener = SpillFile.open_or_create,
    ) -> None:
        self.cache = cache
        self.config = config
        self.table = _native.SpillTable(cache.region)
        self.namespaces = Namespaces(cache.arena)
        self.budget = WriteBudget(config.daily_bytes)
        self.files = SpillFiles([None] * len(config.paths), {}, stall_seconds=stall_seconds)
        self.stopping = threading.Event()
        self._open_file = open_file
        self._opened = [threading.Event() for _ in config.paths]
        self._ahead = [0] * len(
            config.paths
        )  # pieces of regions whose blocks gave way before their turn
        self._usable = 0
        self._full_said = False

    # -- opening ---------------------------------------------------------------------------------

    def clear(self) -> None:
        """Forget what a former worker listed. First of all, under the lock."""
        self.table.clear()

    def open(self, number: int) -> bool:
        """Open one file and list what is in it. Runs in that file's own thread."""
        path = self.config.paths[number]
        try:
            file = self._open_file(
                path, self.config.file_bytes, sync_seconds=self.config.sync_seconds
            )
            listed = self._list(number, file)
        except (PegaShmError, OSError) as error:
            self.files.failures[path] = (
                error if isinstance(error, PegaShmError) else PegaShmError(f"{path}: {error}")
            )
            others = len(self.config.paths) > 1
            tell(
                SPILL_NOT_OPENED,
                "%s%s",
                error,
                ". It is tried again when the supervisor restarts; other spill files go on"
                if others
                else "",
                spill_file=number,
                path=path,
            )
            return False
        else:
            self.files.files[number] = file
            tell(
                SPILL_OPENED,
                "spill file %s: %s, %d blocks found",
                path,
                format_bytes(file.superblock.file_bytes),
                listed,
                spill_file=number,
                path=path,
                blocks=listed,
            )
            return True
        finally:
            self._opened[number].set()

    @property
    def all_failed(self) -> bool:
        """No file can be used: there is no tier."""
        return len(self.files.failures) == len(self.config.paths)

    def wait_opened(self, seconds: float) -> bool:
        """Whether every file has been opened or given up."""
        deadline = time.monotonic() + seconds
        while not (done := all(opened.is_set() for opened in self._opened)):
            if time.monotonic() > deadline or self.stopping.wait(0.02):
                break
        return done

    def _list(self, number: int, file: SpillFile) -> int:
        lots = list(file.records())
        # Oldest first, as later ones replace earlier ones of the same key; the newest when not all have room.
        count = sum(len(lot.records) for lot in lots)
        room = max(0, self.table.capacity - len(self.table))
        skip = max(0, count - room)
        listed = 0
        for lot in lots:
            self.budget.found(lot.records)
            records = lot.records[min(skip, len(lot.records)) :]
            skip -= len(lot.records) - len(records)
            namespace_id = self.namespaces.id_of(lot.namespace) if len(records) else 0
            if namespace_id:
                listed += int(self.table.store(table_rows(records, namespace_id, number)).sum())
        if count > room:
            self._say_full(count)
        return listed

    def _say_full(self, count: int) -> None:
        if not self._full_said:
            self._full_said = True
            tell(
                SPILL_TABLE_FULL,
                "spill: the table lists at most %d blocks, the files hold more (%d found): the oldest cannot be "
                "found. Start a new arena with a larger --spill-records",
                self.table.capacity,
                count,
            )

    # -- listing what is written -----------------------------------------------------------------

    def list_written(self, number: int, file: SpillFile, records: Rows, namespace_id: int) -> int:
        """Make blocks that are in the file now findable; the oldest of this file give way to them. How many are."""
        rows = table_rows(records, namespace_id, number)
        kept = self.table.store(rows)
        if not kept.all() and len(self.table) >= self.table.capacity:
            self._say_full(len(self.table) + int((~kept).sum()))
            while not kept.all() and self._give_way(number, file):
                kept[~kept] = self.table.store(rows[~kept])
        return int(kept.sum())

    def next_region(self, number: int, file: SpillFile) -> Advance:
        """Take the next region of a file: its blocks are found no more, then it is overwritten."""
        block, region = file.superblock, file.next_region().region
        dropped = self.table.drop(number, block.region_start(region), block.region_end(region))
        self.count("spill_dropped", dropped)
        self._ahead[number] = max(0, self._ahead[number] - _PIECES)
        for _ in range(_BUSY_TRIES):
            outcome = file.advance()
            if outcome is not Advance.BUSY or self.stopping.wait(_BUSY_PAUSE_SECONDS):
                return outcome
        return Advance.BUSY

    def _give_way(self, number: int, file: SpillFile) -> bool:
        """Drop the oldest blocks of this file that are listed still; False when there are none."""
        block = file.superblock
        while self._ahead[number] < block.region_count * _PIECES:
            turn, piece = divmod(self._ahead[number], _PIECES)
            self._ahead[number] += 1
            region = (file.next_region().region + turn) % block.region_count
            start, size = block.region_start(region), block.region_bytes
            dropped = self.table.drop(
                number, start + size * piece // _PIECES, start + size * (piece + 1) // _PIECES
            )
            self.count("spill_dropped", dropped)
            if dropped:
                return True
        return False

    # -- health ----------------------------------------------------------------------------------

    def watch(self) -> None:
        """Let lookups see the files that answer, and only those. Every 100 ms, by the main thread."""
        usable = self.files.usable_mask
        if usable == self._usable:
            return
        changed = usable ^ self._usable
        self.table.set_usable(usable)
        for number, path in enumerate(self.config.paths):
            file = self.files.files[number]
            if not changed >> number & 1 or file is None:
                continue
            if usable >> number & 1:
                tell(SPILL_IN_USE, "spill file %s is in use", path, spill_file=number, path=path)
            else:
                why = (
                    f"has not answered for {file.waiting_seconds:.1f} s"
                    if file.readable
                    else "failed several times in a row"
                )
                tell(
                    SPILL_OUT_OF_USE,
                    "spill file %s %s: its blocks are misses until it answers again. Look at `dmesg` and at the "
                    "health of its device (`smartctl -a`)",
                    path,
                    why,
                    spill_file=number,
                    path=path,
                )
        self._usable = usable

    def probe_until_stopped(self) -> None:
        """Ask files that failed again, now and then: the life of a thread of its own."""
        while not self.stopping.wait(0.5):
            self.files.probe_due()

    def count(self, counter: str, amount: int = 1) -> None:
        if amount:
            self.cache.region.count(counter, amount)

    def unlist(self) -> None:
        """At the end: whoever asks now would wait in vain."""
        self._usable = 0
        self.table.set_usable(0)
