"""What does `pegashm serve` do from its first instruction to its last?

It takes the SUPERVISOR lock, creates the arena or re-adopts the one that a former supervisor left,
fills its memory in the background, tells the service manager, and then looks once a second for clients
that died. It is on no path of an engine: killed at any instruction, it costs nothing but the reaping,
and its successor goes on where it was. On SIGTERM it leaves the arena in place, unless ephemeral.
Should somebody remove or shorten the arena's files under it, nobody can open the arena any more: it removes
the rest, so that engines let go of it, says so and ends with status 1, for its service manager to start it anew.
Runs in the main thread of its own process; the only other threads are those of `populate.py`. With --spill it
keeps a transport worker running, a process of its own (`transport/keeper.py`).
"""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from pegashm import fsck
from pegashm._native import draining_since
from pegashm.adoption import check_same, purge_line, refuse
from pegashm.arena import Arena, open_arena, read_header
from pegashm.config import ServeConfig
from pegashm.creation import (
    create,
    forget_pending,
    group_id,
    lock_control,
    remove,
    remove_unfinished,
    set_permissions,
)
from pegashm.errors import ArenaBusyError, PegaShmError, ResourceError
from pegashm.layout import plan_layout
from pegashm.liveness import close_lock_file, live_slots
from pegashm.logs import tell
from pegashm.machine import memlock_advice, memlock_limit, mount_of, thp_advice
from pegashm.names import control_path
from pegashm.notices import (
    ARENA_CREATED,
    ARENA_CREATING,
    ARENA_DRAINING,
    ARENA_KEPT,
    ARENA_ON_DISK,
    ARENA_POPULATED,
    ARENA_READOPTED,
    ARENA_READY,
    ARENA_REMOVED,
    ARENA_REPAIRED,
    ARENA_UNCHECKED,
    ARENA_UNFINISHED,
    ENDING,
    HUGE_PAGES_POSSIBLE,
    MEMORY_NOT_BOUND,
    MEMORY_NOT_LOCKED,
    POPULATE_FAILED,
)
from pegashm.payload_watch import PayloadWatch
from pegashm.populate import PopulatePlan, Populator
from pegashm.progress import ProgressView
from pegashm.reaper import reap_dead_clients
from pegashm.systemd import Notifier
from pegashm.termination import StoppedError, Termination
from pegashm.transport.keeper import Keeper
from pegashm.units import format_bytes

__all__ = ["serve"]

_TICK_SECONDS: Final = 1.0
_TICK_SECONDS_POPULATING: Final = 0.1
_ATTEMPTS: Final = 8


def serve(config: ServeConfig) -> None:
    """Supervise one arena until SIGTERM or SIGINT. Raises PegaShmError when that cannot be done."""
    with Termination() as termination, contextlib.closing(Notifier()) as notifier:
        try:
            with _arena(config, termination, notifier) as (arena, watch, existed):
                _Supervisor(config, arena, watch, termination, notifier).run(existed)
        except StoppedError as stopped:
            tell(ENDING, "%s before the arena was there: nothing is left of it", stopped)
        finally:
            notifier.stopping()


@contextlib.contextmanager
def _arena(
    config: ServeConfig, termination: Termination, notifier: Notifier
) -> Iterator[tuple[Arena, PayloadWatch, bool]]:
    """The arena, created or re-adopted, with the SUPERVISOR lock held for as long as it is used."""
    lock_fd, existed = _create_or_check(config, termination, notifier)
    try:
        with open_arena(config.name) as arena, PayloadWatch(arena) as watch:
            try:
                yield arena, watch, existed
            finally:
                _leave(config, arena)
    finally:
        close_lock_file(lock_fd)


