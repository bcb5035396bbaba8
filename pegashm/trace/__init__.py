"""Live traffic as a trace: what engines ask the cache for, recorded so that it can be replayed with other budgets, here or elsewhere.

`spool.py` is where engines leave their requests while somebody records, `recorder.py` makes a trace file of them, and `replaying.py` runs a
trace through the real index and eviction, of any size, without any payload. The file's format is Mooncake's, a JSON object a line, which `bench/replay.py` reads.
"""

__all__: list[str] = []
