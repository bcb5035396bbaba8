"""How does a test have a child of the checked build started, watched and killed? It asks the fork server.

One server a test session, started when first needed. See `server.py` for what it answers.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

from tests import flavours
from tests.crash.tracing import Line

__all__ = ["Forker"]

CHILD_SECONDS = 20.0  # a child that works this long hangs: it has some hundred steps to do


class Forker:
    """The fork server, from the side of who asks."""

    def __init__(self, log: Path) -> None:
        """`log` takes what children say on standard error."""
        self.log = log
        with open(log, "wb") as errors:
            self.process = subprocess.Popen(
                flavours.command("checked", "tests.crash.server"),
                cwd=flavours.ROOT,
                env=flavours.environment(
                    "checked", OPENBLAS_NUM_THREADS="1", PEGASHM_CRASH="", PEGASHM_CRASH_LOG=""
                ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def start(self, operation: str, arena: str, crash: str = "", log: str = "") -> int:
        """The pid of a child that begins `operation`, to die as `crash` says."""
        answer = self._ask(do="start", operation=operation, arena=arena, crash=crash, log=log)
        return int(answer["pid"])

    def begin(
        self,
        procedure: str,
        arena: str,
        *,
        line: Line | None = None,
        crash: str = "",
        log: str = "",
        words: str = "",
        passes: str = "",
    ) -> int:
        """The pid of a child that begins `procedure`, to die at `line` or as `crash` says.

        `words` takes the message of a PegaShmError that ended it, `passes` how often it passed each line.
        """
        answer = self._ask(
            do="begin",
            procedure=procedure,
            arena=arena,
            line=line,
            crash=crash,
            log=log,
            words=words,
            passes=passes,
        )
        return int(answer["pid"])

    def work(
        self, options: str, runtime: str, *, line: Line | None = None, passes: str = ""
    ) -> int:
        """The pid of a transport worker that begins its life, to die at `line`; its socket lies in `runtime`."""
        answer = self._ask(do="work", options=options, runtime=runtime, line=line, passes=passes)
        return int(answer["pid"])

    def wait(self, pid: int) -> tuple[str, int]:
        """(killed | stopped | exited | hung, signal or status)."""
        answer = self._ask(do="wait", pid=pid, seconds=CHILD_SECONDS)
        return str(answer["state"]), int(answer["code"])

    def last_words(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(CHILD_SECONDS)

    def _ask(self, **request: object) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the fork server ended: {self.last_words()}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Forker:  # noqa: PYI034 - typing.Self came with Python 3.11
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
