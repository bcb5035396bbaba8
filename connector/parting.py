"""Who waits while a mapping is taken down? Nobody on the engine's path: a thread of its own does it.

Whoever is the last to let go of a purged arena frees all of its memory, in that very call: about 0.24 s a GiB of
4 KiB pages, 15 s for 64 GiB. Leaving an arena that is still there costs a pass over its records. Called by the
scheduler's side and by the workers when their arena was purged, or replaced by another of the same name.
"""

import threading
from typing import Protocol

from vllm.logger import init_logger

from pegashm.logs import tell
from pegashm.notices import CONNECTOR_FAILED

__all__ = ["close_aside"]

logger = init_logger(f"vllm.{__name__}")  # under vLLM's own, whose handlers print it


class _Closable(Protocol):
    def close(self) -> None: ...


def close_aside(thing: _Closable) -> threading.Thread:
    """Close it in a thread; nobody may use it any more. The end of the process does not wait for that."""
    thread = threading.Thread(target=_close, args=(thing,), name="pegashm-parting", daemon=True)
    thread.start()
    return thread


def _close(thing: _Closable) -> None:
    try:
        thing.close()
    except Exception:  # noqa: BLE001 - told, with the traceback
        tell(
            CONNECTOR_FAILED,
            "leaving an arena failed: the end of this process does it",
            subject="leave",
            to=logger,
            trace=True,
        )
