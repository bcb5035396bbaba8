"""What does the transport worker do from its first instruction to its last?

It takes the arena's TRANSPORT lock, begins with empty tables of blocks on SSD and on other hosts, starts a thread a spill
file that opens and lists it, and those that deal with other hosts (`pegashm.peers`), listens, and then answers
engines: requests go to promoter and fetcher, answers come back from them. This loop touches no device and waits for
nothing but messages. Killed at any instruction it costs the hits of the tier
until its successor has opened the files again: what it claimed and pinned is reaped, what it listed is begun anew.

Ends on SIGTERM, with its supervisor (however that dies), when the arena is purged, or with status 1 and one line
when there is nothing it can do: its supervisor tries again later. Run as `python -m pegashm.transport.worker OPTIONS`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import zmq

from pegashm import _native, logs
from pegashm.cache import Cache
from pegashm.creation import group_id
from pegashm.errors import ArenaBusyError, PegaShmError, ResourceError
from pegashm.liveness import TRANSPORT_BYTE, try_lock
from pegashm.logs import LogConfig, tell
from pegashm.notices import ENDING, FAILED, WORKER_LISTENING, WORKER_STUCK
from pegashm.peers.service import PeerService
from pegashm.termination import Termination
from pegashm.transport.desk import Desk
from pegashm.transport.endpoint import Endpoint
from pegashm.transport.messages import Done, Error, Malformed, Ping, Pong, Promote, pack, parse
from pegashm.transport.namespaces import Namespaces
from pegashm.transport.options import WorkerOptions
from pegashm.transport.promoter import THREADS_A_FILE, Promoter
from pegashm.transport.spiller import Spiller
from pegashm.transport.tier import Tier

__all__ = ["main", "run"]

_PROCESS: Final = "transport worker"
_PR_SET_PDEATHSIG: Final = 1
_POLL_MS: Final = 50
_MESSAGES_AT_ONCE: Final = 64
_LOOK_EVERY_SECONDS: Final = 1.0
_END_PATIENCE_SECONDS: Final = 5.0


def main(arguments: list[str]) -> int:
    """The exit status. One line in the log says why when it is not 0."""
    try:
        if len(arguments) != 1:
            raise PegaShmError(
                "the transport worker is started by `pegashm serve` (--spill, --listen)"
            )
        options = WorkerOptions.from_json(arguments[0])
        logs.configure(_log_config(options))
        _end_with(options.parent_pid)
        run(options)
    except (PegaShmError, OSError) as error:
        if logs.configuration() is None:
            logs.configure(LogConfig(process=_PROCESS))
        tell(FAILED, "transport worker: %s", error)
        return 1
    return 0


def _log_config(options: WorkerOptions) -> LogConfig:
    log_format, level = options.log or (LogConfig().format, LogConfig().level)
    return LogConfig(format=log_format, level=level, arena=options.name, process=_PROCESS)


def run(options: WorkerOptions) -> None:
    """Serve one arena until SIGTERM. Raises PegaShmError when that cannot be done (any more)."""
    with Termination() as termination:
        cache = Cache.attach(
            options.name, namespace=None, label="transport worker", wait_s=options.lock_seconds
        )
        worker = _Worker(cache, options, termination)
        try:
            _take_lock(cache, options.lock_seconds, termination)
            worker.serve()
        finally:
            worker.end()


class _Worker:
    """The main thread, and the threads that it started."""

    def __init__(self, cache: Cache, options: WorkerOptions, termination: Termination) -> None:
        self._cache = cache
        self._options = options
        self._termination = termination
        self._threads: list[threading.Thread] = []
        self._failure: BaseException | None = None
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._spill: _Spill | None = None
        if options.spill is not None:
            tier = Tier(cache, options.spill, stall_seconds=options.stall_seconds)
            spiller = Spiller(tier)
            self._spill = _Spill(tier, spiller, Promoter(tier, self._wake, spiller.wake))
        self._peers: PeerService | None = None
        self._desk = Desk(None, None, None)
        self._endpoint: Endpoint | None = None
        self._pong = (os.getpid(), time.time_ns())

    def serve(self) -> None:
        # What a former worker listed is not believed, also where this one has no use for the table.
        if self._spill is not None:
            self._spill.tier.clear()
        else:
            _native.SpillTable(self._cache.region).clear()
        _native.RemoteTable(self._cache.region).clear()
        gid = group_id(self._options.group) if self._options.group is not None else None
        with zmq.Context() as context:
            self._endpoint = Endpoint.listen(context, self._options.name, gid)
            try:
                self._open_peers(os.path.dirname(self._endpoint.path))
                self._start_threads()
                self._cache.region.set_transport(self._endpoint.path, *self._pong)
                tell(
                    WORKER_LISTENING,
                    'transport worker of arena "%s" listens on %s',
                    self._options.name,
                    self._endpoint.path,
                    path=self._endpoint.path,
                )
                self._loop(self._endpoint.router)
            finally:
                self._cache.region.set_transport("", 0, 0)
                if self._spill is not None:
                    self._spill.tier.unlist()
                self._endpoint.close()

    def end(self) -> None:
        """Stop the threads, close the files, detach. A device that hangs: leave at once, the kernel does the rest."""
        if self._spill is not None:
            self._spill.tier.stopping.set()
            self._spill.spiller.wake()
            self._spill.promoter.stop()
        if self._peers is not None:
            self._peers.stop()
        deadline = time.monotonic() + _END_PATIENCE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        ended = not any(thread.is_alive() for thread in self._threads)
        if ended and self._peers is not None:
            self._peers.close()
        if ended and (self._spill is None or self._spill.tier.files.close(_END_PATIENCE_SECONDS)):
            self._cache.close()
            return
        # Something still reads into our claims or writes from our pins. They are ours until the kernel has ended it,
        # and so is the lock: closing in good order would give that memory to others now.
        tell(
            WORKER_STUCK,
            "transport worker: a device has not answered: ending without waiting for it",
            pid=os.getpid(),
        )
        os._exit(1)

    # -- threads ---------------------------------------------------------------------------------

    def _open_peers(self, folder: str) -> None:
        """What listens for other hosts; and the desk, which needs to know who brings blocks."""
        if self._options.peers is not None:
            spill = self._spill
            self._peers = PeerService(
                self._cache,
                Namespaces(self._cache.arena) if spill is None else spill.tier.namespaces,
                self._options.peers,
                folder=folder,
                answered=self._wake,
                spill=None if spill is None else spill.tier.table,
            )
        self._desk = Desk(
            None if self._spill is None else self._spill.tier.table,
            None if self._spill is None else self._spill.promoter,
            None if self._peers is None else self._peers.fetcher,
            region=self._cache.region,
        )

    def _start_threads(self) -> None:
        if self._spill is not None:
            self._start("spiller", self._spill.spiller.run)
            self._start("prober", self._spill.tier.probe_until_stopped)
            for number, writer in enumerate(self._spill.spiller.writers):
                self._start(f"writer {number}", writer.run)
                for _ in range(THREADS_A_FILE):
                    self._start(
                        f"reader {number}", functools.partial(self._spill.promoter.run, number)
                    )
        if self._peers is not None:
            self._peers.start(self._start, None if self._spill is None else self._promote)

    def _promote(
        self,
        keys: tuple[bytes, ...],
        namespace_id: int,
        bytes_max: int,
        wait_ms: int,
        arrived: Callable[[], None],
    ) -> None:
        """Blocks on our SSD that another host asks for, as many as it can have. Called by the server's thread."""
        assert self._spill is not None
        sizes = self._spill.tier.table.find(keys, namespace_id)["payload_bytes"]
        fit = int((sizes.cumsum() <= bytes_max).sum())
        if not fit:
            arrived()
            return
        request = Promote(
            request_id=0,
            region_id=self._cache.region_id,
            namespace_id=namespace_id,
            deadline_ms=max(1, wait_ms),
            keys=keys[:fit],
        )
        self._desk.submit(request, lambda _done: arrived(), fetch=False)

    def _start(self, name: str, life: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                life()
            except BaseException as error:  # noqa: BLE001 - the main thread ends with it, and says so
                self._failure = error
                self._wake()

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: it is awake
            os.write(self._wake_write, b"\0")

    # -- the loop --------------------------------------------------------------------------------

    def _loop(self, router: zmq.Socket[bytes]) -> None:
        poller = zmq.Poller()
        poller.register(router, zmq.POLLIN)
        poller.register(self._wake_read, zmq.POLLIN)
        look_at = 0.0
        while not self._termination.wait(0):
            ready = dict(poller.poll(_POLL_MS))
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
            if router in ready:
                self._receive(router)
            now = time.monotonic()
            self._desk.expire(now)
            self._desk.pump()
            if self._spill is not None:
                self._spill.tier.watch()
            if self._peers is not None:
                self._peers.tick()
            self._judge()
            if now >= look_at:
                look_at = now + _LOOK_EVERY_SECONDS
                if not self._cache.arena.is_linked():
                    raise PegaShmError(f'arena "{self._options.name}" is gone: ending with it')
        tell(ENDING, "transport worker: %s received: ending", self._termination.signal_name)

    def _judge(self) -> None:
        if self._failure is not None:
            raise PegaShmError(f"a thread failed: {self._failure!r}") from self._failure
        if self._spill is not None and self._spill.tier.all_failed and self._peers is None:
            raise ResourceError(
                "no spill file can be used (see above): blocks on SSD are misses until one can"
            )

    def _receive(self, router: zmq.Socket[bytes]) -> None:
        for _ in range(_MESSAGES_AT_ONCE):
            try:
                parts = router.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            peer = parts[0]
            message = (
                parse(parts[1])
                if len(parts) == 2
                else Malformed(f"a message is one frame, this one has {len(parts) - 1}")
            )
            if isinstance(message, Promote):
                self._desk.submit(message, functools.partial(_answer, router, peer))
            elif isinstance(message, Ping):
                _send(router, peer, pack(Pong(message.request_id, *self._pong)))
            elif isinstance(message, Malformed):
                _send(router, peer, pack(Error(message.request_id, message.reason)))
            # DONE, PONG and ERROR are ours to say: from an engine they mean nothing.


@dataclass(frozen=True, slots=True)
class _Spill:
    """What there is with --spill."""

    tier: Tier
    spiller: Spiller
    promoter: Promoter


def _answer(router: zmq.Socket[bytes], peer: bytes, done: Done) -> None:
    _send(router, peer, pack(done))


def _send(router: zmq.Socket[bytes], peer: bytes, frame: bytes) -> None:
    """To a peer that may be gone or may not read: then it is dropped, as a ROUTER does."""
    with contextlib.suppress(zmq.ZMQError):
        router.send_multipart([peer, frame], zmq.DONTWAIT)


def _take_lock(cache: Cache, seconds: float, termination: Termination) -> None:
    """Be the only worker of this arena. A predecessor that is ending is waited for."""
    deadline = time.monotonic() + seconds
    while not try_lock(cache.arena.control_fd, TRANSPORT_BYTE):
        if termination.wait(0.05):
            raise PegaShmError("asked to end before another worker did")
        if time.monotonic() > deadline:
            raise ArenaBusyError(
                f'arena "{cache.name}" has a transport worker (pid {cache.region.header["transport_pid"]}), and '
                f"after {seconds:g} s it still lives: each arena has one. If its supervisor is dead, it hangs in a "
                "device: see `dmesg`"
            )


def _end_with(parent_pid: int) -> None:
    """Be killed when the supervisor dies, so that its successor finds the lock free."""
    if not parent_pid:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise ResourceError(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent_pid:  # it died before that
        raise PegaShmError("its supervisor is gone: ending")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
