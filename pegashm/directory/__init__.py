"""Which blocks do other hosts hold? Each host's journal as a stream, and everybody's keys as hints in shared memory.

Hints all: a stale one costs a fetch that fails. Who the hosts are and who may talk to them is `pegashm.peers`.
This file imports none of it.
"""

__all__: list[str] = []
