"""How does a queue pair live: made, connected to another, used, and ended so that nothing is written any more?

A reliable connection with a completion queue of its own, polled, never waited for. After `close` has returned the device touches no memory by
it: destroying a queue pair waits for what is under way. Both sides have one a rail; who calls holds that connection's lock.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Sequence
from typing import Any, Final

from pegashm.fabric.verbs_device import Device
from pegashm.fabric.verbs_names import (
    CQ,
    GID,
    QP,
    AHAttr,
    GlobalRoute,
    PyverbsError,
    QPAttr,
    QPCap,
    QPInitAttr,
    e,
)
from pegashm.fabric.verbs_wire import Address, End

__all__ = ["POLL_MOST", "Queue", "format_gid", "status_text"]

POLL_MOST: Final = 32
# 4.096 us << 14 = 67 ms for an answer, four times: a peer that is gone is known in about 0.3 s. (With 7 retries
# some devices never give up.)
_TIMEOUT: Final = 14
_RETRIES: Final = 3
_HOPS_MAX: Final = 64


class Queue:
    """One queue pair. `depth` work requests may be under way at once."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.depth = device.depth
        self._packet = secrets.randbits(24)
        self.cq = CQ(device.context, self.depth + 8)
        try:
            self.qp = QP(
                device.pd,
                QPInitAttr(
                    qp_type=e.IBV_QPT_RC,
                    scq=self.cq,
                    rcq=self.cq,
                    cap=QPCap(max_send_wr=self.depth, max_recv_wr=1, max_send_sge=1),
                ),
            )
        except PyverbsError:
            self.cq.close()
            raise
        self._open = True

    @property
    def end(self) -> End:
        return End(self.qp.qp_num, self._packet)

    def connect(self, there: Address, end: End, *, served: bool) -> None:
        """Ready to serve READs (`served`), or to send them. PyverbsError when the kernel finds no way there."""
        port = self.device.port
        here = self.device.address
        reads = min(here.reads, there.reads)
        attributes = QPAttr(port_num=port.number)
        # Windows and regions are checked against this as well: a queue pair for reading serves nothing.
        attributes.qp_access_flags = e.IBV_ACCESS_REMOTE_READ if served else 0
        attributes.path_mtu = min(here.mtu, there.mtu)
        attributes.dest_qp_num = end.number
        attributes.rq_psn = end.packet
        attributes.sq_psn = self._packet
        attributes.max_rd_atomic = reads
        attributes.max_dest_rd_atomic = reads
        attributes.min_rnr_timer = 12
        attributes.timeout = _TIMEOUT
        attributes.retry_cnt = _RETRIES
        attributes.rnr_retry = _RETRIES
        route = GlobalRoute(
            dgid=GID(format_gid(there.gid)), sgid_index=port.gid_index, hop_limit=_HOPS_MAX
        )
        attributes.ah_attr = AHAttr(is_global=1, port_num=port.number, dlid=there.lid, gr=route)
        self.qp.to_rts(attributes)

    def post(self, first: Any) -> None:
        """Hand over a chain of work requests."""
        self.qp.post_send(first)

    def poll(self) -> Sequence[Any]:
        count, completions = self.cq.poll(POLL_MOST)
        return completions if count else ()

    def fail(self) -> None:
        """Stop it: what is under way ends with an error in the completion queue, if it has not ended already."""
        if self._open:
            attributes = QPAttr(qp_state=e.IBV_QPS_ERR)
            with contextlib.suppress(PyverbsError):
                self.qp.modify(attributes, e.IBV_QP_STATE)

    def close(self) -> None:
        """When this has returned, nothing is read or written by it any more."""
        if self._open:
            self._open = False
            self.qp.close()
            self.cq.close()


def format_gid(gid: bytes) -> str:
    text = gid.hex()
    return ":".join(text[at : at + 4] for at in range(0, 32, 4))


def status_text(status: int) -> str:
    """What a completion's status says, as libibverbs names it."""
    for name in dir(e):
        if name.startswith("IBV_WC_") and name.endswith("_ERR") and getattr(e, name) == status:
            return name
    return f"status {status}"