def _leave(config: ServeConfig, arena: Arena) -> None:
    """What becomes of the arena when its supervisor ends in good order."""
    if not arena.is_linked():
        return
    if config.ephemeral:
        remove(config.name, _payload_paths(arena))
        tell(ARENA_REMOVED, 'arena "%s" removed, as --ephemeral asks', config.name)
    else:
        tell(
            ARENA_KEPT,
            'arena "%s" stays in place; %s removes it',
            config.name,
            purge_line(config.name),
        )


def _create_or_check(
    config: ServeConfig, termination: Termination, notifier: Notifier
) -> tuple[int, bool]:
    """A descriptor with the SUPERVISOR lock, of an arena that is right, and whether it was there."""
    gid = group_id(config.group) if config.group is not None else None
    for _ in range(_ATTEMPTS):
        lock_fd = lock_control(config.name)
        try:
            verdict = read_header(lock_fd)
            if verdict.ready:
                check_same(config, verdict.info)
                _check_memlock(config, verdict.info["payload_bytes"])
                forget_pending(config.name)
                _apply_permissions(config.name, verdict.info, gid)
                return lock_fd, True
            if not verdict.not_yet:
                raise refuse(config.name, verdict.reason)
            if os.fstat(lock_fd).st_size == 0:
                _create(config, lock_fd, gid, termination, notifier)
                return lock_fd, False
            # Somebody died while creating it. A new object, not this one cut to zero: a tool may
            # be looking at it through a mapping.
            if slots := live_slots(lock_fd):
                raise ArenaBusyError(
                    f'arena "{config.name}" has a damaged header, but clients {slots} still use it: '
                    f"stop them, then {purge_line(config.name)}"
                )
            tell(
                ARENA_UNFINISHED,
                'arena "%s" was never finished by its creator: created anew',
                config.name,
            )
            remove_unfinished(config.name)
            close_lock_file(lock_fd)
        except BaseException:
            close_lock_file(lock_fd)
            raise
    raise ArenaBusyError(f'arena "{config.name}" keeps being created and removed by others')


def _create(
    config: ServeConfig, lock_fd: int, gid: int | None, termination: Termination, notifier: Notifier
) -> None:
    started = time.monotonic()
    try:
        layout = plan_layout(config)
        _check_memlock(config, layout.plan["payload_bytes"])
    except BaseException:
        remove_unfinished(config.name)
        raise
    tell(
        ARENA_CREATING,
        'creating arena "%s": %s payload in %s (%d segments of %s), %s control region, %s pages',
        config.name,
        format_bytes(layout.plan["payload_bytes"]),
        layout.place.directory,
        sum(layout.segments_per_arena),
        format_bytes(layout.segment_bytes),
        format_bytes(layout.plan["control_bytes"]),
        format_bytes(layout.place.page_bytes),
    )
    if advice := thp_advice(layout.place.mount):
        tell(HUGE_PAGES_POSSIBLE, "advice: %s", advice)
    if not (layout.place.mount.is_tmpfs or layout.place.mount.is_hugetlb):
        tell(
            ARENA_ON_DISK,
            "%s is on %s: the kernel will write the arena back to it; a tmpfs or hugetlbfs is better",
            layout.place.directory,
            layout.place.mount.kind,
        )

    def checkpoint(done: int, total: int) -> None:
        termination.check()
        notifier.extend_start(60)
        notifier.status(f"reserving memory: {format_bytes(done)} of {format_bytes(total)}")

    create(config.name, lock_fd, layout, gid=gid, checkpoint=checkpoint)
    tell(ARENA_CREATED, "created and reserved in %.1f s", time.monotonic() - started)


