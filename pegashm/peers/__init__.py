"""The other hosts: who they are, who may talk to us, what they may pin here, and what we fetch from them.

Runs in the transport worker. How bytes move is `pegashm.fabric`; what others hold is `pegashm.directory`. This file
imports none of it.
"""

__all__: list[str] = []
