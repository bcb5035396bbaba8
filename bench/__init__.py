"""Benches: one file a question, run as `python -m bench.NAME [--quick | --smoke]` from the repository's root.

What they measure is the installed package: `-m` puts the root first on the path, where a bare source tree
named pegashm lies, so the root moves to the end before any bench imports anything.
"""

import sys
from pathlib import Path

_root = Path(__file__).resolve().parent.parent
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != _root] + [str(_root)]
