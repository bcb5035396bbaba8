"""Does the transport worker live, and if not, when is it started again?

The supervisor's side: one child process, looked at in every turn of the supervisor's loop, never waited for. One that ends
is started again after half a second, twice that the next time and so on up to 30 s, until it has lived for a
minute. On a supervisor's own end in good order it is asked to end and killed when it does not; when the supervisor
dies, the kernel kills it (see `worker`). Nothing here can fail a supervisor: without a worker the tier is misses.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from pegashm.config import ServeConfig
from pegashm.logs import configuration, tell
from pegashm.notices import WORKER_ENDED, WORKER_NOT_STARTED, WORKER_STUCK
from pegashm.transport.options import WorkerOptions

__all__ = ["Keeper"]

_PAUSE_SECONDS = 0.5
_PAUSE_SECONDS_MAX = 30.0
_WELL_AFTER_SECONDS = 60.0
_END_SECONDS = 15.0


class Keeper:
    """Keeps one worker running while `tick` is called. Without --spill and --listen it does nothing."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._start_at = 0.0
        self._started_at = 0.0
        self._pause = _PAUSE_SECONDS

    @property
    def pid(self) -> int:
        """Of the worker that runs, 0 when none does."""
        return self._process.pid if self._process is not None else 0

    def tick(self) -> None:
        """Start it if it is time to; see whether it ended."""
        if self._config.spill is None and self._config.peers is None:
            return
        now = time.monotonic()
        if self._process is not None:
            self._look(now)
        if self._process is None and now >= self._start_at:
            self._start(now)

    def stop(self) -> None:
        """End it, in good order if it can."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            tell(
                WORKER_STUCK,
                "the transport worker (pid %d) did not end: killed",
                process.pid,
                pid=process.pid,
            )
            process.kill()
            # One that waits for a device that hangs cannot die before the device answers: leave it to init.
            try:
                process.wait(1.0)
            except subprocess.TimeoutExpired:
                tell(
                    WORKER_STUCK,
                    "the transport worker (pid %d) waits for a device: see `dmesg`",
                    process.pid,
                    pid=process.pid,
                )

    def _start(self, now: float) -> None:
        log = configuration()
        options = WorkerOptions(
            name=self._config.name,
            spill=self._config.spill,
            peers=self._config.peers,
            group=self._config.group,
            log=None if log is None else (log.format, log.level),
            parent_pid=os.getpid(),
        )
        command = [sys.executable, "-m", "pegashm.transport.worker", options.to_json()]
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        except OSError as error:
            tell(WORKER_NOT_STARTED, "cannot start the transport worker: %s", error)
            self._again_later(now)
            return
        self._started_at = now

    def _look(self, now: float) -> None:
        assert self._process is not None
        status = self._process.poll()
        if status is None:
            return
        if now - self._started_at >= _WELL_AFTER_SECONDS:
            self._pause = _PAUSE_SECONDS
        pid, self._process = self._process.pid, None
        how = (
            f"was killed by {signal.Signals(-status).name}"
            if status < 0
            else f"ended with status {status}"
        )
        tell(
            WORKER_ENDED,
            "the transport worker %s: blocks on SSD and other hosts are misses until it is back, started again in %.1f s",
            how,
            self._pause,
            pid=pid,
            exit_status=status,
        )
        self._again_later(now)

    def _again_later(self, now: float) -> None:
        self._start_at = now + self._pause
        self._pause = min(2 * self._pause, _PAUSE_SECONDS_MAX)
