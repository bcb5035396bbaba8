"""How does a process use the cache? Attach as an index owner, or copy for one.

`Cache` is an attached client: one of 128 slots, one namespace at a time, batched calls that never wait.
`Copyist` is a process that only moves bytes for such a client (an engine's worker): it holds no slot,
but a kernel lock that keeps the owner's claims and pins from being reaped while it may still write.
Used by the connector, the benches and the tests. What the batched calls answer is in `_native.pyi`.
"""

import os
import time
from collections.abc import Sequence
from enum import IntEnum
from types import TracebackType
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from pegashm import _native
from pegashm.arena import Arena, open_arena
from pegashm.errors import (
    ArenaBusyError,
    ArenaMissingError,
    ClientsFullError,
    NamespacesFullError,
)
from pegashm.keys import Namespace
from pegashm.liveness import (
    REGISTRY_BYTE,
    copiers_byte,
    owner_byte,
    try_lock,
    unlock,
)
from pegashm.payload_sums import Checked, Hasher, Part, Verdict, check, condemn, store_sums
from pegashm.reaper import reap_dead_clients

__all__ = ["Cache", "Copyist", "Mode", "lock_registry", "register", "take_slot"]

_REGISTRY_WAIT_S: Final = 2.0
_REGISTRY_POLL_S: Final = 0.001

_Handles = NDArray[np.uint64]
_Outcomes = NDArray[np.uint8]


class Mode(IntEnum):
    """What an engine does with the cache; recorded in its slot for tools to show."""

    READ_WRITE = 0
    SAVE_ONLY = 1
    LOAD_ONLY = 2


