"""How do the shared-memory objects of an arena come to be, and how are they removed?

Both run under the SUPERVISOR lock and may be killed between any two steps. What makes that safe:
 - An arena exists exactly when its control object has its magic, which is stored last. Anything else
   of that name is a leftover; the next start (or purge) removes it and begins anew.
 - The payload files in question are listed in the *pending* file before the first is made, and before
   the control object is unlinked, so that they are found in whatever directory they are. With a ready
   control object beside it, a pending file means nothing and is dropped.
 - Whoever removes takes the magic first and unlinks the control object last: until then its lock keeps the
   next creator of that name away, whose payload files would have the same names.
 - Objects are never shrunk: a process that still maps an arena keeps it, whole, until it lets go.
Called by the supervisor and by `pegashm purge`.
"""

import contextlib
import errno
import glob
import grp
import json
import mmap
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final

import posix_ipc

from pegashm._native import format_region
from pegashm.arena import is_linked, open_arena, read_header
from pegashm.errors import (
    ArenaBusyError,
    ArenaMissingError,
    ConfigError,
    PegaShmError,
    ResourceError,
)
from pegashm.layout import UNBOUND, Layout, Place
from pegashm.liveness import (
    REGISTRY_BYTE,
    SUPERVISOR_BYTE,
    USED_BYTE,
    close_lock_file,
    live_slots,
    open_lock_file,
    read_only_message,
    try_lock,
)
from pegashm.logs import tell
from pegashm.machine import (
    free_bytes,
    hugetlb_advice,
    memory_limit,
    mount_of,
    node_cpus,
    space_advice,
)
from pegashm.names import (
    SHM_DIRECTORY,
    control_path,
    is_payload_name,
    pending_path,
    runtime_directory,
    trace_path,
)
from pegashm.notices import LEFTOVER_IN_USE, LEFTOVER_REMOVED
from pegashm.units import GIB, MIB, format_bytes
from pegashm.witness import pid_of_holder

__all__ = [
    "Checkpoint",
    "create",
    "forget_pending",
    "group_id",
    "lock_control",
    "purge",
    "remove",
    "remove_unfinished",
    "set_permissions",
]

Checkpoint = Callable[[int, int], None]
"""Called between steps that take long, with bytes reserved so far and in all; may raise to stop."""

_RESERVE_STEP_BYTES: Final = GIB
_TOUCH_STEP_BYTES: Final = 128 * MIB
_MADV_POPULATE_WRITE: Final = 23
_HUGE_PAGE_BYTES: Final = 2 << 20
_ATTEMPTS: Final = 16
_MAGIC_BYTES: Final = 8
_REGISTRY_WAIT_SECONDS: Final = 2.0


def lock_control(name: str) -> int:
    """A descriptor of the control object, made when there is none, with the SUPERVISOR lock held.

    Raises ArenaBusyError, naming the holder, when another process has that lock.
    """
    for _ in range(_ATTEMPTS):
        # Opened first and created second: in a sticky directory the kernel refuses O_CREAT on what
        # another user owns, even to root.
        with contextlib.suppress(ArenaMissingError):
            descriptor = open_lock_file(name)
            if not try_lock(descriptor, SUPERVISOR_BYTE):
                message = _busy_message(name, descriptor)
                close_lock_file(descriptor)
                raise ArenaBusyError(message)
            if is_linked(name, descriptor):
                return descriptor
            close_lock_file(descriptor)  # purged between open and lock
            continue
        with contextlib.suppress(posix_ipc.ExistentialError):
            _make_shared_memory(control_path(name))
    raise ArenaBusyError(f'arena "{name}" is being created and removed by others all the time')


def create(
    name: str, lock_fd: int, layout: Layout, *, gid: int | None, checkpoint: Checkpoint
) -> None:
    """Make the payload files and format the control object behind `lock_fd`, which is still empty.

    Whatever goes wrong, nothing stays behind but the empty control object, which its holder removes.
    """
    if os.fstat(lock_fd).st_size:  # made in place, it would be another under its users' feet
        raise ArenaBusyError(
            f'arena "{name}" is there already: remove it with `pegashm purge --name {name} --yes`'
        )
    try:
        for path in remove_leftovers(name, [layout.place.directory]):
            tell(
                LEFTOVER_REMOVED,
                "removed %s: left by an arena whose control region is gone (the host was restarted, or its "
                "creator was killed), so nobody can say what is in it",
                path,
                path=path,
            )
        _check_memory(layout)
        _write_pending(name, layout.paths)
        with contextlib.ExitStack() as used:
            _make_payload(layout, used, gid=gid, checkpoint=checkpoint)
            _make_control(name, layout, gid=gid)
    except BaseException:
        remove_leftovers(name, [layout.place.directory])
        _unlink(control_path(name))  # last: its lock keeps the next creator away meanwhile
        raise
    forget_pending(name)


