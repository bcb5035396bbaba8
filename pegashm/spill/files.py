"""Which of several spill files does a block go to, and which of them may be believed?

Each file is a log of its own and stands alone: blocks are spread over files frame by frame, and a file that fails
or hangs costs its own records only. `open_or_create` opens what it can and keeps the reasons for the others;
`choose` names the file to append to, the least busy of the healthy ones, so that a slow device gets less. `usable` is
the mask of files whose records may be found; a file that failed is asked again after a while, longer each time, and
one that hung is usable again when it answers. Called by the transport worker; each file has an appender of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Final

from pegashm.errors import PegaShmError
from pegashm.logs import tell
from pegashm.notices import SPILL_ANSWERS, SPILL_NOT_OPENED
from pegashm.spill.file import SpillFile

__all__ = ["FILES_MAX", "SpillFiles"]

FILES_MAX: Final = 16
STALL_SECONDS: Final = 5.0
PROBE_SECONDS: Final = 1.0
PROBE_SECONDS_MAX: Final = 60.0


class SpillFiles:
    """Open spill files by number: their place in the list of paths. None where one could not be opened."""

    def __init__(
        self,
        files: Sequence[SpillFile | None],
        failures: dict[str, PegaShmError],
        *,
        stall_seconds: float = STALL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.files = list(files)
        self.failures = failures
        self._stall_seconds = stall_seconds
        self._clock = clock
        self._mutex = threading.Lock()
        self._pending = [0] * len(self.files)
        self._turn = 0
        self._probe_at = [0.0] * len(self.files)
        self._probe_wait = [PROBE_SECONDS] * len(self.files)

    @classmethod
    def open_or_create(
        cls,
        paths: Sequence[str],
        size_bytes: int,
        *,
        stall_seconds: float = STALL_SECONDS,
        **options: Any,
    ) -> SpillFiles:
        """Open each, `size_bytes` for a new one. The first error is raised when none can be opened."""
        files: list[SpillFile | None] = []
        failures: dict[str, PegaShmError] = {}
        for path in paths:
            try:
                files.append(SpillFile.open_or_create(path, size_bytes, **options))
            except PegaShmError as error:
                files.append(None)
                failures[path] = error
        if failures and len(failures) == len(paths):
            raise next(iter(failures.values()))
        for path, failure in failures.items():
            tell(SPILL_NOT_OPENED, "%s (the other spill files are used)", failure, path=path)
        return cls(files, failures, stall_seconds=stall_seconds)

    def __enter__(self) -> SpillFiles:  # noqa: PYI034 - typing.Self came with Python 3.11
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self, patience_seconds: float = 5.0) -> bool:
        """False when one of them hangs."""
        closed = [file.close(patience_seconds) for file in self.files if file is not None]
        return all(closed)

    def usable(self, number: int) -> bool:
        """Whether what is in this file may be asked for: it reads, and it answers."""
        file = self.files[number]
        return file is not None and file.readable and file.waiting_seconds < self._stall_seconds

    @property
    def usable_mask(self) -> int:
        """Bit n: file n. What `Region.header["spill_files_usable"]` is to say."""
        return sum(1 << number for number in range(len(self.files)) if self.usable(number))

    def choose(self, nbytes: int) -> int | None:
        """The file for the next frame, with `nbytes` noted as on their way to it until `settle`. None: none is fit."""
        with self._mutex:
            fit = [
                number
                for number, file in enumerate(self.files)
                if file is not None and file.writable and self.usable(number)
            ]
            if not fit:
                return None
            count = len(self.files)
            chosen = min(
                fit, key=lambda number: (self._pending[number], (number - self._turn) % count)
            )
            self._turn = (chosen + 1) % count
            self._pending[chosen] += nbytes
            return chosen

    def settle(self, number: int, nbytes: int) -> None:
        """What was chosen for is written, or given up."""
        with self._mutex:
            self._pending[number] -= nbytes

    def probe_due(self) -> list[int]:
        """Ask files that failed again, those whose time has come; which of them came back.

        May take as long as the device does: not from a thread that others wait for.
        """
        back = []
        for number, file in enumerate(self.files):
            if file is None or (file.readable and file.writable):
                continue
            if file.waiting_seconds or self._clock() < self._probe_at[number]:
                continue
            if file.probe():
                self._probe_wait[number] = PROBE_SECONDS
                back.append(number)
                tell(
                    SPILL_ANSWERS,
                    "spill file %s answers again",
                    file.path,
                    spill_file=number,
                    path=file.path,
                )
            else:
                self._probe_wait[number] = min(2 * self._probe_wait[number], PROBE_SECONDS_MAX)
            self._probe_at[number] = self._clock() + self._probe_wait[number]
        return back
