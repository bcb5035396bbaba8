"""What does vLLM's offloading framework get from us? A manager for its scheduler, a worker for each of its workers.

vLLM makes one spec in each process, from its configuration alone. The namespace, which needs more than the
framework passes on, is computed by `connector.py` and handed over in the extra config.
"""

from typing import Any, Final

from vllm.platforms import current_platform
from vllm.v1.kv_offload.base import (
    CanonicalKVCaches,
    OffloadingManager,
    OffloadingMetricMetadata,
    OffloadingSpec,
    OffloadingWorker,
)
from vllm.v1.kv_offload.config import OffloadingConfig

from pegashm.connector.attachment import Attachment
from pegashm.connector.chunks import ChunkLayout
from pegashm.connector.manager import PegaShmManager
from pegashm.connector.settings import settings_of
from pegashm.connector.stats import METRICS
from pegashm.connector.worker import PegaShmCpuWorker
from pegashm.errors import ConfigError
from pegashm.keys import Namespace
from pegashm.payload_sums import Checksums, Part

__all__ = ["CHECKSUMS_DEFAULT", "NAMESPACE_KEY", "PegaShmOffloadingSpec"]

# Where connector.py leaves the namespace; not for users.
NAMESPACE_KEY: Final = "pegashm_namespace"
# Chosen by measurement: pegashm/DESIGN.md, "Checksums".
CHECKSUMS_DEFAULT: Final = Checksums.OFF


class PegaShmOffloadingSpec(OffloadingSpec):
    """Offloading to a PegaShm arena."""

    def __init__(self, config: OffloadingConfig) -> None:
        super().__init__(config)
        extra = dict(config.extra_config)
        namespace = extra.pop(NAMESPACE_KEY, None)
        self._namespace: Namespace | None = namespace
        self._settings = settings_of(extra)
        if config.canonical_layout:
            raise ConfigError(
                "canonical_layout is not supported yet: leave it out of kv_connector_extra_config"
            )
        if config.worker_kv_bytes_per_block <= 0:
            raise ConfigError("this engine has no KV cache that could be stored")
        # One cell for all workers when each holds the same bytes (MLA): vLLM then lets rank 0 store.
        self.replicated_layout = config.replicated_layout
        self._layout = ChunkLayout(
            worker_bytes_per_block=config.worker_kv_bytes_per_block,
            blocks_per_chunk=self.blocks_per_chunk,
            cells=1 if self.replicated_layout else config.parallel.world_size,
        )
        self._checksums = _checksums(self._settings.checksums, self._layout)

    @classmethod
    def build_metric_definitions(
        cls, extra_config: dict[str, Any]
    ) -> dict[str, OffloadingMetricMetadata]:
        return dict(METRICS)

    def get_manager(self) -> OffloadingManager:
        assert self._namespace is not None, "connector.py computes it in the scheduler"
        attachment = Attachment(self._settings, self._namespace, self.config.engine_id)
        return PegaShmManager(
            attachment,
            mode=self._settings.mode,
            chunk_bytes=self._layout.chunk_bytes,
            writers=self._layout.cells,
            events=self.kv_events_config.enable_kv_cache_events,
            checksums=self._checksums,
            spill_deadline_ms=self._settings.spill_deadline_ms,
            events_while_idle=self._settings.kv_events_while_idle,
        )

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        cell = 0 if self.replicated_layout else self.config.parallel.rank
        if current_platform.is_cpu():
            return PegaShmCpuWorker(
                kv_caches,
                layout=self._layout,
                cell=cell,
                arena=self._settings.arena,
                copy_threads=self._settings.copy_threads,
                checksums=self._checksums,
            )
        if current_platform.is_cuda_alike():
            from pegashm.connector.cuda import PegaShmCudaWorker, device_driver

            return PegaShmCudaWorker(
                kv_caches,
                layout=self._layout,
                cell=cell,
                arena=self._settings.arena,
                driver=device_driver(kv_caches),
                hash_threads=self._settings.copy_threads,
                checksums=self._checksums,
            )
        raise ConfigError(f"PegaShm has no worker for {current_platform.device_name} engines yet")


def _checksums(asked: Checksums | None, layout: ChunkLayout) -> Checksums:
    """What was asked for, or the default; ConfigError when that cannot be with so many writers."""
    checksums = CHECKSUMS_DEFAULT if asked is None else asked
    if checksums is not Checksums.OFF:
        Part(
            index=0, count=layout.cells, nbytes=layout.cell_bytes
        )  # raises when there are too many
    return checksums
