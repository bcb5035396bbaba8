"""What are the shared-memory objects of an arena called?

`/dev/shm/pegashm.NAME.control` is how everybody finds an arena; its header then says where the payload
lies: beside it, or in the operator's directory. Containers may share such a directory and not /dev/shm, and
use the same NAME; a token in the file's name then keeps each from taking the other's payload for its own.
A *pending* file lists payload files that have no readable control region: it is written before
the first one is made and before the control region is unlinked, so that whoever comes after a SIGKILL
can remove them, in whatever directory they were. Nothing here opens or creates anything.
"""

import os
import re
from typing import Final

from pegashm.errors import ConfigError

__all__ = [
    "SHM_DIRECTORY",
    "check_name",
    "control_path",
    "is_payload_name",
    "payload_path",
    "pending_path",
    "runtime_directory",
    "trace_path",
]

SHM_DIRECTORY: Final = "/dev/shm"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,47}")


def check_name(name: str) -> str:
    """The name itself; ConfigError when it cannot be part of a file name of ours."""
    if _NAME.fullmatch(name) is None:
        raise ConfigError(
            f"arena name {name!r} cannot be used: 1 to 48 letters, digits, '-' or '_', "
            "starting with a letter or digit"
        )
    return name


def control_path(name: str) -> str:
    return f"{SHM_DIRECTORY}/pegashm.{check_name(name)}.control"


def pending_path(name: str) -> str:
    return f"{SHM_DIRECTORY}/pegashm.{check_name(name)}.pending"


def trace_path(name: str) -> str:
    """Where engines leave what their requests ask for, while somebody records it (`trace/spool.py`)."""
    return f"{SHM_DIRECTORY}/pegashm.{check_name(name)}.trace"


def payload_path(name: str, directory: str, arena: int, token: str = "") -> str:
    """`token`: 16 hex digits that no other arena has; in a directory where another /dev/shm's may lie too."""
    suffix = f"-{token}" if token else ""
    return os.path.join(directory, f"pegashm.{check_name(name)}.arena{arena}{suffix}")


def runtime_directory(name: str) -> str:
    """The folder of the transport worker's socket, for this user; it need not exist."""
    uid = os.geteuid()
    given = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]  # systemd may give several
    if given:
        return f"{given}/{check_name(name)}"
    if uid == 0:
        return f"/run/pegashm/{check_name(name)}"
    if os.environ.get("XDG_RUNTIME_DIR"):
        return f"{os.environ['XDG_RUNTIME_DIR']}/pegashm/{check_name(name)}"
    return f"/tmp/pegashm-{uid}/{check_name(name)}"


def is_payload_name(name: str, file_name: str) -> bool:
    """Whether a file of that name can only be a payload arena of `name`."""
    pattern = rf"pegashm\.{re.escape(name)}\.arena[0-9]+(-[0-9a-f]{{16}})?"
    return re.fullmatch(pattern, file_name) is not None
