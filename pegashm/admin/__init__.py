"""What an operator does to a live arena by hand: look who is there, drop blocks, set quotas, drain it, ask why something was missed.

One file a question; none prints anything (`pegashm/cli` does). All act as any engine does, by the region's own rules and the kernel's locks,
so that they are safe beside engines that know nothing of it.
"""

__all__: list[str] = []
