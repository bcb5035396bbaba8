"""What does vLLM load? OffloadingConnector with our spec filled in, and a lost load turned into a recompute.

Two things are added to vLLM's own connector. At start: the version is checked, the settings are checked, and
the scheduler's process computes the namespace. While running: a load whose block changed under the copy is
reported as failed for its request, which vLLM then computes; without this it would assert, or serve what it got.
"""

from typing import TYPE_CHECKING, Any, Final

import vllm
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorRole,
    KVConnectorTransferResults,
)
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics
from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import OffloadingConnector
from vllm.logger import init_logger

from pegashm.connector.namespace import engine_namespace
from pegashm.connector.settings import settings_of
from pegashm.connector.spec import NAMESPACE_KEY
from pegashm.errors import ConfigError
from pegashm.logs import tell
from pegashm.notices import LOAD_FAILED
from pegashm.supported import VLLM as TESTED_VLLM

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

__all__ = ["TESTED_VLLM", "PegaShmConnector", "check_vllm_version"]

_SPEC: Final = {
    "spec_name": "PegaShmOffloadingSpec",
    "spec_module_path": "pegashm.connector.spec",
}

logger = init_logger(f"vllm.{__name__}")  # under vLLM's own, whose handlers print it


class PegaShmConnector(OffloadingConnector):
    """The short name for `kv_connector`; see `pegashm.connector`."""

    def __init__(
        self,
        vllm_config: "VllmConfig",
        role: KVConnectorRole,
        kv_cache_config: "KVCacheConfig",
    ) -> None:
        check_vllm_version(vllm.__version__)
        hosts = vllm_config.parallel_config.nnodes_within_dp
        if hosts > 1:
            raise ConfigError(
                f"this engine's workers are on {hosts} hosts, and an arena is the memory of one: leave "
                "PegaShmConnector out of its --kv-transfer-config, or keep each replica on one host"
            )
        transfer = vllm_config.kv_transfer_config
        extra: dict[str, Any] = transfer.kv_connector_extra_config
        extra.pop(NAMESPACE_KEY, None)
        settings = settings_of(extra)
        extra.update(_SPEC)
        if role == KVConnectorRole.SCHEDULER:
            extra[NAMESPACE_KEY] = engine_namespace(vllm_config, kv_cache_config, settings)
            # vLLM's default fails the request; a cache may only ever cost the time to compute.
            transfer.kv_load_failure_policy = "recompute"
        try:
            super().__init__(vllm_config, role, kv_cache_config)
        finally:
            extra.pop(NAMESPACE_KEY, None)

    @classmethod
    def build_prom_metrics(
        cls, vllm_config: "VllmConfig", *arguments: Any, **named: Any
    ) -> KVConnectorPromMetrics:
        """Called where `/metrics` is served, which may be a process that makes no connector."""
        vllm_config.kv_transfer_config.kv_connector_extra_config.update(_SPEC)
        return super().build_prom_metrics(vllm_config, *arguments, **named)

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """vLLM's results, with the requests whose load failed among them."""
        worker = self.connector_worker
        assert worker is not None
        requests = dict(worker._load_jobs)  # noqa: SLF001 - get_finished() forgets which job was whose
        results = super().get_transfer_results(finished_req_ids)
        failed: set[int] = getattr(worker.worker, "failed_jobs", set())
        for job_id in tuple(failed):  # at once: the copying thread may be adding to it
            if job_id in worker._load_jobs:  # noqa: SLF001 - it has not been fetched yet
                continue
            failed.discard(job_id)
            request = requests.get(job_id)
            if request is not None:
                tell(
                    LOAD_FAILED, "a load for request %s failed, it is computed", request, to=logger
                )
                results.failed_recving.add(request)
        return results


def check_vllm_version(version: str) -> None:
    """ConfigError unless this is a vLLM that PegaShm was tested with."""
    if version.split("+", maxsplit=1)[0].split(".")[:2] != TESTED_VLLM.split("."):
        raise ConfigError(
            f"this PegaShm works with vLLM {TESTED_VLLM}.x, the engine is vLLM {version}: install "
            f"vllm=={TESTED_VLLM}.*, or a PegaShm release for your vLLM"
        )
