"""Which pyverbs is here, and what does it call things? The only file that imports it.

Two are known: 44 (Debian 12, with its rdma-core) names its constants `pyverbs.enums`, 59 (Debian 13 and the package index)
`pyverbs.libibverbs_enums`. Importing this file fails with a ResourceError that says what to type. Called by the other
`verbs*` files, which are imported only by who wants this fabric.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from pegashm.errors import ResourceError

__all__ = [
    "CQ",
    "GID",
    "MR",
    "MW",
    "PD",
    "QP",
    "SGE",
    "AHAttr",
    "Context",
    "GlobalRoute",
    "MWBindInfo",
    "PyverbsError",
    "QPAttr",
    "QPCap",
    "QPInitAttr",
    "SendWR",
    "e",
]

_HOW: Final = (
    "Expected pyverbs, which must match the machine's rdma-core. On Debian and Ubuntu type `apt-get install python3-pyverbs` and let this Python see "
    "it: run PegaShm on the system's own python3, in a virtual environment made with --system-site-packages, or with "
    "the folder `pyverbs` of /usr/lib/python3/dist-packages linked into this one's site-packages (same Python version). See docs/rdma.md"
)

# pyverbs sets up the root logger when it is imported, if nobody has: that is for the program to do.
_root: Final = logging.getLogger()
_before: Final = (_root.level, list(_root.handlers))

try:
    from pyverbs.addr import GID, AHAttr, GlobalRoute
    from pyverbs.cq import CQ
    from pyverbs.device import Context
    from pyverbs.mr import MR, MW, MWBindInfo
    from pyverbs.pd import PD
    from pyverbs.pyverbs_error import PyverbsError
    from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
    from pyverbs.wr import SGE, SendWR
except ImportError as error:
    raise ResourceError(f"no RDMA: pyverbs cannot be imported ({error}). {_HOW}") from error
finally:
    _root.setLevel(_before[0])
    for _handler in [each for each in _root.handlers if each not in _before[1]]:
        _root.removeHandler(_handler)


def _constants() -> Any:
    try:
        from pyverbs import libibverbs_enums as names
    except ImportError:
        from pyverbs import enums as names
    if not hasattr(names, "IBV_QPT_RC"):  # some builds ship an empty file of the newer name
        from pyverbs import enums as names
    return names


e: Final[Any] = _constants()