@dataclass(slots=True)
class _Supervisor:
    """The main loop over an arena that is there."""

    config: ServeConfig
    arena: Arena
    watch: PayloadWatch
    termination: Termination
    notifier: Notifier
    announced: bool = False
    lock_warned: bool = False

    def run(self, existed: bool) -> None:
        region = self.arena.region
        was_ready = int(region.header["segments_ready"])
        region.set_supervisor(os.getpid(), time.time_ns())  # first: whoever is refused now is told
        region.set_eviction(self.config.eviction)
        if existed:
            self._readopt()
            was_ready = int(region.header["segments_ready"])
        populator = Populator(region, self._populate_plan())
        populator.progress.segments_ready = was_ready
        keeper = Keeper(self.config)
        with ProgressView(populator.plan.payload_bytes, populator.progress) as view:
            populator.start()
            try:
                self._loop(populator, view, keeper)
            finally:
                self.notifier.stopping()
                keeper.stop()
                populator.stop()
        tell(ENDING, "%s received: ending", self.termination.signal_name)

    def _readopt(self) -> None:
        """Make whole what the former supervisor, or clients while there was none, left.

        What a dead client left is reaped; all else is judged and repaired by the rules of fsck, which beside
        living clients does only what is safe beside them, and leaves the rest to a time when they are gone.
        """
        name, region = self.config.name, self.arena.region
        self.notifier.extend_start(300)
        self.notifier.status("walking the records of the existing arena")
        reap_dead_clients(self.arena, None)
        try:
            report = fsck.repair(self.arena)
        except (
            PegaShmError
        ) as error:  # somebody stopped in the middle of attaching; or files are being removed
            tell(
                ARENA_UNCHECKED,
                'arena "%s" could not be checked: %s. Check it later: pegashm fsck --name %s --repair',
                name,
                error,
                name,
            )
        else:
            if lines := report.summary_lines():
                tell(ARENA_REPAIRED, "%s", "; ".join(line.strip() for line in lines))
        if draining_since(region.header):
            tell(
                ARENA_DRAINING,
                'arena "%s" is being drained: engines store nothing in it until `pegashm drain --name %s --undo`',
                name,
                name,
            )
        tell(
            ARENA_READOPTED,
            'arena "%s" re-adopted: %d blocks ready, %d of %d segments usable',
            name,
            region.tally()["ready"],
            region.header["segments_ready"],
            region.header["segment_count"],
        )

    def _loop(self, populator: Populator, view: ProgressView, keeper: Keeper) -> None:
        watchdog_seconds = self.notifier.watchdog_seconds or _TICK_SECONDS
        reap_at = 0.0
        while True:
            progress = populator.progress
            finished = progress.finished  # before the rest: what comes after it is final
            self._judge(populator)
            if progress.segments_ready and not self.announced:
                self._announce(progress.segments_ready)
            if view.tick(finished):
                self._report_populated(populator)
            keeper.tick()
            if time.monotonic() >= reap_at:
                reap_at = time.monotonic() + _TICK_SECONDS
                self._each_second(populator)
            pause = _TICK_SECONDS if finished else _TICK_SECONDS_POPULATING
            if self.termination.wait(min(pause, watchdog_seconds)):
                return

    def _each_second(self, populator: Populator) -> None:
        self.notifier.watchdog()
        if not self.arena.is_linked():
            raise PegaShmError(
                f'arena "{self.config.name}" was removed under its supervisor '
                f"({control_path(self.config.name)} is gone or another): nothing is left to supervise. "
                "Engines go on without it and join the next one: start `pegashm serve` again"
            )
        if lost := self.watch.lost():
            remove(self.config.name, _payload_paths(self.arena))
            raise PegaShmError(
                f'arena "{self.config.name}" was damaged under its supervisor: {lost}. Nobody can open it any '
                "more, so the rest is removed. Engines go on without it and join the next one: start "
                "`pegashm serve` again"
            )
        reap_dead_clients(self.arena, None)
        progress = populator.progress
        total = self.arena.region.header["segment_count"]
        self.notifier.status(f"{progress.segments_ready} of {total} segments ready")

    def _announce(self, segments_ready: int) -> None:
        self.announced = True
        total = self.arena.region.header["segment_count"]
        self.notifier.ready(f"{segments_ready} of {total} segments ready")
        tell(
            ARENA_READY,
            'ready: arena "%s", %d of %d segments',
            self.config.name,
            segments_ready,
            total,
            segments_ready=segments_ready,
            segment_count=total,
        )

    def _judge(self, populator: Populator) -> None:
        """Turn what went wrong while populating into an error, or a warning where we can go on."""
        progress = populator.progress
        if progress.failure is not None:
            raise progress.failure
        if progress.lock_errno and not self.lock_warned:
            self.lock_warned = True
            text = (
                f"cannot lock memory ({os.strerror(progress.lock_errno)}; the arena needs "
                f"{format_bytes(populator.plan.payload_bytes)}, this process may lock {memlock_limit()}): run "
                "`ulimit -l unlimited` as root before starting, or set LimitMEMLOCK=infinity in the systemd unit"
            )
            if self.config.require_lock:
                raise ResourceError(text)
            tell(MEMORY_NOT_LOCKED, "%s. Unlocked pages may be swapped out; going on", text)
        if progress.populate_errno:
            error, progress.populate_errno = progress.populate_errno, 0
            text = (
                f"cannot populate more than {format_bytes(progress.done_bytes)} of the arena "
                f"({os.strerror(error)}): is the machine or the control group out of memory?"
            )
            if not progress.segments_ready:
                raise ResourceError(text)
            tell(
                POPULATE_FAILED,
                "%s. Serving the %d segments that are ready",
                text,
                progress.segments_ready,
                segments_ready=progress.segments_ready,
            )

    def _report_populated(self, populator: Populator) -> None:
        progress = populator.progress
        if progress.bind_errno:
            tell(
                MEMORY_NOT_BOUND,
                "cannot bind to NUMA nodes (%s): memory is where the kernel put it",
                os.strerror(progress.bind_errno),
            )
        if progress.done_bytes == populator.plan.payload_bytes:
            locked = populator.plan.lock and not progress.lock_errno
            tell(
                ARENA_POPULATED,
                "populated%s %s",
                " and locked" if locked else "",
                format_bytes(progress.done_bytes),
                bytes=progress.done_bytes,
            )

    def _populate_plan(self) -> PopulatePlan:
        header = self.arena.region.header
        mount = mount_of(os.path.dirname(_payload_paths(self.arena)[0]))
        ranges, offset = [], 0
        for arena in header["arenas"]:
            ranges.append((offset, int(arena["bytes"]), int(arena["numa_node"])))
            offset += int(arena["bytes"])
        return PopulatePlan(
            ranges=tuple(ranges),
            segment_bytes=int(header["segment_bytes"]),
            page_bytes=int(header["page_bytes"]),
            huge=mount.gives_huge_pages,
            # Pages of hugetlbfs are never swapped: there is nothing to lock, only a limit to hit.
            lock=self.config.lock and not mount.is_hugetlb and memlock_advice(offset) is None,
            require_lock=self.config.require_lock,
            threads=self.config.populate_threads,
        )


def _check_memlock(config: ServeConfig, payload_bytes: int) -> None:
    """Before anything is made: can all of it be locked, and if not, is that an error?"""
    if not config.lock or config.hugepage_bytes is not None:
        return
    if advice := memlock_advice(payload_bytes):
        if config.require_lock:
            raise ResourceError(f"this process {advice}")
        tell(
            MEMORY_NOT_LOCKED,
            "this process %s. Going on without locking (--no-lock silences this)",
            advice,
        )


def _apply_permissions(name: str, info: dict[str, Any], gid: int | None) -> None:
    for path in [control_path(name), *(_text(arena["path"]) for arena in info["arenas"])]:
        with contextlib.suppress(FileNotFoundError):  # open_arena says so better
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                set_permissions(descriptor, gid)
            finally:
                os.close(descriptor)


def _payload_paths(arena: Arena) -> list[str]:
    return [_text(entry["path"]) for entry in arena.region.header["arenas"]]


def _text(path: str | bytes) -> str:
    return path if isinstance(path, str) else os.fsdecode(path)
