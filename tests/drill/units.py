"""What would systemd start? A unit's command line and environment, read from the file that is shipped.

Only what the units in deploy/ use: `Environment=` and `EnvironmentFile=` in their order, `%i`, `${NAME}` and `ExecStart=` without shell.
The first folder of the unit's PATH, /opt/pegashm/bin, stands for where PegaShm was installed, and is replaced by
where the drill installed it.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

__all__ = ["command_of"]

DEPLOY = Path(__file__).parents[2] / "deploy"
INSTALLED = "/opt/pegashm/bin"


def command_of(
    unit: str, instance: str, bin_folder: Path, environment_file: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    """ExecStart as a list, and the environment it is started with."""
    environment = {"HOME": os.environ.get("HOME", "/root"), "LANG": "C.UTF-8"}
    command = ""
    for line in (DEPLOY / unit).read_text().splitlines():
        key, _, value = line.partition("=")
        value = value.replace("%i", instance)
        if key == "Environment":
            environment |= dict(word.split("=", 1) for word in shlex.split(value))
        elif key == "EnvironmentFile":
            environment |= environment_file
        elif key == "ExecStart":
            command = value
    assert INSTALLED in environment["PATH"], f"{unit} no longer looks in {INSTALLED}"
    environment["PATH"] = environment["PATH"].replace(INSTALLED, str(bin_folder))
    filled = re.sub(r"\$\{(\w+)\}", lambda name: environment[name[1]], command)
    return shlex.split(filled), environment
