"""A Python that has imported vLLM and runs scripts in forks of itself. Started by `warm.py`, never imported.

Importing takes 13 s of CPU time, of the 17 s that a tiny engine needs to answer. Nothing of PegaShm is imported here,
no model is loaded and no thread is running: a fork differs from a Python of its own in the modules it need not read, and in
the seed of hash(), which all forks share. Asked over a socket for one script at a time; of each fork its exit status is told as
soon as it is known. The end of the socket is the end of the server.
"""

from __future__ import annotations

import array
import contextlib
import gc
import json
import os
import runpy
import selectors
import socket
import sys
import threading
from pathlib import Path

MESSAGE_BYTES = 1 << 20


class Server:
    """Forks on demand, in a single thread."""

    def __init__(self, asked: socket.socket) -> None:
        self.asked = asked
        self.selector = selectors.DefaultSelector()
        self.selector.register(asked, selectors.EVENT_READ)
        self.ends: dict[int, tuple[int, int]] = {}  # pidfd -> (pid, where its status is told)

    def serve(self) -> list[str] | None:
        """In the server: until nobody asks any more, then None. In a fork: at once, with what it is to run."""
        while True:
            for key, _ in self.selector.select():
                if key.fileobj is not self.asked:
                    self.bury(key.fd)
                    continue
                message, descriptors, _, _ = socket.recv_fds(self.asked, MESSAGE_BYTES, 4)
                if not message:
                    return None
                if (arguments := self.fork(json.loads(message), descriptors)) is not None:
                    return arguments

    def fork(self, order: dict[str, object], descriptors: list[int]) -> list[str] | None:
        """In the fork what it is to run, in the server None."""
        status = descriptors[3]
        if (pid := os.fork()) == 0:
            self.become(order, descriptors)
            return list(map(str, order["arguments"]))  # type: ignore[call-overload]
        for descriptor in descriptors[:3]:
            os.close(descriptor)
        pidfd = os.pidfd_open(pid)
        self.ends[pidfd] = pid, status
        self.selector.register(pidfd, selectors.EVENT_READ)
        return None

    def become(self, order: dict[str, object], descriptors: list[int]) -> None:
        """What a Popen with these streams, environment, folder and a session of its own would be."""
        os.setsid()
        os.write(descriptors[3], array.array("q", [os.getpid()]).tobytes())
        for stream, descriptor in enumerate(descriptors[:3]):
            os.dup2(descriptor, stream)
        self.selector.close()
        self.asked.close()
        for number in {*descriptors, *self.ends, *(end[1] for end in self.ends.values())}:
            os.close(number)
        os.environ.clear()
        os.environ.update(order["environment"])  # type: ignore[call-overload]
        os.chdir(str(order["folder"]))

    def bury(self, pidfd: int) -> None:
        pid, status = self.ends.pop(pidfd)
        self.selector.unregister(pidfd)
        os.close(pidfd)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with contextlib.suppress(BrokenPipeError):  # who asked is gone
            os.write(status, array.array("q", [code]).tobytes())
        os.close(status)


def main() -> None:
    import vllm.v1.engine.llm_engine
    import vllm.v1.worker.cpu_worker  # noqa: F401 - what every engine imports first
    from vllm import LLM  # noqa: F401

    assert 1 == threading.active_count()
    gc.freeze()
    arguments = Server(socket.socket(fileno=int(sys.argv[1]))).serve()
    if arguments is not None:
        sys.argv = arguments
        sys.path[0] = str(Path(arguments[0]).parent)
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main()