def remove(name: str, paths: Iterable[str]) -> list[str]:
    """Unlink an arena whose payload files are `paths`; returns what was there to unlink.

    The control object goes last, since its lock is what keeps the next creator of this name away; before it
    loses a payload file it loses its magic, so that nobody opens what is half gone.
    """
    paths = list(paths)
    with contextlib.suppress(ResourceError):  # no room for a list: until the end the header has it
        _write_pending(name, paths)
    _unready(name)
    removed = [path for path in paths if _is_ours(name, path) and _unlink(path)]
    removed += remove_leftovers(name, [])
    return removed + [path for path in [control_path(name)] if _unlink(path)]


def _unready(name: str) -> None:
    """Take the magic from a control object. Who has it mapped read it once and goes on."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(control_path(name), os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if os.fstat(descriptor).st_size >= _MAGIC_BYTES:
                os.pwrite(descriptor, bytes(_MAGIC_BYTES), 0)
        finally:
            os.close(descriptor)


def remove_leftovers(name: str, directories: Iterable[str]) -> list[str]:
    """Unlink payload files of `name` that no control object speaks for, and the pending file."""
    removed = [path for path in _leftovers(name, directories) if _unlink(path)]
    forget_pending(name)
    return removed


def _leftovers(name: str, directories: Iterable[str]) -> list[str]:
    """Payload files of `name` that are listed for removal, or lie where an arena of that name may be made."""
    listed = set(_read_pending(name))
    found = set(listed)
    for directory in {SHM_DIRECTORY, *directories}:
        with contextlib.suppress(OSError):
            found.update(
                os.path.join(directory, file_name)
                for file_name in os.listdir(directory)
                if is_payload_name(name, file_name)
            )
    payloads = [path for path in sorted(found) if path in listed or not _is_anothers(path)]
    return payloads + [path for path in [trace_path(name)] if os.path.lexists(path)]


def _is_anothers(path: str) -> bool:
    """Whether living processes use it. Beside our control objects it can only be of our making; elsewhere
    its control object may be in the /dev/shm of another container, and its engines alive."""
    if os.path.dirname(path) == SHM_DIRECTORY or not _is_used(path):
        return False
    tell(
        LEFTOVER_IN_USE,
        "%s is left alone: it belongs to another arena of this name, which living processes use "
        "(in a container with a /dev/shm of its own, or with a control region that was removed)",
        path,
        path=path,
    )
    return True


def forget_pending(name: str) -> None:
    """Drop the list of files to remove: they are gone, or a ready control object speaks for them."""
    _unlink(pending_path(name))
    _unlink(pending_path(name) + ".new")


def remove_unfinished(name: str) -> None:
    """Unlink a control object that has no magic; `create` removes the payload files it may have left."""
    _unlink(control_path(name))


def purge(name: str, *, force: bool) -> list[str]:
    """Remove the arena `name`, whatever state it is in; returns the paths that were unlinked.

    Refuses with ArenaBusyError while a supervisor or a client lives. With `force` they keep the memory
    they have mapped until they end, and a supervisor ends by itself.
    """
    for _ in range(_ATTEMPTS):
        try:
            lock_fd = open_lock_file(name)
        except ArenaMissingError:
            if not _leftovers(name, []):
                return []
            # Made only to be locked: whoever creates an arena of that name now waits for its own turn.
            lock_fd = lock_control(name)
        try:
            if not try_lock(lock_fd, SUPERVISOR_BYTE) and not force:
                raise ArenaBusyError(
                    f"{_busy_message(name, lock_fd)} Stop it first, or add --force"
                )
            if is_linked(name, lock_fd):
                return _purge_locked(name, lock_fd, force=force)
            # Another purge was faster: what has this name now is not what we have locked.
        finally:
            close_lock_file(lock_fd)
    raise ArenaBusyError(f'arena "{name}" is being created and removed by others all the time')


def _purge_locked(name: str, lock_fd: int, *, force: bool) -> list[str]:
    # Whoever attaches holds the registry meanwhile: taken here, nobody slips in after the look.
    _wait_for_registry(name, lock_fd, force=force)
    slots = live_slots(lock_fd)
    if slots and not force:
        raise ArenaBusyError(
            f'arena "{name}" is in use by {_describe_clients(name, slots)}: '
            "stop them first, or add --force"
        )
    verdict = read_header(lock_fd)
    removed = remove(name, [_text(arena["path"]) for arena in verdict.info.get("arenas", [])])
    _remove_sockets(name)
    return removed


def _remove_sockets(name: str) -> None:
    """What a killed transport worker left, if it ran as this user. Nobody minds if it stays."""
    folder = runtime_directory(name)
    for path in glob.glob(f"{glob.escape(folder)}/transport-*.sock"):
        with contextlib.suppress(OSError):
            os.unlink(path)
    with contextlib.suppress(OSError):
        os.rmdir(folder)


def group_id(group: str) -> int:
    """The number of a group given by name or number."""
    if group.isdecimal():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigError(f"--group {group!r}: no such group (see `getent group`)") from None


def set_permissions(descriptor: int, gid: int | None) -> None:
    """Owner only; with a group, that group too. Independent of the umask, and done when it holds."""
    facts = os.fstat(descriptor)
    mode = 0o600 if gid is None else 0o660
    try:
        if gid is not None and facts.st_gid != gid:
            os.fchown(descriptor, -1, gid)
        if facts.st_mode & 0o777 != mode:
            os.fchmod(descriptor, mode)
    except PermissionError as error:
        raise ResourceError(
            f"uid {os.geteuid()} may not give the arena's files mode {mode:04o} and group "
            f"{facts.st_gid if gid is None else gid}: run as their owner (uid {facts.st_uid}) and "
            "as a member of that group, or as root"
        ) from error


def _wait_for_registry(name: str, lock_fd: int, *, force: bool) -> None:
    deadline = time.monotonic() + _REGISTRY_WAIT_SECONDS
    while not try_lock(lock_fd, REGISTRY_BYTE) and not force:
        if time.monotonic() > deadline:
            raise ArenaBusyError(
                f'a process has been attaching to arena "{name}" for {_REGISTRY_WAIT_SECONDS:g} s: '
                "stop it first, or add --force"
            )
        time.sleep(0.01)


def _make_payload(
    layout: Layout, used: contextlib.ExitStack, *, gid: int | None, checkpoint: Checkpoint
) -> None:
    """Make and reserve the payload files. `used` keeps them open, and so in use, until the arena is there."""
    done = 0
    total = layout.plan["payload_bytes"]
    for path, node, segments in zip(
        layout.paths, layout.nodes, layout.segments_per_arena, strict=True
    ):
        nbytes = segments * layout.segment_bytes
        descriptor = _make_file(path)
        used.callback(os.close, descriptor)
        try_lock(descriptor, USED_BYTE, exclusive=False)
        set_permissions(descriptor, gid)
        # Its whole length first: whether a tmpfs takes huge pages can depend on the file's size.
        os.ftruncate(descriptor, nbytes)
        with _near(node):
            if layout.place.mount.huge == "advise" and layout.place.mount.is_tmpfs:
                _touch_huge(descriptor, nbytes, partial(checkpoint, done, total))
            for offset in range(0, nbytes, _RESERVE_STEP_BYTES):
                checkpoint(done + offset, total)
                step = min(_RESERVE_STEP_BYTES, nbytes - offset)
                _allocate(descriptor, offset, step, layout.place, total - done - offset)
        done += nbytes
    checkpoint(total, total)


def _make_control(name: str, layout: Layout, *, gid: int | None) -> None:
    """Give the control object its size and contents; from its last store on, the arena exists."""
    control_bytes = layout.plan["control_bytes"]
    shm = _shm_place()
    # Not through the descriptor with the lock: what is mapped keeps its description alive.
    control = os.open(control_path(name), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        # Its whole length first, as for the payload. Only whole huge pages: the cap is a cap.
        os.ftruncate(control, control_bytes)
        if shm.mount.huge == "advise" and control_bytes >= _HUGE_PAGE_BYTES:
            _touch_huge(control, control_bytes // _HUGE_PAGE_BYTES * _HUGE_PAGE_BYTES, lambda: None)
        _allocate(control, 0, control_bytes, shm, control_bytes)
        set_permissions(control, gid)
        with mmap.mmap(control, control_bytes) as mapped:
            format_region(
                mapped,
                region_id=secrets.token_bytes(16),
                segment_bytes=layout.segment_bytes,
                block_bytes_min=layout.block_bytes_min,
                segments_per_arena=layout.segments_per_arena,
                arena_paths=layout.paths,
                numa_nodes=layout.nodes,
                page_bytes=layout.place.page_bytes,
                created_at_ns=time.time_ns(),
                spill_records=layout.plan["spill_record_count"],
                remote_buckets=layout.plan["remote_bucket_count"],
                reuse_registers=layout.plan["reuse_register_count"],
            )
    finally:
        os.close(control)


def _make_file(path: str) -> int:
    """A new empty file of ours, 0600, through posix_ipc where it is a shared-memory object."""
    if os.path.dirname(path) == SHM_DIRECTORY:
        _make_shared_memory(path)
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags, 0o600)
    except PermissionError as error:
        raise ResourceError(f"no permission to create {path} as uid {os.geteuid()}") from error


def _make_shared_memory(path: str) -> None:
    """An empty object; posix_ipc.ExistentialError when there is one of that name."""
    try:
        memory = posix_ipc.SharedMemory(_shm_name(path), posix_ipc.O_CREX, mode=0o600)
    except posix_ipc.PermissionsError as error:
        raise ResourceError(
            f"no permission to create {path} as uid {os.geteuid()}: is {SHM_DIRECTORY} writable?"
        ) from error
    except posix_ipc.ExistentialError:
        raise
    except (OSError, posix_ipc.Error) as error:
        if isinstance(error, OSError) and error.errno == errno.EROFS:
            raise ResourceError(read_only_message(path)) from error
        raise ResourceError(f"cannot create {path}: {error}") from error
    memory.close_fd()


def _touch_huge(descriptor: int, nbytes: int, checkpoint: Callable[[], None]) -> None:
    """Allocate by touching through an advised mapping: with `huge=advise`, fallocate has no advice
    and takes small pages for good. Failures are left to fallocate, which says what is missing."""
    with mmap.mmap(descriptor, nbytes) as mapped, contextlib.suppress(OSError):
        mapped.madvise(mmap.MADV_HUGEPAGE)
        for offset in range(0, nbytes, _TOUCH_STEP_BYTES):
            checkpoint()
            step = min(_TOUCH_STEP_BYTES, nbytes - offset)
            mapped.madvise(_MADV_POPULATE_WRITE, offset, step)


def _allocate(descriptor: int, offset: int, nbytes: int, place: Place, wanted: int) -> None:
    """Reserve for good: without it a full file system is a SIGBUS in some engine, later."""
    try:
        os.posix_fallocate(descriptor, offset, nbytes)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG, errno.EDQUOT):
            raise ResourceError(
                f"cannot reserve {format_bytes(nbytes)} in {place.directory}: {error.strerror}"
            ) from error
        raise ResourceError(_shortage_message(place, wanted)) from error


def _check_memory(layout: Layout) -> None:
    """Say what is too small before minutes are spent on filling it (or the OOM killer comes)."""
    place, plan = layout.place, layout.plan
    total = plan["payload_bytes"] + plan["control_bytes"]
    limit, reason = memory_limit()
    if total > limit and not place.mount.is_hugetlb:
        raise ResourceError(
            f"the arena needs {format_bytes(total)}, more than {reason}, {format_bytes(limit)}: "
            "give a smaller --size or raise that limit (`docker run --memory`, MemoryMax= in systemd)"
        )
    shared = place.mount.point == mount_of(SHM_DIRECTORY).point
    wanted = total if shared else plan["payload_bytes"]
    if wanted > free_bytes(place.mount):
        raise ResourceError(_shortage_message(place, wanted))
    if not shared and plan["control_bytes"] > free_bytes(mount_of(SHM_DIRECTORY)):
        raise ResourceError(_shortage_message(_shm_place(), plan["control_bytes"]))


def _shm_place() -> Place:
    return Place(SHM_DIRECTORY, mount_of(SHM_DIRECTORY), os.sysconf("SC_PAGE_SIZE"))


def _shortage_message(place: Place, wanted: int) -> str:
    text = (
        f"{place.directory} has {format_bytes(free_bytes(place.mount))} free, {format_bytes(wanted)} more are needed: "
        "give a smaller --size, or make it larger with "
    )
    if place.mount.is_hugetlb:
        return text + hugetlb_advice(place.page_bytes, wanted)
    if place.mount.is_tmpfs:
        return text + space_advice(place.mount, wanted)
    return text + f"a larger {place.mount.kind} file system at {place.mount.point}"


@contextlib.contextmanager
def _near(node: int) -> Iterator[None]:
    """Run on the processors of a node, so that what is allocated meanwhile comes from its memory."""
    before = os.sched_getaffinity(0)
    cpus = before & node_cpus(node) if node != UNBOUND else set()
    if not cpus:
        yield
        return
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _write_pending(name: str, paths: Iterable[str]) -> None:
    # Paths of an unfinished removal stay listed; a torn list is avoided by writing beside and renaming.
    listed = sorted({*paths, *_read_pending(name)})
    path = pending_path(name)
    _unlink(path + ".new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path + ".new", flags, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(listed, file)
        os.rename(path + ".new", path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _unlink(path + ".new")
        raise ResourceError(_shortage_message(_shm_place(), os.sysconf("SC_PAGE_SIZE"))) from error


def _read_pending(name: str) -> list[str]:
    """Payload files listed for removal; only those that could be ours, whatever the file says."""
    try:
        with open(pending_path(name), encoding="utf-8") as file:
            listed = json.load(file)
    except (OSError, ValueError):
        return []
    return [
        path
        for path in (listed if isinstance(listed, list) else [])
        if isinstance(path, str) and _is_ours(name, path)
    ]


def _is_ours(name: str, path: str) -> bool:
    return is_payload_name(name, os.path.basename(path))


def _is_used(path: str) -> bool:
    """Whether some process, here or in another container, has this payload file mapped."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False  # whoever tries to unlink it will hear why
    try:
        return not try_lock(descriptor, USED_BYTE)
    finally:
        os.close(descriptor)


