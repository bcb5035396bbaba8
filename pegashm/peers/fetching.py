"""How does one batch of blocks come from one host into memory? PIN, claim, read, compare, publish, RELEASE.

The lease says what is pinned there; only for that memory is claimed here. What was read is compared with the checksums that came
with the lease; a block without them is published only after the peer has said that its lease held to the end of the read.
Nothing that fails is published: its claim is given back. Waits are bounded by the batch's deadline and end at once when the
peer is gone. Called by the fetcher's threads, several at once, each with a batch and a `Caller` of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pegashm import _native
from pegashm.cache import Cache
from pegashm.fabric.interface import Fabric, Grant, Part, ReadOutcome
from pegashm.logs import tell
from pegashm.notices import PEER_BYTES_BAD
from pegashm.payload_sums import payload_sum
from pegashm.peers.caller import Caller
from pegashm.peers.known import Peer
from pegashm.peers.messages import (
    LEASE_MS_MAX,
    Introduce,
    Introduced,
    Malformed,
    Message,
    Outcome,
    Pin,
    Pinned,
    Reason,
    Refused,
    Release,
    Released,
    sums_of,
)
from pegashm.peers.wanted import Batch, Wanted
from pegashm.transport.messages import Answer
from pegashm.transport.namespaces import Namespaces
from pegashm.units import MIB

__all__ = ["FetchError", "Fetching"]

_BATCH_BYTES: Final = 64 * MIB
_BATCH_SHARE: Final = 16  # of the payload, at most, for one thread's claims
_ANSWER_SECONDS: Final = 2.0  # for what needs no device of the peer's
_LEASE_MARGIN_SECONDS: Final = 0.5
_LEASE_SECONDS_MAX: Final = 30.0
_RELEASE_SECONDS: Final = 1.0

_CLAIMED: Final = {_native.EXISTS: Answer.OK, _native.PENDING: Answer.PENDING}

Words = NDArray[np.uint64]


class FetchError(Exception):
    """Nothing came of a batch. `good`: what it says of the peer; None: nothing."""

    def __init__(self, why: str, answer: Answer, *, good: bool | None = False) -> None:
        super().__init__(why)
        self.answer = answer
        self.good = good


class Fetching:
    """What all batches have in common. `again` is given blocks that a lease had no room for, in order; `suspect` a peer
    that speaks as if it were another one by now."""

    def __init__(
        self,
        cache: Cache,
        namespaces: Namespaces,
        table: _native.RemoteTable,
        fabrics: Mapping[str, Fabric],
        *,
        host_id: bytes,
        again: Callable[[Sequence[Wanted]], None],
        suspect: Callable[[Peer, str], None],
        stopping: Callable[[], bool],
    ) -> None:
        self._region = cache.region
        self._client = cache.client
        self._namespaces = namespaces
        self._table = table
        self._fabrics = dict(fabrics)
        self._host_id = host_id
        self._again = again
        self._suspect = suspect
        self._stopping = stopping
        segment: int = cache.region.header["segment_bytes"]
        self._block_bytes_max = segment
        self._batch_bytes = max(
            segment, min(_BATCH_BYTES, self._region.payload_bytes // _BATCH_SHARE)
        )

    def carry_out(self, caller: Caller, batch: Batch) -> list[Answer | None]:
        """PIN, read, RELEASE. An answer for each block, None for those to be asked for again. FetchError for all at once."""
        peer = batch.peer
        fabric = next((self._fabrics[name] for name in self._fabrics if name in peer.offers), None)
        namespace = self._namespaces.of(batch.namespace_id)
        if fabric is None or namespace is None:
            raise FetchError("it offers no fabric that we have", Answer.FAILED)
        started, booted = time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME)
        seconds = batch.deadline - started
        if seconds <= 0:
            raise FetchError("too late", Answer.LATE, good=None)
        introduced = self._introducer(caller, peer, fabric, batch.deadline)
        patience = min(seconds, _ANSWER_SECONDS)
        try:
            connection = peer.connection(fabric, introduced, started + patience)
        except (OSError, ValueError) as error:
            why = str(error) or type(error).__name__
            raise FetchError(f"no connection by {fabric.name}: {why}", Answer.FAILED) from error
        waits = not all(wanted.memory for wanted in batch.wanted)
        lease_seconds = min(seconds + 2 * _LEASE_MARGIN_SECONDS, _LEASE_SECONDS_MAX)
        pin = Pin(
            request_id=caller.number(),
            sender=self._host_id,
            incarnation=peer.incarnation,
            fingerprint=namespace.fingerprint,
            lease_ms=max(1, int(lease_seconds * 1000)),
            # The answer has to come in time, with what is there by then.
            wait_ms=min(LEASE_MS_MAX, int((seconds if waits else patience) * 800)),
            bytes_max=self._batch_bytes,
            fabric=fabric.name,
            keys=tuple(wanted.name[1] for wanted in batch.wanted),
        )
        answer = caller.ask(
            peer.target,
            pin,
            batch.deadline if waits else started + patience,
            lambda: peer.alive and not self._stopping(),
        )
        pinned = self._pinned(peer, pin, answer)
        lease = _Lease(
            pinned=pinned,
            grant=Grant(pinned.lease_id, pinned.grant),
            ends=started + pinned.lease_ms / 1000 - _LEASE_MARGIN_SECONDS,
            boot_ends=booted + pinned.lease_ms / 1000 - _LEASE_MARGIN_SECONDS,
        )
        answers = self._missing(peer, batch, pinned)
        if pinned.lease_id:
            self._requeue(batch, pinned)
            try:
                self._read(caller, batch, lease, connection, answers)
            except BaseException:
                self._release(caller, peer, lease, wait=False)
                raise
        return answers

    def _introducer(
        self, caller: Caller, peer: Peer, fabric: Fabric, deadline: float
    ) -> Callable[[bytes], bytes]:
        def introduce(introduction: bytes) -> bytes:
            message = Introduce(
                request_id=caller.number(),
                sender=self._host_id,
                incarnation=peer.incarnation,
                fabric=fabric.name,
                introduction=introduction,
            )
            until = min(deadline, time.monotonic() + _ANSWER_SECONDS)
            answer = caller.ask(peer.target, message, until, lambda: peer.alive)
            if isinstance(answer, Introduced):
                return answer.answer
            self._check_refusal(peer, answer)
            raise ConnectionError(_said(answer))

        return introduce

    def _check_refusal(self, peer: Peer, answer: Message | Malformed | None) -> None:
        if isinstance(answer, Refused) and answer.reason == Reason.INCARNATION:
            self._suspect(peer, "another process answers at its address")

    def _pinned(self, peer: Peer, pin: Pin, answer: Message | Malformed | None) -> Pinned:
        """The answer, as far as it can be believed."""
        self._check_refusal(peer, answer)
        if isinstance(answer, Refused) and answer.reason == Reason.OVERLOADED:
            peer.load = 1000
            raise FetchError(_said(answer), Answer.OVERLOADED, good=None)
        if not isinstance(answer, Pinned):
            raise FetchError(_said(answer), Answer.FAILED)
        rows = answer.rows
        ours = rows["outcome"] == Outcome.OK
        sizes = rows["nbytes"]
        if (
            len(rows) != len(pin.keys)
            or bool(ours.any()) != bool(answer.lease_id)
            or bool((sizes > self._block_bytes_max).any())
            or int(sizes.sum(dtype=np.uint64)) > pin.bytes_max
        ):
            raise FetchError("its answer does not fit the request", Answer.FAILED)
        peer.load = min(1000, answer.load)
        return answer

    def _missing(self, peer: Peer, batch: Batch, pinned: Pinned) -> list[Answer | None]:
        """An answer for what is not pinned; its hints are forgotten where it is gone."""
        outcomes = pinned.rows["outcome"].tolist()
        gone = [
            batch.wanted[at].mark
            for at, outcome in enumerate(outcomes)
            if outcome == Outcome.MISSING
        ]
        if gone:
            self._table.remove(peer.number, np.array(gone, np.uint64))
        again = None if pinned.lease_id else Answer.OVERLOADED
        table: dict[int, Answer | None] = {
            Outcome.OK: Answer.FAILED,
            Outcome.MISSING: Answer.MISSING,
            Outcome.PENDING: Answer.MISSING,
            Outcome.NOT_NOW: again,
            Outcome.OVERLOADED: Answer.OVERLOADED,
        }
        return [table[outcome] for outcome in outcomes]

    def _requeue(self, batch: Batch, pinned: Pinned) -> None:
        """What this lease has no room for is the next thread's, now."""
        later = np.flatnonzero(pinned.rows["outcome"] == Outcome.NOT_NOW)
        if len(later):
            batch.later.update(later.tolist())
            self._again([batch.wanted[at] for at in later.tolist()])

    # -- one lease -----------------------------------------------------------------------------------

    def _read(
        self,
        caller: Caller,
        batch: Batch,
        lease: _Lease,
        connection: Any,
        answers: list[Answer | None],
    ) -> None:
        rows = lease.pinned.rows
        handles = self._claim(batch, rows, answers)
        places = np.flatnonzero(handles)
        if not len(places):
            self._release(caller, batch.peer, lease, wait=False)
            return
        held = handles[places]
        offsets, _ = self._client.locate(held)
        addresses = offsets + np.uint64(self._region.payload_address)
        parts = [
            Part(offset, nbytes, address)
            for offset, nbytes, address in zip(
                rows["offset"][places].tolist(),
                rows["nbytes"][places].tolist(),
                addresses.tolist(),
                strict=True,
            )
        ]
        outcomes = connection.read(lease.grant, parts, min(batch.deadline, lease.ends))
        # From here on nothing is written into the claims.
        good = np.array([outcome is ReadOutcome.OK for outcome in outcomes], np.bool_)
        for place, outcome in zip(places.tolist(), outcomes, strict=True):
            if outcome is not ReadOutcome.OK:
                answers[place] = Answer.LATE if outcome is ReadOutcome.LATE else Answer.FAILED
        came = good.copy()
        proven = self._prove(batch, lease, places, offsets, good)
        for place in places[came & ~good].tolist():
            answers[place] = Answer.DAMAGED
        self._confirm(caller, batch.peer, lease, places, good, proven)
        if not good.all():
            self._client.abandon(held[~good])
        if good.any():
            self._keep_sums(lease, places[good], held[good])
            published = self._client.publish(held[good])
            done = published == _native.OK
            for place, fine in zip(places[good].tolist(), done.tolist(), strict=True):
                answers[place] = Answer.OK if fine else Answer.FAILED
            self._region.count("remote_fetched", int(done.sum()))
            self._region.count("remote_bytes_fetched", int(rows["nbytes"][places[good]].sum()))
        if ReadOutcome.FAILED in outcomes and not good.any():
            raise FetchError("reading from it failed", Answer.FAILED)

    def _claim(self, batch: Batch, rows: NDArray[Any], answers: list[Answer | None]) -> Words:
        """Memory for what is pinned there; 0 where there is none, or no need, and `answers` says why."""
        handles = np.zeros(len(rows), np.uint64)
        pinned = rows["outcome"] == Outcome.OK
        for nbytes in np.unique(rows["nbytes"][pinned]).tolist():
            places = np.flatnonzero(pinned & (rows["nbytes"] == nbytes))
            claimed, outcomes = self._client.claim(
                [batch.wanted[at].name[1] for at in places.tolist()], batch.namespace_id, nbytes
            )
            handles[places] = np.where(outcomes == _native.OK, claimed, 0)
            for at, outcome in zip(places.tolist(), outcomes.tolist(), strict=True):
                if outcome != _native.OK:
                    answers[at] = _CLAIMED.get(outcome, Answer.NO_SPACE)
        return handles

    def _prove(
        self,
        batch: Batch,
        lease: _Lease,
        places: NDArray[np.int64],
        offsets: Words,
        good: NDArray[np.bool_],
    ) -> NDArray[np.bool_]:
        """Which blocks have the checksums that came with them; those that have others are not `good` any more."""
        rows, sums = lease.pinned.rows, sums_of(lease.pinned)
        proven = np.zeros(len(places), np.bool_)
        for at, (place, offset) in enumerate(zip(places.tolist(), offsets.tolist(), strict=True)):
            expected = sums[place]
            if not good[at] or not expected:
                continue
            nbytes = int(rows["sum_bytes"][place])
            found = [
                payload_sum(self._region.payload(offset + part * nbytes, nbytes))
                for part in range(len(expected))
            ]
            proven[at] = found == list(expected)
            if not proven[at]:
                good[at] = False
                self._region.count("remote_damaged")
                self._table.remove(
                    batch.peer.number, np.array([batch.wanted[place].mark], np.uint64)
                )
                key = batch.wanted[place].name[1].hex()
                tell(
                    PEER_BYTES_BAD,
                    "host %s: block %s came with other bytes than were stored: dropped, which costs a miss",
                    batch.peer,
                    key,
                    subject=batch.peer.number,
                    host_id=batch.peer.host_id.hex(),
                    key=key,
                )
        return proven

    def _confirm(
        self,
        caller: Caller,
        peer: Peer,
        lease: _Lease,
        places: NDArray[np.int64],
        good: NDArray[np.bool_],
        proven: NDArray[np.bool_],
    ) -> None:
        """Give the lease back. Blocks without checksums are good only when it held until after the read."""
        unproven = good & ~proven
        if not unproven.any():
            self._release(caller, peer, lease, wait=False)
            return
        in_time = (
            time.monotonic() < lease.ends
            and time.clock_gettime(time.CLOCK_BOOTTIME) < lease.boot_ends
        )
        released = self._release(caller, peer, lease, wait=in_time)
        pinned = np.flatnonzero(lease.pinned.rows["outcome"] == Outcome.OK)
        if released is None or not released.intact or len(released.held) != len(pinned):
            good &= proven
            return
        held = np.zeros(len(lease.pinned.rows), np.bool_)
        held[pinned] = np.frombuffer(released.held, np.uint8) == 1
        good &= proven | held[places]

    def _release(self, caller: Caller, peer: Peer, lease: _Lease, *, wait: bool) -> Released | None:
        release = Release(
            request_id=caller.number(),
            sender=self._host_id,
            incarnation=peer.incarnation,
            lease_id=lease.grant.lease_id,
        )
        if not wait:
            caller.tell(peer.target, release)
            return None
        until = min(lease.ends, time.monotonic() + _RELEASE_SECONDS)
        answer = caller.ask(peer.target, release, until, lambda: peer.alive)
        if isinstance(answer, Released) and answer.lease_id == release.lease_id:
            return answer
        return None

    def _keep_sums(self, lease: _Lease, places: NDArray[np.int64], handles: Words) -> None:
        """Blocks that came with checksums of their parts have them here too."""
        rows, sums = lease.pinned.rows, sums_of(lease.pinned)
        counts, sizes = rows["sum_count"][places], rows["sum_bytes"][places]
        for count, nbytes in set(zip(counts.tolist(), sizes.tolist(), strict=True)):
            if not count:
                continue
            mine = np.flatnonzero((counts == count) & (sizes == nbytes))
            for part in range(count):
                values = np.array([sums[places[at]][part] for at in mine.tolist()], np.uint64)
                _native.write_sums(
                    self._region,
                    handles[mine],
                    values,
                    part=part,
                    part_count=count,
                    part_bytes=nbytes,
                )


@dataclass(frozen=True, slots=True)
class _Lease:
    """A lease as its reader sees it: when it must be over by each of our clocks, counted from before it was asked for."""

    pinned: Pinned
    grant: Grant
    ends: float
    boot_ends: float


def _said(answer: Message | Malformed | None) -> str:
    if answer is None:
        return "it did not answer in time"
    if isinstance(answer, Refused):
        return f"it refused: {answer.text}"
    if isinstance(answer, Malformed):
        return f"it sent what cannot be understood: {answer.reason}"
    return f"it answered with a {type(answer).__name__}"
