"""One death of a procedure from beginning to end: a scene, a child that dies at a line, and the judgement.

As `run.py` for operations and crash points; `passed` asks a procedure which lines and points it passes, by letting
it run to its end. Called by the tests.
"""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tests.crash.aftermath import come_next, look_around
from tests.crash.forker import Forker
from tests.crash.judge import Verdict
from tests.crash.procedures import PROCEDURES, Procedure
from tests.crash.scenes import opened_scene
from tests.crash.tracing import Line

__all__ = ["CREATOR", "Death", "die", "passed"]

CREATOR = PROCEDURES[0]  # who passes all that a creation passes


class Death(NamedTuple):
    """Where a procedure dies, at a line or at a crash point, and who comes next."""

    line: Line | None
    crash: str
    successor: str

    def __str__(self) -> str:
        point = f"crash point {self.crash}"
        return f"died {f'before {self.line}' if self.line else point}, then a {self.successor}"


def passed(
    procedure: Procedure, forker: Forker, folder: Path
) -> tuple[dict[tuple[str, int], int], Counter[int]]:
    """How often it passes each line and crash point when nobody dies; it must end well, and be judged well."""
    passes, log = folder / "passes", folder / "points"
    log.write_text("")
    verdict = Verdict()
    with opened_scene(procedure.scene, forker) as scene:
        pid = forker.begin(procedure.name, scene.name, passes=str(passes), log=str(log))
        ended = forker.wait(pid)
        assert ended == ("exited", 0), f"{procedure.name}: {ended} {forker.last_words()}"
        look_around(scene, verdict)
        come_next("supervisor", procedure, scene, forker, verdict)
    assert not verdict.complaints, f"{procedure.name}, nobody killed: {verdict.complaints}"
    lines = {(file, number): count for file, number, count in json.loads(passes.read_text())}
    return lines, Counter(map(int, log.read_text().split()))


def die(procedure: Procedure, death: Death, forker: Forker) -> Verdict:
    """Judged as well when it was not reached, which is a complaint.

    A loop over what lies in a directory is passed less often when other processes' files have gone meanwhile:
    then it dies in the last pass there is.
    """
    verdict, ended = _die_once(procedure, death, forker)
    while ended == ("exited", 0) and death.line is not None and death.line.pass_number > 1:
        fewer = death.line._replace(pass_number=death.line.pass_number - 1)
        death = death._replace(line=fewer)
        verdict, ended = _die_once(procedure, death, forker)
    if ended[0] == "hung":
        verdict.hangs += 1
    if ended != ("killed", signal.SIGKILL):
        verdict.complaints.append(f"the child ended as {ended}: {forker.last_words()}")
    return verdict


def _die_once(
    procedure: Procedure, death: Death, forker: Forker
) -> tuple[Verdict, tuple[str, int]]:
    verdict = Verdict()
    with opened_scene(procedure.scene, forker) as scene:
        pid = forker.begin(procedure.name, scene.name, line=death.line, crash=death.crash)
        ended = forker.wait(pid)
        look_around(scene, verdict)
        come_next(death.successor, procedure, scene, forker, verdict)
    return verdict, ended