@final
class Cache:
    """An attached client of one arena. Thread-safe; close it before the arena's name is purged."""

    def __init__(self, arena: Arena, slot: int, incarnation: int, namespace_id: int) -> None:
        """Use `attach`; this only puts together what it found."""
        self.arena = arena
        self.slot = slot
        self.incarnation = incarnation
        self.namespace_id = namespace_id
        self.client = _native.Client(arena.region, slot, incarnation)
        self.region_id: bytes = arena.region.header["region_id"]

    @classmethod
    def attach(
        cls,
        name: str,
        *,
        namespace: Namespace | None,
        engine_id: bytes = b"",
        label: str = "",
        mode: Mode = Mode.READ_WRITE,
        wait_s: float = _REGISTRY_WAIT_S,
    ) -> "Cache":
        """Open the arena, register the namespace and take a client slot.

        `namespace` None: of no namespace, for who names one with each call (the transport worker).
        `wait_s` bounds the wait for others that are registering. Raises ArenaMissingError,
        ArenaNotReadyError, FormatError, ResourceError, ArenaBusyError (they took longer),
        ClientsFullError or NamespacesFullError.
        """
        arena = open_arena(name)
        try:
            lock_registry(arena, wait_s)
            try:
                namespace_id = 0 if namespace is None else register(arena, namespace)
                slot = take_slot(arena)
                if not arena.is_linked():  # `purge` looks for clients under the registry lock
                    raise ArenaMissingError(f'arena "{name}" was purged just now')
                incarnation = arena.region.attach_client(
                    slot,
                    pid=os.getpid(),
                    started_at=_process_started_at(),
                    now_ns=time.time_ns(),
                    namespace_id=namespace_id,
                    mode=mode,
                    engine_id=engine_id,
                    label=label,
                )
            finally:
                unlock(arena.control_fd, REGISTRY_BYTE)
            return cls(arena, slot, incarnation, namespace_id)
        except BaseException:
            arena.close()
            raise

    @property
    def name(self) -> str:
        return self.arena.name

    @property
    def region(self) -> _native.Region:
        return self.arena.region

    @property
    def reserved_bytes(self) -> int:
        """What others leave our namespace: less than was asked for where others' reserves take the rest."""
        rows = self.region.namespaces(counted=False)
        return sum(row["reserved_bytes"] for row in rows if row["id"] == self.namespace_id)

    def enter(self, namespace: Namespace, wait_s: float = _REGISTRY_WAIT_S) -> None:
        """Move to another namespace (an engine whose weights changed); claims and pins stay valid.

        What the old one had reserved is anybody's, unless others are in it still.
        """
        lock_registry(self.arena, wait_s)
        try:
            if not any(
                client["namespace_id"] == self.namespace_id and client["slot"] != self.slot
                for client in self.region.clients()
            ):
                self.region.drop_reserve(self.namespace_id)
            self.namespace_id = register(self.arena, namespace)
            self.region.set_client_namespace(self.slot, self.namespace_id)
        finally:
            unlock(self.arena.control_fd, REGISTRY_BYTE)

    def find(self, keys: Sequence[bytes], *, pin: bool = False) -> tuple[_Handles, _Outcomes]:
        return self.client.find(keys, self.namespace_id, pin=pin)

    def find_prefix(
        self, keys: Sequence[bytes], *, pin: bool = False
    ) -> tuple[_Handles, _Outcomes]:
        return self.client.find_prefix(keys, self.namespace_id, pin=pin)

    def count_asked(self, keys: Sequence[bytes]) -> None:
        """Count what one request asks for, all of it, once: the reuse ceiling comes from it (`reuse.py`)."""
        self.region.count_asked(keys, self.namespace_id)

    def count_served(self, amount: int) -> None:
        """Count how many blocks of it came from the cache."""
        self.region.count_served(amount)

    def claim(self, keys: Sequence[bytes], payload_bytes: int) -> tuple[_Handles, _Outcomes]:
        return self.client.claim(keys, self.namespace_id, payload_bytes)

    def publish(self, handles: _Handles, parts_expected: int = 0) -> _Outcomes:
        return self.client.publish(handles, parts_expected)

    def abandon(self, handles: _Handles) -> None:
        self.client.abandon(handles)

    def pin(self, handles: _Handles) -> _Outcomes:
        return self.client.pin(handles)

    def unpin(self, handles: _Handles) -> None:
        self.client.unpin(handles)

    def touch(self, handles: _Handles) -> None:
        self.client.touch(handles)

    def touch_keys(self, keys: Sequence[bytes]) -> int:
        return self.client.touch_keys(keys, self.namespace_id)

    def evict(self, handles: _Handles) -> _Outcomes:
        return self.client.evict(handles)

    def evict_lru(self, payload_bytes: int, count: int) -> int:
        return self.client.evict_lru(payload_bytes, count)

    def locate(self, handles: _Handles) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        return self.client.locate(handles)

    def store_sums(self, handles: _Handles) -> None:
        """Keep checksums of blocks that we claimed and wrote whole: after the copy, before `publish`."""
        offsets, sizes = self.locate(handles)
        for nbytes in set(sizes.tolist()) - {0}:
            of_size = sizes == nbytes
            whole = Part(index=0, count=1, nbytes=nbytes)
            store_sums(self.region, handles[of_size], offsets[of_size], whole)

    def verify(self, handles: _Handles) -> Checked:
        """Compare pinned blocks with their checksums before their bytes are used.

        What does not hold is marked: nobody pins it again. Unpin, then evict, to have its memory back.
        """
        offsets, _ = self.locate(handles)
        return _verify(self.region, handles, offsets, None, None)

    def reap_dead(self, *, most: int = _native.CLIENT_COUNT) -> int:
        """Undo what (at most `most`) dead clients left; how many it were. A pass over all records for each."""
        return len(reap_dead_clients(self.arena, skip_slot=self.slot, most=most))

    def close(self) -> None:
        """Detach. What is still claimed or pinned is given back now, or, while a process that copies
        for us may still write, by whoever reaps after it has gone. A second call does nothing."""
        if self.region.closed:
            return
        self.client.retire()  # other threads of ours may be in the middle of a call
        with self.arena.reaping:
            # Our shared hold becomes exclusive only when nobody else copies for this slot.
            if try_lock(self.arena.control_fd, copiers_byte(self.slot)):
                self.region.reap_client(self.slot)
        self.arena.close()

    def __enter__(self) -> "Cache":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@final
