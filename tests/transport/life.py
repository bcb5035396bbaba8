"""One life of a transport worker, and what must hold when it ends at any line of it.

The life: of its two spill files one is found with blocks in it, the other is made. Blocks are stored until both files
have turned around; some are evicted and asked for again; then the worker ends. An engine goes on all the while. Afterwards
a successor opens the files; what it finds is asked for, and every byte judged. Called by `test_deaths.py`.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pegashm import fsck
from pegashm._native import MISSING, OK, SPILLED
from pegashm.spill.survey import survey
from pegashm.transport.messages import Answer
from pegashm.units import KIB, MIB

from tests.arenas import Shape
from tests.crash.forker import Forker
from tests.crash.tracing import Line
from tests.transport.rig import Rig, eventually, key_of

__all__ = ["Judgement", "Life", "template"]

SHAPE = Shape(segment_bytes=MIB, segments_per_arena=(4,), spill_records=270)  # 64 blocks of 64 KiB
BYTES = 64 * KIB
FILE_BYTES = 16 * MIB  # eight regions of 31 blocks
FILES = 2
OLD = range(2001, 2245)  # stored in a life before: the first file is full
BATCHES = 10
A_BATCH = 12
AT_ONCE_SECONDS = (
    5.0  # what an engine does beside a dead worker takes milliseconds; the machine may be busy
)


@dataclass(slots=True)
class Judgement:
    """What came of one death."""

    complaints: list[str] = field(default_factory=list)
    judged: int = 0
    promoted: int = 0


def template(folder: Path, forker: Forker) -> Path:
    """A spill file with the blocks of OLD in it."""
    life = Life(folder, forker, files=1)
    try:
        life.begin()
        for first in range(OLD.start, OLD.stop, A_BATCH):
            life.store(range(first, min(first + A_BATCH, OLD.stop)))
            stored = min(first + A_BATCH, OLD.stop) - OLD.start
            eventually(lambda seen=stored: life.rig.counter("spill_stored") >= seen)  # type: ignore[misc]
        assert life.end() == ("exited", 0), life.rig.said()
    finally:
        life.close()
    return Path(life.rig.paths[0])


class Life:
    """An arena, its spill files in `folder`, an engine, and workers that the fork server makes."""

    def __init__(
        self, folder: Path, forker: Forker, *, found: Path | None = None, files: int = FILES
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.forker = forker
        self.pid = 0
        if found is not None:
            shutil.copy(found, folder / "spill0")
        self.rig = Rig(
            folder,
            shape=SHAPE,
            files=files,
            file_bytes=FILE_BYTES,
            low=0.1,
            high=0.2,
            sync_seconds=0.1,
        )
        # The fork server's children have another parent than a supervisor's: it kills them itself.
        self.options = replace(self.rig.options, parent_pid=0).to_json()
        self.keys: list[bytes] = []

    def begin(self, line: Line | None = None, passes: str = "") -> None:
        self.pid = self.forker.work(self.options, self.rig.runtime.name, line=line, passes=passes)

    def store(self, numbers: Iterable[int]) -> list[bytes]:
        return self.rig.store(numbers, BYTES)

    def alive(self) -> bool:
        """Whether it has not been killed yet; a zombie has."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except FileNotFoundError:
            return False
        return stat.rpartition(")")[2].split()[0] != "Z"

    def end(self) -> tuple[str, int]:
        """In good order, unless it is dead already."""
        if self.alive():
            os.kill(self.pid, signal.SIGTERM)
        ended = self.forker.wait(self.pid)
        self.pid = 0
        return ended

    def close(self) -> None:
        if self.pid:
            if self.alive():
                os.kill(self.pid, signal.SIGKILL)
            self.forker.wait(self.pid)
        self.rig.close()

    # -- the life --------------------------------------------------------------------------------

    def live(self) -> None:
        """All that an engine wants of a worker, as far as it lives."""
        rig = self.rig
        self._until(lambda: self._usable() == FILES)
        for batch in range(BATCHES):
            first = 1 + batch * A_BATCH
            seen = self._written()
            self.keys += self.store(range(first, first + A_BATCH))
            self._until(lambda before=seen: self._written() >= before + A_BATCH)  # type: ignore[misc]
            spilled = [key for key in self.keys if rig.outcomes([key]) == [SPILLED]]
            asked = spilled[-8:]
            if asked and (ticket := self._ask(asked)) is not None:
                self._until(lambda one=ticket: self._answered(one))  # type: ignore[misc]
                rig.judge(asked)

    def _ask(self, keys: Sequence[bytes]) -> int | None:
        found: list[int] = []

        def asked() -> bool:
            ticket = self.rig.client.promote(keys, self.rig.cache.namespace_id, 5000)
            found.extend([] if ticket is None else [ticket])
            return bool(found)

        self._until(asked)
        return found[0] if found else None

    def _answered(self, ticket: int) -> bool:
        return any(reply.request_id == ticket for reply in self.rig.client.replies())

    def _written(self) -> int:
        """Blocks that were, or that left memory before it was their turn."""
        return self.rig.counter("spill_stored") + self.rig.counter("spill_late")

    def _usable(self) -> int:
        return int(self.rig.arena.region.header["spill_usable"]).bit_count()

    def _serves(self) -> bool:
        """This very worker: what a killed one has left in the header says nothing of it."""
        mine = int(self.rig.arena.region.header["transport_pid"]) == self.pid
        return mine and self._usable() == FILES

    def _until(self, holds: Callable[[], bool]) -> None:
        """Until it is so, or the worker is dead: what it did not do then is nobody's fault."""
        deadline = time.monotonic() + 20.0
        while self.alive() and not holds():
            assert time.monotonic() < deadline, f"never came true: {self.forker.last_words()}"
            time.sleep(0.003)

    # -- afterwards ------------------------------------------------------------------------------

    def judge(self) -> Judgement:
        """The engine goes on at once; a successor finds the files; nothing found is wrong, nothing leaks."""
        judgement = Judgement()
        rig = self.rig
        began = time.monotonic()
        judgement.judged += rig.judge(self.keys)
        fresh = self.store(range(9001, 9009))
        if rig.outcomes(fresh) != [OK] * len(fresh):
            judgement.complaints.append(f"the engine cannot store: {rig.outcomes(fresh)}")
        if time.monotonic() - began > AT_ONCE_SECONDS:
            judgement.complaints.append(f"the engine waited {time.monotonic() - began:.1f} s")

        self.begin()
        eventually(lambda: self._serves() or not self.alive())
        if not self.alive():
            judgement.complaints.append(f"no successor: {self.forker.last_words()}")
        else:
            self._promote_all(judgement, {*self.keys, *fresh, *map(key_of, OLD)})
        ended = self.end()
        if ended != ("exited", 0):
            judgement.complaints.append(f"the successor ended as {ended}")
        rig.cache.reap_dead()
        report = fsck.check(rig.arena)
        if not report.clean:
            judgement.complaints.append(f"fsck: {report}")
        if damaged := rig.counter("spill_damaged"):
            judgement.complaints.append(f"{damaged} damaged blocks were listed")
        for path in rig.paths:
            found = survey(path, payloads=True)
            if found.exit_status:
                judgement.complaints.append(f"{path}: {found.lines()}")
        return judgement

    def _promote_all(self, judgement: Judgement, keys: set[bytes]) -> None:
        rig = self.rig
        every = sorted(keys)
        outcomes = rig.outcomes(every)
        if strange := set(outcomes) - {OK, SPILLED, MISSING}:
            judgement.complaints.append(f"outcomes {strange}")
        spilled = [key for key, outcome in zip(every, outcomes, strict=True) if outcome == SPILLED]
        for at in range(0, len(spilled), 16):
            some = spilled[at : at + 16]
            answers = rig.promote(some)
            # What is brought in pushes others out; what is written then may turn the file over what was asked for.
            if strange := set(answers) - {Answer.OK, Answer.MISSING}:
                judgement.complaints.append(f"answers {strange}: {self.forker.last_words()}")
            judgement.promoted += answers.count(Answer.OK)
            judgement.judged += rig.judge(some)
