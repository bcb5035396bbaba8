"""A reader that lies: it posts READs of any address with any key over a connection's own queue pair.

What `Connection.read` checks on the reading side is left out; all that stands between it and the memory is what the serving
side has set. Called by the tests of keys.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from pegashm.fabric.interface import GRANT_BYTES_MAX, Grant, Part
from pegashm.fabric.verbs_wire import Row, parse_grant

from tests.rdma.rig import Hosts

__all__ = ["SUCCESS", "read_raw", "rows_of"]

SUCCESS = "success"


def rows_of(connection: Any, grant: Grant) -> list[Row]:
    return parse_grant(
        grant.opaque, grant.lease_id, connection=connection.number, most=GRANT_BYTES_MAX
    )


def read_raw(hosts: Hosts, connection: Any, offset: int, nbytes: int, rkey: int) -> str:
    """Read what lies at `offset` of the serving payload to the start of ours; SUCCESS, or the error's name."""
    from pegashm.fabric.verbs_reading import _Reading

    rail = connection._rails[0]
    device = rail.queue.device
    reading = _Reading([Part(offset, nbytes, hosts.reading.address)], (), 0)
    reading.missing[0] = 1
    key = device.region(0).lkey
    remote = hosts.serving.address + offset
    rail.post(reading, deque([(0, 0, hosts.reading.address, key, nbytes, remote, rkey)]), 1)
    until = time.monotonic() + 10
    try:
        while not rail.poll():
            assert time.monotonic() < until, "neither arrived nor failed"
            time.sleep(0.001)
    except ValueError as error:
        return str(error)
    return SUCCESS
