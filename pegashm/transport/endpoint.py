"""Where does the transport worker listen, and who may speak to it?

On `ipc://DIR/transport-TOKEN.sock`, in a folder of its own that nobody else may enter (0700; 0750 and the group's with
--group). The folder is in the service manager's where it gives one, else in /run for root, the user's runtime
folder, or /tmp. The token is another for each worker: one that ends late, of an arena that was purged, removes its
own socket and not its successor's. libzmq asks the kernel who is at the other end of each connection: only the worker's own user,
root, and members of the group are let in. The path stands in the region's header, for engines to find.

Called by the worker, which holds the arena's TRANSPORT lock: socket files that are there are those of dead workers.
"""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import stat
from dataclasses import dataclass
from typing import Final

import zmq

from pegashm._native import TRANSPORT_PATH_BYTES
from pegashm.errors import ConfigError, ResourceError
from pegashm.names import runtime_directory
from pegashm.transport.messages import MESSAGE_BYTES_MAX

__all__ = ["Endpoint"]

# Requests and answers of one connection that may wait; beyond that libzmq holds the sender or we drop.
_QUEUE_MESSAGES: Final = 256


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A bound ROUTER and the path it listens on."""

    path: str
    router: zmq.Socket[bytes]

    @classmethod
    def listen(
        cls, context: zmq.Context[zmq.Socket[bytes]], name: str, gid: int | None
    ) -> Endpoint:
        """Make the folder and bind. ResourceError or ConfigError when that cannot be done safely."""
        folder = runtime_directory(name)
        path = f"{folder}/transport-{secrets.token_hex(4)}.sock"
        if len(os.fsencode(path)) > TRANSPORT_PATH_BYTES:
            raise ConfigError(
                f"the transport worker's socket {path} has a path of {len(os.fsencode(path))} bytes, at most "
                f"{TRANSPORT_PATH_BYTES} can be used: set XDG_RUNTIME_DIR (or RUNTIME_DIRECTORY) to a shorter folder"
            )
        _make_folder(folder, gid)
        for left in glob.glob(f"{glob.escape(folder)}/transport-*.sock"):
            with contextlib.suppress(OSError):
                os.unlink(left)
        router = context.socket(zmq.ROUTER)
        try:
            router.setsockopt(zmq.LINGER, 0)
            router.setsockopt(zmq.SNDHWM, _QUEUE_MESSAGES)
            router.setsockopt(zmq.RCVHWM, _QUEUE_MESSAGES)
            router.setsockopt(zmq.MAXMSGSIZE, MESSAGE_BYTES_MAX)
            for uid in {os.geteuid(), 0}:
                router.setsockopt(zmq.IPC_FILTER_UID, uid)
            if gid is not None:
                router.setsockopt(zmq.IPC_FILTER_GID, gid)
            try:
                router.bind(f"ipc://{path}")
            except zmq.ZMQError as error:
                raise ResourceError(f"cannot listen on {path}: {error}") from error
            _restrict(path, 0o600 if gid is None else 0o660, gid)
        except BaseException:
            router.close(linger=0)
            raise
        return cls(path, router)

    def close(self) -> None:
        """Stop listening and remove what was made. Of a killed worker it stays until the next one, or a purge."""
        self.router.close(linger=0)
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        with contextlib.suppress(OSError):
            os.rmdir(os.path.dirname(self.path))


def _make_folder(folder: str, gid: int | None) -> None:
    above = os.path.dirname(folder)
    try:
        os.makedirs(above, mode=0o755, exist_ok=True)
        _check_above(above)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        facts = os.lstat(folder)
    except OSError as error:
        raise ResourceError(
            f"cannot make {folder} for the transport worker's socket: {error.strerror}. Set XDG_RUNTIME_DIR (or "
            "RUNTIME_DIRECTORY) to a folder of this user's"
        ) from error
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid():
        raise ResourceError(
            f"{folder} is not a folder of uid {os.geteuid()} (it belongs to uid {facts.st_uid}): somebody else made "
            f"it. Remove it, or set XDG_RUNTIME_DIR (or RUNTIME_DIRECTORY) to a folder of this user's"
        )
    _restrict(folder, 0o700 if gid is None else 0o750, gid)


def _check_above(folder: str) -> None:
    """Who may rename our folder could listen in our place."""
    facts = os.lstat(folder)
    safe = not facts.st_mode & 0o022 or facts.st_mode & stat.S_ISVTX
    if facts.st_uid not in (os.geteuid(), 0) or not safe or not stat.S_ISDIR(facts.st_mode):
        raise ResourceError(
            f"{folder} belongs to uid {facts.st_uid} with mode {facts.st_mode & 0o7777:04o}: others could put another "
            "socket there. Remove it, or set XDG_RUNTIME_DIR (or RUNTIME_DIRECTORY) to a folder of this user's"
        )


def _restrict(path: str, mode: int, gid: int | None) -> None:
    try:
        if gid is not None:
            os.chown(path, -1, gid)
        os.chmod(path, mode)
    except OSError as error:
        raise ResourceError(
            f"cannot set owner and mode {mode:04o} of {path}: {error.strerror}. Is this user a member of --group?"
        ) from error