def _unlink(path: str) -> bool:
    """Remove a file of ours if it is there."""
    try:
        if os.path.dirname(path) == SHM_DIRECTORY:
            posix_ipc.unlink_shared_memory(_shm_name(path))
        else:
            os.unlink(path)
    except (FileNotFoundError, posix_ipc.ExistentialError):
        return False
    except (PermissionError, posix_ipc.PermissionsError) as error:
        raise ResourceError(
            f"no permission to remove {path} as uid {os.geteuid()}: run as its owner"
        ) from error
    except (OSError, posix_ipc.Error) as error:
        raise ResourceError(f"cannot remove {path}: {error}") from error
    return True


def _busy_message(name: str, lock_fd: int) -> str:
    pid = read_header(lock_fd).info.get("supervisor_pid", 0)
    holder = _process_text(name, pid) if pid else "which is still creating it"
    return f'arena "{name}" has a living supervisor already ({holder}).'


def _process_text(name: str, own: int) -> str:
    """A process number out of shared memory, in the numbers of whoever reads it."""
    here = pid_of_holder(name, own)
    if here is None:
        return f"pid {own} by its own count, not seen from here: in a container, or another user's"
    return f"pid {own}" if here == own else f"pid {own} in a PID namespace of its own, {here} here"


def _describe_clients(name: str, slots: list[int]) -> str:
    labels = {slot: f"client {slot}" for slot in slots}
    with (
        contextlib.suppress(PegaShmError),
        open_arena(name, writable=False, map_payload=False) as arena,
    ):
        for client in arena.region.clients():
            if client["slot"] in labels:
                labels[client["slot"]] += f" (pid {client['pid']} {_text(client['label'])})"
    return ", ".join(labels.values())


def _shm_name(path: str) -> str:
    return "/" + os.path.basename(path)


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else os.fsdecode(value)