class Copyist:
    """A process that copies for clients of one arena. Not an index owner: it only reports its parts."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.region_id: bytes = arena.region.header["region_id"]
        self._served: dict[int, int] = {}  # slot -> incarnation whose copiers lock we hold

    @classmethod
    def open(cls, name: str) -> "Copyist":
        """Map the arena; raises as `open_arena` does."""
        return cls(open_arena(name))

    @property
    def region(self) -> _native.Region:
        return self.arena.region

    @property
    def payload_address(self) -> int:
        return self.region.payload_address

    def serve(self, region_id: bytes, slot: int, incarnation: int) -> bool:
        """Keep that client from being reaped while we live; False when it is gone already.

        Nothing may be written for a client before this said True: its claims may have been reaped and
        given to somebody else.
        """
        if region_id != self.region_id:
            return False
        if self._served.get(slot) == incarnation:
            return True
        if not try_lock(self.arena.control_fd, copiers_byte(slot), exclusive=False):
            return False
        if self.region.client_incarnation(slot) != incarnation:
            unlock(self.arena.control_fd, copiers_byte(slot))
            self._served.pop(slot, None)
            return False
        self._served[slot] = incarnation
        return True

    def part_done(self, handles: _Handles, ok: bool) -> None:
        """Say that our part of each claimed block is copied, or that it failed."""
        _native.part_done(self.region, handles, ok)

    def store_sums(
        self,
        handles: _Handles,
        offsets: NDArray[np.uint64],
        part: Part,
        hasher: Hasher | None = None,
    ) -> None:
        """Keep checksums of our part of claimed blocks: after the copy, before `part_done`."""
        store_sums(self.region, handles, offsets, part, hasher or Hasher())

    def verify(
        self,
        handles: _Handles,
        offsets: NDArray[np.uint64],
        part: Part,
        hasher: Hasher | None = None,
    ) -> Checked:
        """Compare our part of pinned blocks with its checksums; what does not hold is marked."""
        return _verify(self.region, handles, offsets, part, hasher)

    def generations_hold(self, handles: _Handles) -> NDArray[np.bool_]:
        """Whether each block is still the one the handle named: ask after copying out of it."""
        return _native.generations_hold(self.region, handles)

    def close(self) -> None:
        self.arena.close()

    def __enter__(self) -> "Copyist":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _verify(
    region: _native.Region,
    handles: _Handles,
    offsets: NDArray[np.uint64],
    part: Part | None,
    hasher: Hasher | None,
) -> Checked:
    checked = check(region, handles, offsets, part, hasher or Hasher())
    if checked.damages:
        condemn(region, checked.damages)
    verified = int((checked.verdicts == Verdict.OK).sum())
    if verified:
        region.count("payloads_verified", verified)
    return checked


def lock_registry(arena: Arena, wait_s: float) -> None:
    """Take the registry lock, held by others for microseconds; give up after a bounded wait."""
    deadline = time.monotonic() + wait_s
    while not try_lock(arena.control_fd, REGISTRY_BYTE):
        if time.monotonic() > deadline:
            raise ArenaBusyError(
                f'another process has held the registry of arena "{arena.name}" for '
                f"{wait_s:g} s (stopped in the middle of attaching?): see `pegashm-dump "
                f"--name {arena.name}` for its clients"
            )
        time.sleep(_REGISTRY_POLL_S)


def register(arena: Arena, namespace: Namespace) -> int:
    """The id of a namespace, made if need be; the caller holds the registry lock."""
    namespace_id = arena.region.register_namespace(
        namespace.fingerprint,
        label=namespace.label,
        reserved_bytes=namespace.reserved_bytes,
        maximum_bytes=namespace.maximum_bytes,
        now_ns=time.time_ns(),
        in_use=[client["namespace_id"] for client in arena.region.clients()],
        facts=namespace.facts,
    )
    if namespace_id == 0:
        raise NamespacesFullError(
            f'arena "{arena.name}" has {_native.NAMESPACE_COUNT} namespaces, all used by living clients'
        )
    return namespace_id


def take_slot(arena: Arena) -> int:
    """A slot whose two locks we hold, cleaned of whatever a dead client left in it."""
    for slot in range(_native.CLIENT_COUNT):
        if not try_lock(arena.control_fd, owner_byte(slot)):
            continue
        if not try_lock(arena.control_fd, copiers_byte(slot)):
            # Its owner is dead, a process that copies for it is not.
            unlock(arena.control_fd, owner_byte(slot))
            continue
        if arena.region.client_incarnation(slot):
            arena.region.reap_client(slot)
        # From exclusive to shared in one step: there is no moment without it.
        try_lock(arena.control_fd, copiers_byte(slot), exclusive=False)
        return slot
    raise ClientsFullError(
        f'arena "{arena.name}" has {_native.CLIENT_COUNT} client slots, all held by living processes: '
        f"see `pegashm-dump --name {arena.name}`, stop one of them or start another arena"
    )


def _process_started_at() -> int:
    """Start time of this process in clock ticks since boot, 0 where /proc does not say: a label."""
    try:
        with open("/proc/self/stat", "rb") as file:
            return int(file.read().rsplit(b")", 1)[1].split()[19])
    except (OSError, IndexError, ValueError):
        return 0
