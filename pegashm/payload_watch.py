"""Are the payload files that a supervisor has mapped still there, and whole?

Linux takes the name of a file from under its users without telling them, and its end too. A removed payload
file harms nobody who has it mapped, but nobody else can open the arena any more. One that was cut short kills
whoever touches what was cut off (SIGBUS), which no user of a file can prevent: only memfds can be sealed.
The files are held open by `O_PATH` descriptors, which keep no lock and map nothing, so that what is asked
is about the very files, whatever their names lead to by now. Asked once a second by the supervisor.
"""

import os
from types import TracebackType

from pegashm.arena import Arena

__all__ = ["PayloadWatch"]


class PayloadWatch:
    """Looks after the payload files of an arena that has just been opened."""

    def __init__(self, arena: Arena) -> None:
        self._files: list[tuple[str, int, int]] = []  # path, descriptor, bytes there must be
        for entry in arena.region.header["arenas"]:
            path = os.fsdecode(entry["path"])
            try:
                descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError:  # gone since it was mapped: `lost` will say so
                descriptor = -1
            self._files.append((path, descriptor, int(entry["bytes"])))

    def lost(self) -> str:
        """What happened to one of them; empty when all are whole."""
        for path, descriptor, nbytes in self._files:
            facts = os.fstat(descriptor) if descriptor >= 0 else None
            if facts is None or facts.st_nlink == 0:
                return f"{path} was removed"
            if facts.st_size < nbytes:
                return f"{path} was cut to {facts.st_size} of {nbytes} bytes"
        return ""

    def close(self) -> None:
        for _, descriptor, _ in self._files:
            if descriptor >= 0:
                os.close(descriptor)
        self._files.clear()

    def __enter__(self) -> "PayloadWatch":  # noqa: PYI034 - typing.Self came with Python 3.11
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
