"""The other hosts of `bench.directory`: their blocks by number, and a process that publishes for all of them.

Block i of a host has a hash that both sides compute from (host, i), so that nobody keeps lists: a host holds the blocks
of a window that moves on with each block it stores (oldest out). One in `SHARED_EVERY` is one of a pool that all hosts
share, as system prompts are. The process binds a PUB socket for each host and sends what that host's publisher would: a
message each interval with what happened in it, a heartbeat when nothing did.
Run as `python -m bench.directory_hosts HOSTS BLOCKS EVENTS_S INTERVAL_S SECONDS`: prints the ports as JSON, starts at the line it then
reads, and prints what it sent.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import zmq
from numpy.typing import NDArray

from pegashm.directory.messages import Delta, pack_delta

__all__ = ["SHARED_EVERY", "hashes_of", "host_id_of", "incarnation_of"]

SHARED_EVERY = 10
SHARED_POOL = 100_000


def hashes_of(host: int, first: int, end: int) -> NDArray[np.uint64]:
    """Remote hashes of a host's blocks [first, end)."""
    numbers = np.arange(first, end, dtype=np.uint64)
    own = np.full(len(numbers), host + 1, dtype=np.uint64)
    shared = numbers % SHARED_EVERY == 0
    pool = (numbers // np.uint64(SHARED_EVERY) + np.uint64(host * 7919)) % np.uint64(SHARED_POOL)
    own[shared], numbers[shared] = 0, pool[shared]
    mixed = (own << np.uint64(40)) + numbers
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ mixed >> np.uint64(shift)) * np.uint64(factor)
    return mixed ^ mixed >> np.uint64(31)


def host_id_of(host: int) -> bytes:
    return host.to_bytes(16, "little")


def incarnation_of(host: int) -> bytes:
    return (host + (1 << 64)).to_bytes(16, "little")


def main(hosts: int, blocks: int, events_s: float, interval_s: float, seconds: float) -> None:
    context = zmq.Context(io_threads=1)
    context.set(zmq.MAX_SOCKETS, 2 * hosts + 16)
    sockets = []
    for _ in range(hosts):
        socket = context.socket(zmq.PUB)
        socket.setsockopt(zmq.LINGER, 0)
        socket.bind("tcp://127.0.0.1:*")
        sockets.append(socket)
    ports = [int(s.get_string(zmq.LAST_ENDPOINT).rpartition(":")[2]) for s in sockets]
    print(json.dumps(ports), flush=True)
    sys.stdin.readline()
    gathered = events_s * interval_s / 2  # of each: stored, and evicted
    moved, sequences = [0] * hosts, [0] * hosts
    told = nbytes = messages = 0
    late = 0.0
    began = time.monotonic()
    turn = 0
    while turn * interval_s < seconds:
        for host in range(hosts):
            due = began + turn * interval_s + interval_s * host / hosts
            wait = due - time.monotonic()
            if wait > 0.002:
                time.sleep(wait)
            late = max(late, -wait)
            count = int((turn + 1) * gathered) - int(turn * gathered)
            at = moved[host]
            fresh = hashes_of(host, blocks + at, blocks + at + count)
            old = hashes_of(host, at, at + count)
            ops = np.repeat(np.array([1, 2], dtype=np.uint8), count)
            sequences[host] += 1
            frame = pack_delta(
                Delta(
                    host_id_of(host),
                    incarnation_of(host),
                    sequences[host],
                    ops,
                    np.concatenate((fresh, old)),
                )
            )
            sockets[host].send(frame)
            moved[host] += count
            told, nbytes, messages = told + 2 * count, nbytes + len(frame), messages + 1
        turn += 1
    sent = {
        "events": told,
        "bytes": nbytes,
        "messages": messages,
        "seconds": time.monotonic() - began,
        "late_s": late,
        "moved": moved[0],
    }
    print(json.dumps(sent), flush=True)
    sys.stdin.readline()
    context.destroy(linger=0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *map(float, sys.argv[3:6]))
