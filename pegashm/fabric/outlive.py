"""How does a kernel lock outlive everything else that the process has open, when it is killed?

Whoever sees the lock free takes the blocks that its holder claimed. A device may still be writing into them until the kernel
has closed its descriptor and with it destroyed the queue pairs. At exit the kernel runs the last `fput` of
each descriptor in the reverse order of their numbers (Linux 4.3 and later put them on a list, newest first; before, it was
in their order), so no choice of a number is right everywhere and for ever. What is: the last
reference to the lock's description waits in a socket as a message that nobody receives. It goes when the socket is
torn down, which queues its own release behind all that was queued before. tests/rdma/ shows both with the kernel's tracer.

Called by `verbs.py`, once a fabric. A forked child lets go at once, as `liveness.py` demands of every descriptor of a lock.
"""

from __future__ import annotations

import array
import os
import socket
import weakref
from typing import Final

__all__ = ["Outliving"]

_all: Final[weakref.WeakSet[Outliving]] = weakref.WeakSet()


class Outliving:
    """Keeps the lock held through `descriptor` until this process has closed all else, or `close`."""

    def __init__(self, descriptor: int) -> None:
        self._near, self._far = socket.socketpair()
        _all.add(self)
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))
        self._near.sendmsg([b"\0"], [rights])

    def close(self) -> None:
        """Let go. The lock stays as long as its own descriptor does; a second call does nothing."""
        self._near.close()
        self._far.close()


def _let_go_in_child() -> None:
    for outliving in list(_all):
        outliving.close()


os.register_at_fork(after_in_child=_let_go_in_child)
