"""What keeps an arena busy as engines do? Conversations that grow, are looked up again, and find blocks on all tiers.

`python -m tests.page.traffic ARENA --label L --model M --seed N` attaches as an engine would, answers turns of conversations
until it is killed, and says "ready" after the first. No model computes anything: it claims, copies noise, publishes,
pins while it "decodes". For screenshots; not a benchmark.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np

from pegashm._native import OK, REMOTE, SPILLED
from pegashm.cache import Cache
from pegashm.keys import namespace_of
from pegashm.transport.client import TransportClient
from pegashm.units import KIB

_PROMOTE_MS = 800
_TURN_BLOCKS = (4, 24)
# What the connector calls what Region.why_missing says.
_REASONS = {
    "refused": "pinned_out",
    "damaged": "checksum",
    "present": "unused",
    "spilled": "timed_out",
}
_HELD = 2  # turns that are being "decoded", and pin their blocks


class Engine:
    """One fake engine."""

    def __init__(self, cache: Cache, client: TransportClient, options: argparse.Namespace) -> None:
        self._cache = cache
        self._client = client
        self._chance = random.Random(options.seed)
        self._salt = f"{options.model} {options.shared or options.seed}"
        self._nbytes = options.block_kib * KIB
        self._conversations: dict[int, int] = {}  # number -> blocks so far
        self._most = options.conversations
        self._held: list[np.ndarray] = []
        self._below = self._from_ssd = 0  # of this turn: found below memory, and of those on SSD

    def turn(self) -> None:
        """One request: the prefix is looked up, what lies below memory is asked for, the rest is stored."""
        keys = self._next()
        self._cache.count_asked(keys)
        handles = self._found(keys)
        self._count(keys, len(handles))
        self._store(keys[len(handles) :])
        self._held.append(handles)
        if len(self._held) > _HELD:
            self._cache.unpin(self._held.pop(0))

    def _count(self, keys: Sequence[bytes], served: int) -> None:
        """As the connector does when it is known what came of a request."""
        region = self._cache.region
        self._cache.count_served(served)
        below = min(served, self._below)
        ssd = min(below, self._from_ssd)
        reasons = region.why_missing(keys[served:], self._cache.namespace_id)
        amounts = Counter(f"missed_{_REASONS.get(reason, reason)}" for reason in reasons)
        amounts |= {"asked": len(keys), "hits_memory": served - below}
        amounts |= {"hits_ssd": ssd, "hits_remote": below - ssd}
        for name, amount in amounts.items():
            region.count(name, amount)

    def _next(self) -> list[bytes]:
        known = list(self._conversations)
        if len(known) < self._most and (not known or self._chance.random() < 0.3):
            number = len(known)
        else:  # the later ones more often
            number = known[-1 - int(len(known) * self._chance.random() ** 1.7)]
        blocks = self._conversations.get(number, 8) + self._chance.randint(*_TURN_BLOCKS)
        if blocks > 160:
            blocks = 8
        self._conversations[number] = blocks
        return [
            hashlib.sha256(f"{self._salt} {number} {block}".encode()).digest() + bytes(4)
            for block in range(blocks)
        ]

    def _found(self, keys: Sequence[bytes]) -> np.ndarray:
        handles, outcomes = self._cache.find_prefix(keys, pin=True)
        below = [
            key
            for key, outcome in zip(keys, outcomes, strict=False)
            if outcome in (SPILLED, REMOTE)
        ]
        self._below, self._from_ssd = len(below), int((outcomes == SPILLED).sum())
        if below:
            self._cache.unpin(handles[outcomes == OK])
            ticket = self._client.promote(below, self._cache.namespace_id, _PROMOTE_MS)
            deadline = time.monotonic() + _PROMOTE_MS / 1000
            while ticket is not None and time.monotonic() < deadline:
                if any(reply.request_id == ticket for reply in self._client.replies()):
                    break
                time.sleep(0.002)
            handles, outcomes = self._cache.find_prefix(keys, pin=True)
        good = int(np.argmax(outcomes != OK)) if (outcomes != OK).any() else len(outcomes)
        self._cache.unpin(handles[good:][outcomes[good:] == OK])
        return handles[:good]

    def _store(self, keys: Sequence[bytes]) -> None:
        if not keys:
            return
        handles, outcomes = self._cache.claim(keys, self._nbytes)
        time.sleep(0.004 * len(keys))  # the "prefill"
        self._cache.publish(handles[outcomes == OK])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("arena")
    parser.add_argument("--label", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument(
        "--shared", default="", help="engines of one value have the same conversations"
    )
    parser.add_argument("--block-kib", type=int, default=64)
    parser.add_argument("--conversations", type=int, default=30)
    parser.add_argument("--maximum-mib", type=int, default=0)
    parser.add_argument("--pause", type=float, default=0.25)
    options = parser.parse_args()
    namespace = namespace_of(
        {"model": options.model}, label=options.model, maximum_bytes=options.maximum_mib << 20
    )
    with (
        Cache.attach(options.arena, namespace=namespace, label=options.label) as cache,
        TransportClient(cache.arena) as client,
    ):
        engine = Engine(cache, client, options)
        beat = random.Random(options.seed)
        while True:
            engine.turn()
            print("ready", flush=True)
            # Traffic comes and goes, over a few minutes.
            tide = 1.5 + np.sin(time.time() / 70 + options.seed)
            time.sleep(beat.expovariate(1 / (options.pause * float(tide))))


if __name__ == "__main__":
    main()
