"""How does a test run something that may crash or hang, and learn what happened?

In a child process, with faulthandler on: a signal or a hang becomes a failure that shows the child's own
stack and its last words, and the test run goes on. Called by the tests that damage shared memory. A test
run that is itself in a flavour of the native module (`flavours.py`) starts its children in the same.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests import flavours

__all__ = ["run_child"]

ROOT = Path(__file__).parents[1]


def run_child(module: str, *arguments: object, seconds: float = 90) -> Any:
    """Run `python -m module arguments`; the JSON of its last line. AssertionError if it did not end well."""
    flavour = flavours.inherited()
    command = (
        [sys.executable, "-X", "faulthandler", "-m", module, *map(str, arguments)]
        if flavour is None
        else flavours.command(flavour, module, *arguments)
    )
    child = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        out, err = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGABRT)  # faulthandler prints where it hangs
        out, err = child.communicate()
        raise AssertionError(f"hung: {' '.join(command)}\n{tail(out)}\n{tail(err)}") from None
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        raise AssertionError(f"died of {name}: {' '.join(command)}\n{tail(out)}\n{tail(err)}")
    assert 0 == child.returncode, f"{' '.join(command)}\n{tail(out)}\n{tail(err)}"
    return json.loads(out.splitlines()[-1])


def tail(text: str, lines: int = 40) -> str:
    return "\n".join(text.splitlines()[-lines:])
