"""A client that claims, publishes, finds, pins and evicts at random until its input ends.

Every payload is its key's stamp, compared after each pin. Ends with JSON: operations, and wrong bytes.
Usage: python -m tests.fsck.churn ARENA SEED
"""

from __future__ import annotations

import json
import random
import select
import sys

from pegashm.cache import Cache

from tests.fsck.scene import FENCE, PAYLOAD_BYTES, key_of, stamp_of

SIZES = (PAYLOAD_BYTES, PAYLOAD_BYTES, PAYLOAD_BYTES, 16384)


def step(cache: Cache, chance: random.Random) -> int:
    """One random operation; how many blocks did not hold their stamp."""
    keys = [key_of(number) for number in chance.sample(range(1, 120), chance.randint(1, 8))]
    action = chance.randrange(8)
    wrong = 0
    if action < 3:
        handles, _ = cache.claim(keys, chance.choice(SIZES))
        offsets, sizes = cache.locate(handles)
        for key, offset, size in zip(keys, offsets.tolist(), sizes.tolist(), strict=True):
            if size:
                cache.region.payload(offset, PAYLOAD_BYTES)[:] = stamp_of(key)
        mine = handles[handles != 0]
        cache.abandon(mine) if chance.random() < 0.1 else cache.publish(mine)
    elif action < 6:
        handles, _ = cache.find(keys, pin=True)
        offsets, sizes = cache.locate(handles)
        for key, offset, size in zip(keys, offsets.tolist(), sizes.tolist(), strict=True):
            if size:
                wrong += stamp_of(key) != bytes(cache.region.payload(offset, PAYLOAD_BYTES))
        cache.touch(handles)
        cache.unpin(handles)
    elif action == 6:
        handles, _ = cache.find(keys)
        cache.evict(handles)
    else:
        cache.evict_lru(chance.choice(SIZES), chance.randint(1, 4))
    return wrong


def main(name: str, seed: int) -> None:
    chance = random.Random(seed)
    operations = wrong = 0
    with Cache.attach(name, namespace=FENCE, label="churn") as cache:
        print("ready", flush=True)
        while operations % 64 or not select.select([sys.stdin], [], [], 0)[0]:
            wrong += step(cache, chance)
            operations += 1
    print(json.dumps({"operations": operations, "wrong": wrong}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
