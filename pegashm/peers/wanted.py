"""What is asked for from other hosts, and by whom: requests, blocks, and the batches that one host is asked for.

Plain records between the fetcher, which queues and answers, and `fetching`, which carries a batch out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pegashm.peers.known import Peer
from pegashm.transport.messages import Answer

__all__ = ["Batch", "Job", "Wanted"]


@dataclass(slots=True)
class Job:
    """A request that is not answered yet."""

    peer: bytes
    request_id: int
    deadline: float
    outcomes: bytearray
    left: int


@dataclass(slots=True)
class Wanted:
    """A block that somebody waits for, and the numbers of hosts that may have it and were not asked yet."""

    name: tuple[int, bytes]
    mark: int
    hosts: tuple[int, ...]
    memory: bool  # all of them have it in memory, as far as we know
    jobs: list[tuple[Job, int]] = field(default_factory=list)
    last: Answer = Answer.MISSING  # what the host before said

    def deadline(self) -> float:
        return max(job.deadline for job, _ in self.jobs)


@dataclass(slots=True)
class Batch:
    """Blocks of one namespace that one peer is asked for."""

    peer: Peer
    namespace_id: int
    wanted: list[Wanted]
    deadline: float
    later: set[int] = field(default_factory=set)  # places of those that are in the queue again
