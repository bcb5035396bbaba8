"""Does any test of the core make it do what no program may? The same tests once more, under sanitizers.

The native module is built with the address and undefined-behaviour sanitizers (`flavours.py`, "asan") and
pytest runs in a child with it: binding and core see what Python gives them, end to end. The children of
those tests run in the same flavour. A finding ends the child; its story is in the failure's message. The
planted mistakes show that this would happen. What runs without Python is in `tests/fuzz` and `tests/race`.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import flavours
from tests.figures import LONG, report
from tests.fuzz.programs import mutated

SHORT_SUITES = ("payload_sums", "model")
LONG_SUITES = ("core", "format", *SHORT_SUITES, "fsck", "tools", "connector", "test_liveness.py")
SUITES = LONG_SUITES if LONG else SHORT_SUITES
LIMIT_S = 1200 if LONG else 600
SOAK_MINUTES = 0.5

# A mistake planted in the core: header, what stands there, what is put there; then the calls that meet them.
MISTAKES = (
    (
        "client.hpp",
        """const uint64_t clock = advance_clock(size);
    for (uint32_t i = 0; i < size; ++i) {
      if (!known""",
        """const uint64_t clock = advance_clock(size);
    for (uint32_t i = 0; i <= size; ++i) {
      if (!known""",
    ),
    (
        "repair.hpp",
        "const uint64_t bit = uint64_t{1} << (record % 64);",
        "const uint64_t bit = uint64_t{1} << (record + 64);",
    ),
)

pytestmark = [
    pytest.mark.timeout(LIMIT_S + 300),
    pytest.mark.skipif(flavours.missing_tool() is not None, reason=f"{flavours.missing_tool()}"),
]


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    """A compiler may come without its sanitizers."""
    try:
        flavours.build("asan")
    except flavours.FlavourError as error:
        if "asan" in str(error) or "sanitize" in str(error):
            pytest.skip(f"no sanitizers here: {str(error)[-200:]}")
        raise


def in_child(
    folder: Path, module: str, *arguments: object, core: Path | None = None
) -> tuple[int, str, str]:
    """Exit status, output and what a sanitizer said of `python -m module arguments` in the asan flavour."""
    # The long form is ours alone: its suites are run elsewhere, and report their own figures there.
    environment = flavours.environment("asan", PEGASHM_LONG="0", PEGASHM_FIGURES="")
    for name in ("ASAN_OPTIONS", "UBSAN_OPTIONS"):  # pytest captures what goes to stderr
        environment[name] += f":log_path={folder}/said"
    child = subprocess.Popen(
        flavours.command("asan", module, *arguments, core=core),
        cwd=flavours.ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        out, _ = child.communicate(timeout=LIMIT_S)
    except BaseException:
        os.killpg(child.pid, signal.SIGKILL)  # it has children of its own
        child.communicate()
        raise
    said = "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("said.*")))
    return child.returncode, out, said


def test_the_tests_of_the_core(tmp_path: Path) -> None:
    """Not a byte out of bounds, not a shift too far, in whatever those tests do."""
    status, out, said = in_child(
        tmp_path,
        "pytest",
        *("-q", "-p", "no:cacheprovider", "--basetemp", tmp_path / "temporary"),
        *(f"tests/{suite}" for suite in SUITES),
    )
    assert not said, said[:12000]
    assert 0 == status, out[-8000:]
    passed = re.search(r"(\d+) passed", out)
    assert passed is not None, out[-2000:]
    report("asan", tests=int(passed[1]), suites=len(SUITES), findings=0)
    assert int(passed[1]) > 50  # not that all were skipped


@pytest.mark.skipif(not LONG, reason="long form only: half a minute (PEGASHM_LONG=1)")
def test_a_soak(seed: int, tmp_path: Path) -> None:
    """Processes are killed all the time, under sanitizers too."""
    status, out, said = in_child(tmp_path, "tests.soak", "--minutes", SOAK_MINUTES, "--seed", seed)
    assert not said, said[:12000]
    assert 0 == status, out[-8000:]


def test_a_read_that_is_forbidden_is_found(arena_name: Callable[..., str], tmp_path: Path) -> None:
    """The module that ran above is watched itself, not only the interpreter around it."""
    status, out, said = in_child(tmp_path, "tests.sanitized.misuse", "poisoned", arena_name())
    assert "nobody noticed" not in out
    assert "AddressSanitizer: use-after-poison" in said
    assert "_native" in said
    assert flavours.SANITIZER_EXIT == status


@pytest.mark.skipif(not LONG, reason="long form only: half a minute to compile (PEGASHM_LONG=1)")
def test_planted_mistakes_are_found(arena_name: Callable[..., str], tmp_path: Path) -> None:
    """One step beyond a batch of handles, and a shift by more than a word has bits."""
    core = tmp_path / "core"
    for header, before, after in MISTAKES:
        if core.exists():
            text = (core / header).read_text(encoding="utf-8")
            assert before in text, f"{header} no longer has {before!r}: plant the mistake anew"
            (core / header).write_text(text.replace(before, after), encoding="utf-8")
        else:
            mutated(core, header, before, after)
    for misuse, words in {"touch": "heap-buffer-overflow", "repair": "shift exponent"}.items():
        folder = tmp_path / misuse
        folder.mkdir()
        status, out, said = in_child(
            folder, "tests.sanitized.misuse", misuse, arena_name(), core=core
        )
        assert "nobody noticed" not in out
        assert words in said + out, said + out
        assert flavours.SANITIZER_EXIT == status
