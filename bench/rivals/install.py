"""How does a rival get installed? `python -m bench.rivals.install [NAME ...]`: each into an environment of its own, from the package index.

All of them when none is named. Root gets missing Debian packages as well; anyone else is told the line to type. What is there already and
was made for the same requirements is left alone. A rival that cannot be installed is said so and left out: status 1 at the end.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence

from bench import harness
from bench.rivals.catalog import RIVALS, Rival

__all__ = ["install", "main"]


def install(rival: Rival) -> str:
    """Make its environment; "" or what went wrong."""
    wanted = "\n".join([*rival.requirements, "--no-deps", *rival.without_dependencies])
    stamp = rival.folder / "installed"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return ""
    shutil.rmtree(rival.folder, ignore_errors=True)
    venv.create(rival.folder, with_pip=True, symlinks=True)
    for options, names in (([], rival.requirements), (["--no-deps"], rival.without_dependencies)):
        if names:
            command = [rival.python, "-m", "pip", "install", "--disable-pip-version-check", "-q"]
            if said := _run([*command, *options, *names]):
                return said
    stamp.write_text(wanted, encoding="utf-8")
    return ""


def install_packages(rivals: Sequence[Rival]) -> str:
    """What Debian has to bring; "" or the line to type."""
    named = sorted({name for rival in rivals for name in rival.packages})
    status = ["dpkg-query", "--show", "--showformat=${Package} ${Status}\n", *named]
    if not named or shutil.which("apt-get") is None or shutil.which("dpkg-query") is None:
        return f"not Debian: install what corresponds to {' '.join(named)}" if named else ""
    said = subprocess.run(status, capture_output=True, text=True, check=False).stdout
    there = {line.split()[0] for line in said.splitlines() if line.endswith(" installed")}
    missing = [name for name in named if name not in there]
    if not missing:
        return ""
    line = f"apt-get update && apt-get install -y --no-install-recommends {' '.join(missing)}"
    if os.geteuid() != 0:
        return f"type: sudo sh -c '{line}'"
    harness.progress(f"system packages: {' '.join(missing)}")
    # A server that a package starts would measure along: ours are started by the bench.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    return _run(["sh", "-c", line], environment)


def _run(command: Sequence[str], environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=environment,
    )
    return "" if done.returncode == 0 else " | ".join(done.stdout.splitlines()[-4:])


def main(arguments: Sequence[str]) -> int:
    known = {rival.key: rival for rival in RIVALS if not rival.installed_as}
    unknown = set(arguments) - set(known)
    if unknown:
        raise SystemExit(
            f"no such rival: {', '.join(sorted(unknown))}; there are {', '.join(known)}"
        )
    chosen = [known[name] for name in arguments] or list(known.values())
    failed = install_packages(chosen)
    if failed:
        harness.progress(f"system packages are missing: {failed}")
    for rival in chosen:
        harness.progress(f"{rival.key}: {rival.folder.relative_to(rival.folder.parents[2])}")
        if said := install(rival):
            failed = said
            harness.progress(f"{rival.key} could not be installed: {said}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
