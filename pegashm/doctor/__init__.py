"""Is this machine, and what is on it, fit for PegaShm? The checks of `pegashm doctor`.

`checks.py` says which there are and runs them; each is a small function that looks at one thing and returns findings
(`finding.py`): ok, warning or error, what was seen, and what to type. They read /proc, /sys and headers, try out files in folders that they
are given, and change nothing else. None imports vLLM or torch, so that `doctor` runs where an engine would not.
"""

__all__: list[str] = []
