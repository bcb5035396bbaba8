"""Rivals: other stores that a KV cache could be kept in, measured as one would use them, beside PegaShm.

`python -m bench.rivals.install` gives each its own environment under .cache/rivals, `python -m bench.rivals` measures those
that are there. A store is one file in stores/: how its servers are started (in the parent process, which imports nothing
of the rival's) and what a client of it does (in a worker process, which runs in the rival's environment).
"""
