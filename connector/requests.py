"""What does one request hold in the cache at the moment? Kept in vLLM's per-request scratch space.

`found`: pinned by lookups of the current step, not yet part of a load; dropped when the step ends.
While the request waits for blocks on SSD (`promotions.py`), it is kept from step to step.
`loading`: pinned for a load job until vLLM says that it completed.
Also the request's keys in order, so that the first lookup of a step can ask for many at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from vllm.v1.kv_offload.base import OffloadKey, ReqContext

if TYPE_CHECKING:
    from pegashm.connector.promotions import Wait

__all__ = ["RequestState", "keys_tail_to_head", "request_state", "wants"]

_BATCH: Final = 64
_GROUP_BYTES: Final = 4


@dataclass(slots=True, eq=False)
class RequestState:
    """Handles by key; `loads`: how many load jobs this request has had; `resets_before`: how often the cache had
    been reset when the request came.

    Of keys on SSD or on other hosts, `spilled`: hits to be; `asked`: of those, what the worker was asked for;
    `promoted`: what came into memory for us; `refused`: what did not, and why; `unreached`: what nobody was asked for;
    `remote`: which of all these were on other hosts. `counted`: KV groups whose keys have been counted as asked for;
    `demanded`: these keys, by group, until it is known what came of them (`accounts.py`). `wait`: while it waits; `waits`: how often it has; `gave_up`: its deadline passed once.
    """

    found: dict[OffloadKey, int] = field(default_factory=dict)
    missing: set[OffloadKey] = field(default_factory=set)
    spilled: set[OffloadKey] = field(default_factory=set)
    loading: dict[OffloadKey, int] = field(default_factory=dict)
    loads: int = 0
    resets_before: int = 0
    asked: set[OffloadKey] = field(default_factory=set)
    promoted: set[OffloadKey] = field(default_factory=set)
    refused: dict[OffloadKey, str] = field(default_factory=dict)
    unreached: set[OffloadKey] = field(default_factory=set)
    remote: set[OffloadKey] = field(default_factory=set)
    wait: Wait | None = None
    waits: int = 0
    gave_up: bool = False
    counted: set[bytes] = field(default_factory=set)
    demanded: list[list[OffloadKey]] = field(default_factory=list)
    _groups: dict[bytes, list[OffloadKey]] = field(default_factory=dict)
    _places: dict[OffloadKey, int] = field(default_factory=dict)
    _known: int = 0

    def is_hit(self, key: OffloadKey) -> bool:
        """Whether it was found in this step, or is to be."""
        return key in self.found or key in self.spilled

    def knows(self, key: OffloadKey) -> bool:
        """Whether it was looked up in this step."""
        return self.is_hit(key) or key in self.missing

    def is_first_of_group(self, key: OffloadKey) -> bool:
        """Whether this is the request's first question about its KV group: true once for each."""
        group = key[-_GROUP_BYTES:]
        if group in self.counted:
            return False
        self.counted.add(group)
        return True

    def clear(self) -> None:
        """Forget the step's lookups; the pins are the caller's business."""
        self.found.clear()
        self.missing.clear()
        self.spilled.clear()
        self.unreached.clear()

    def chain(self, key: OffloadKey, context: ReqContext) -> tuple[list[OffloadKey], int]:
        """All keys of its KV group in order, what the engine has itself included, and the token at which they end."""
        group, _ = self._group(key, context)
        return group, _positions(context)[group[-1]] if group else 0

    def onward(self, key: OffloadKey, context: ReqContext) -> list[OffloadKey]:
        """`key` and those that follow it in its KV group, as far as vLLM has told us the order."""
        group, place = self._group(key, context)
        return group[place:] if group else [key]

    def backward(self, key: OffloadKey, context: ReqContext) -> list[OffloadKey]:
        """`key` and those before it in its KV group, nearest first, at most a batch."""
        group, place = self._group(key, context)
        return group[max(place - _BATCH + 1, 0) : place + 1][::-1] if group else [key]

    def follows_a_lookup(self, key: OffloadKey, context: ReqContext) -> bool:
        """Whether the key after this one was looked up this step: vLLM is going from the end."""
        group, place = self._group(key, context)
        if place + 1 >= len(group):
            return False
        return self.knows(group[place + 1])

    def _group(self, key: OffloadKey, context: ReqContext) -> tuple[list[OffloadKey], int]:
        positions = _positions(context)
        if len(positions) != self._known:
            self._groups.clear()
            for known in positions:
                self._groups.setdefault(known[-_GROUP_BYTES:], []).append(known)
            for keys in self._groups.values():
                keys.sort(key=positions.__getitem__)
                self._places.update((known, place) for place, known in enumerate(keys))
            self._known = len(positions)
        place = self._places.get(key)
        return ([], 0) if place is None else (self._groups[key[-_GROUP_BYTES:]], place)


def keys_tail_to_head(context: ReqContext) -> list[OffloadKey]:
    """All keys of a request, those that end latest first."""
    positions = _positions(context)
    return sorted(positions, key=positions.__getitem__, reverse=True)


def _positions(context: ReqContext) -> dict[OffloadKey, int]:
    """The token at which each key's chunk ends. vLLM notes it before it looks a key up; the attribute is
    private to it, so without it we ask for one key at a time."""
    return getattr(context, "_offload_key_positions", {})


def request_state(context: ReqContext) -> RequestState:
    """This request's state, made at first use."""
    state: RequestState | None = context.get_state(RequestState)
    if state is None:
        state = RequestState()
        context.set_state(state)
    return state


def wants(context: ReqContext, what: str) -> bool:
    """Whether this request may "load" or "store": `kv_transfer_params={"pegashm": {"load": false}}`."""
    params: Any = (context.kv_transfer_params or {}).get("pegashm")
    return not isinstance(params, dict) or params.get(what, True) is not False
