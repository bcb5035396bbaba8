"""Which events are worth a line in the log?

Each has a name that never changes its meaning, for who searches a log or alerts on one; a level; and how often the same
may be said again. What each means for an operator, and what to do, is in docs/logs.md: a test compares. A line is
written by `logs.tell(NOTICE, ...)` and nothing else. Adding one: here, where it happens, and in the table of the docs.

Levels. INFO: it went as it should, and somebody reading the log later wants to know. WARNING: hits or speed are lost, or
soon will be, and somebody can do something about it. ERROR: a part of PegaShm does not do its work. Engines serve on in
any case.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from logging import ERROR, INFO, WARNING
from typing import Final

__all__ = ["NOTICES", "Notice"]

_SELDOM: Final = 10.0  # seconds: of what may happen with each message or block
_ONCE: Final = math.inf


@dataclass(frozen=True, slots=True)
class Notice:
    """`every_seconds`: the same, of the same subject, is told no more often; the next line says what was left out."""

    name: str
    level: int
    every_seconds: float = 0.0


NOTICES: Final[dict[str, Notice]] = {}


def _notice(name: str, level: int, every_seconds: float = 0.0) -> Notice:
    NOTICES[name] = made = Notice(name, level, every_seconds)
    return made


# -- the arena and its supervisor ---------------------------------------------------------------------
ARENA_CREATING: Final = _notice("arena_creating", INFO)
ARENA_CREATED: Final = _notice("arena_created", INFO)
ARENA_UNFINISHED: Final = _notice("arena_unfinished", INFO)
ARENA_READOPTED: Final = _notice("arena_readopted", INFO)
ARENA_REPAIRED: Final = _notice("arena_repaired", WARNING)
ARENA_UNCHECKED: Final = _notice("arena_unchecked", WARNING)
ARENA_READY: Final = _notice("arena_ready", INFO)
ARENA_POPULATING: Final = _notice("arena_populating", INFO)
ARENA_POPULATED: Final = _notice("arena_populated", INFO)
ARENA_DRAINING: Final = _notice("arena_draining", WARNING)
ARENA_KEPT: Final = _notice("arena_kept", INFO)
ARENA_REMOVED: Final = _notice("arena_removed", INFO)
ARENA_ON_DISK: Final = _notice("arena_on_disk", WARNING)
HUGE_PAGES_POSSIBLE: Final = _notice("huge_pages_possible", INFO)
LEFTOVER_REMOVED: Final = _notice("leftover_removed", INFO)
LEFTOVER_IN_USE: Final = _notice("leftover_in_use", WARNING)
MEMORY_NOT_LOCKED: Final = _notice("memory_not_locked", WARNING)
MEMORY_NOT_BOUND: Final = _notice("memory_not_bound", WARNING)
POPULATE_FAILED: Final = _notice("populate_failed", ERROR)
CLIENT_REAPED: Final = _notice("client_reaped", INFO)
ENDING: Final = _notice("ending", INFO)
FAILED: Final = _notice("failed", ERROR)

# -- the transport worker and its spill files ---------------------------------------------------------
WORKER_LISTENING: Final = _notice("worker_listening", INFO)
WORKER_ENDED: Final = _notice("worker_ended", ERROR)
WORKER_NOT_STARTED: Final = _notice("worker_not_started", ERROR)
WORKER_STUCK: Final = _notice("worker_stuck", ERROR)
SPILL_OPENED: Final = _notice("spill_opened", INFO)
SPILL_NOT_OPENED: Final = _notice("spill_not_opened", ERROR)
SPILL_SIZE_KEPT: Final = _notice("spill_size_kept", WARNING)
SPILL_NOT_DIRECT: Final = _notice("spill_not_direct", WARNING)
SPILL_IN_USE: Final = _notice("spill_in_use", INFO)
SPILL_OUT_OF_USE: Final = _notice("spill_out_of_use", ERROR)
SPILL_ANSWERS: Final = _notice("spill_answers", INFO)
SPILL_TABLE_FULL: Final = _notice("spill_table_full", WARNING)
SPILL_WRITTEN: Final = _notice("spill_written", INFO)
SPILL_BUDGET_SPENT: Final = _notice("spill_budget_spent", WARNING, 3600.0)
SPILL_WRITE_FAILED: Final = _notice("spill_write_failed", ERROR, _SELDOM)
SPILL_READ_FAILED: Final = _notice("spill_read_failed", ERROR, _SELDOM)
SPILL_BLOCK_BAD: Final = _notice("spill_block_bad", ERROR, _SELDOM)
NAMESPACE_NOT_LISTED: Final = _notice("namespace_not_listed", WARNING)
BLOCK_DAMAGED: Final = _notice("block_damaged", ERROR, _SELDOM)

# -- other hosts --------------------------------------------------------------------------------------
PEERS_LISTENING: Final = _notice("peers_listening", INFO)
PEER_JOINED: Final = _notice("peer_joined", INFO)
PEER_GONE: Final = _notice("peer_gone", WARNING)
PEER_NOT_REACHED: Final = _notice("peer_not_reached", WARNING)
PEER_LEFT_ALONE: Final = _notice("peer_left_alone", WARNING, _SELDOM)
PEER_REFUSED: Final = _notice("peer_refused", WARNING, _SELDOM)
PEER_MESSAGE_BAD: Final = _notice("peer_message_bad", WARNING, _SELDOM)
PEER_LEASE_EXPIRED: Final = _notice("peer_lease_expired", WARNING, _SELDOM)
PEER_STREAM_REFUSED: Final = _notice("peer_stream_refused", WARNING, _SELDOM)
PEER_FETCH_FAILED: Final = _notice("peer_fetch_failed", WARNING, _SELDOM)
PEER_READ_FAILED: Final = _notice("peer_read_failed", WARNING, _SELDOM)
PEER_BYTES_BAD: Final = _notice("peer_bytes_bad", WARNING, _SELDOM)
PEER_NOT_HEARD: Final = _notice("peer_not_heard", WARNING)
PEERS_KEYS_BAD: Final = _notice("peers_keys_bad", ERROR)
PEERS_LIST_KEPT: Final = _notice("peers_list_kept", WARNING)
PEERS_ENTRY_BAD: Final = _notice("peers_entry_bad", WARNING, _SELDOM)
RDMA_NOT_USED: Final = _notice("rdma_not_used", INFO)
RDMA_TROUBLE: Final = _notice("rdma_trouble", WARNING, _SELDOM)
RDMA_CONNECTION_ENDED: Final = _notice("rdma_connection_ended", INFO, _SELDOM)

# -- what looks at an arena -----------------------------------------------------------------------------
EXPORTER_LISTENING: Final = _notice("exporter_listening", INFO)
EXPORTER_ANSWER_FAILED: Final = _notice("exporter_answer_failed", ERROR, _SELDOM)

# -- the connector, in an engine's log ----------------------------------------------------------------
ATTACHED: Final = _notice("attached", INFO)
NOT_ATTACHED: Final = _notice("not_attached", WARNING)
RESERVE_SHORT: Final = _notice("reserve_short", WARNING)
CHUNK_TOO_LARGE: Final = _notice("chunk_too_large", WARNING, _ONCE)
TRANSPORT_NOT_ASKED: Final = _notice("transport_not_asked", WARNING, _ONCE)
WORKER_WITHOUT_ARENA: Final = _notice("worker_without_arena", WARNING, _SELDOM)
LOAD_FAILED: Final = _notice("load_failed", WARNING, _SELDOM)
COPY_FAILED: Final = _notice("copy_failed", ERROR, _SELDOM)
CONNECTOR_FAILED: Final = _notice("connector_failed", ERROR, _SELDOM)
GPU_MEMORY_REGISTERED: Final = _notice("gpu_memory_registered", INFO)
GPU_MEMORY_NOT_REGISTERED: Final = _notice("gpu_memory_not_registered", WARNING)
