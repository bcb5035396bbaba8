"""PegaShm inside vLLM: `--kv-transfer-config` names this module, and vLLM is not modified.

    {"kv_connector": "PegaShmConnector", "kv_connector_module_path": "pegashm.connector", "kv_role": "kv_both"}

with `PEGASHM_ARENA=NAME` in the engine's environment. vLLM's own offloading framework schedules,
chunks, preempts and handles hybrid KV groups; ours are the index (`manager`, in the scheduler) and the bytes
(`worker`, in each worker). This file only names what vLLM looks for, and imports it when asked: the other
modules of this folder can be used, and tested, without an engine.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pegashm.connector.connector import PegaShmConnector
    from pegashm.connector.spec import PegaShmOffloadingSpec

__all__ = ["PegaShmConnector", "PegaShmOffloadingSpec"]


def __getattr__(name: str) -> Any:
    if name == "PegaShmConnector":
        from pegashm.connector.connector import PegaShmConnector

        return PegaShmConnector
    if name == "PegaShmOffloadingSpec":
        from pegashm.connector.spec import PegaShmOffloadingSpec

        return PegaShmOffloadingSpec
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
