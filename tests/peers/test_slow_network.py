"""Do fetches go on over a network that is slow, loses packets, or changes their order?

With `tc netem`, where the kernel has it: `make test-rdma` runs this in its machine, whose kernel does.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pegashm.transport.messages import Answer

from tests.peers.hosts import Network, delays_work, why_not
from tests.peers.rig import BYTES, Host
from tests.transport.rig import eventually

pytestmark = [
    pytest.mark.skipif(bool(why_not()), reason=str(why_not())),
    pytest.mark.timeout(900),
]


@pytest.mark.parametrize(
    "rule", [("delay", "20ms", "5ms"), ("loss", "3%"), ("delay", "5ms", "reorder", "25%", "50%")]
)
def test_slow_and_lossy(
    three: Callable[[], list[Host]], network: Network, rule: tuple[str, ...]
) -> None:
    if not delays_work(network):
        pytest.skip("this kernel has no netem")
    a, b, _ = three()
    network.shape(0, *rule)
    keys = a.store(range(1, 101), BYTES)
    eventually(lambda: b.sees(keys) == 100)
    eventually(lambda: set(b.fetch(keys)) == {Answer.OK}, 60.0)
    assert 100 == b.judge(keys)
