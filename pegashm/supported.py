"""Which engines was this build tested with? Read by the connector, which refuses others, and by `pegashm doctor`."""

from typing import Final

__all__ = ["VLLM"]

# The offloading framework is internal to vLLM and changes between minor versions.
VLLM: Final = "0.32"
