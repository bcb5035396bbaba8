"""Does every command teach its own use: examples that work, exit statuses, JSON that parses, completion?"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pegashm.cli import COMMANDS, main

from tests.arenas import Shape

PROGRAM = Path(sys.executable).with_name("pegashm")


def _all(
    command: click.Command, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command and subcommand, with the words that call it."""
    yield words, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from _all(found, (*words, name))


EVERY = dict(_all(main))


def _help(words: tuple[str, ...]) -> str:
    result = CliRunner().invoke(main, [*words, "--help"])
    assert 0 == result.exit_code, result.output
    return result.output


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_help_has_examples_and_exit_statuses(words: tuple[str, ...]) -> None:
    text = _help(words)
    assert re.search(r"Examples?\b", text), "no examples"
    assert "Exit status" in text, "no exit status"
    assert f"pegashm {' '.join(words)}".strip() in text


def _examples(text: str) -> Iterator[list[str]]:
    """Calls of pegashm in a help text, as words. What stands three blanks behind a call is a remark; prose is not indented so far."""
    for line in text.splitlines():
        for call in re.split(r"&&|;|\|", line if line.startswith("    ") else ""):
            match = re.search(r"\bpegashm ([a-z]+\b.*)", re.split(r"(?<=\S)\s{3,}", call)[0])
            try:
                if match:
                    yield shlex.split(match[1])
            except ValueError:  # a quote that ends on the next line
                continue


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_examples_name_commands_and_options_that_exist(words: tuple[str, ...]) -> None:
    for example in _examples(_help(words)):
        if (
            example[0] not in COMMANDS or example[0] == "dump"
        ):  # prose; dump is another program's command line
            continue
        command, rest = EVERY[example[0],], example[1:]
        if isinstance(command, click.Group) and rest and (example[0], rest[0]) in EVERY:
            command, rest = EVERY[example[0], rest[0]], rest[1:]
        known = {
            option
            for parameter in command.params
            for option in (*parameter.opts, *parameter.secondary_opts)
        }
        used = {
            word.partition("=")[0] for word in rest if re.fullmatch(r"--[a-z][a-z-]*(=.*)?", word)
        }
        assert used <= known | {"--help"}, f"{example}: no {used - known}"


@pytest.mark.parametrize(
    "words",
    [
        ("status",), ("clients",), ("namespaces",), ("quota",), ("drop", "--all"), ("drain", "--keep"), ("drain", "--undo"),
        ("explain", "--recent"), ("explain", "--key", "00ff"), ("top", "--interval", "0.1"), ("fsck",), ("dump",), ("doctor",),
    ],
    ids=" ".join,
)  # fmt: skip
@pytest.mark.parametrize("there", [True, False], ids=["arena", "no arena"])
def test_json_parses_and_statuses_agree(
    arena_name: Callable[..., str], words: tuple[str, ...], there: bool
) -> None:
    """One object on standard output, whatever comes of it; and without an arena, why."""
    name = arena_name(Shape(reuse_registers=64)) if there else "test-none"
    result = CliRunner().invoke(main, [*words, "--name", name, "--json"])
    report = json.loads(result.stdout)
    assert isinstance(report, dict)
    assert report.get("exit_status", result.exit_code) == result.exit_code
    if not there:
        assert 2 == result.exit_code
        assert "test-none" in result.stdout


def test_every_command_that_reports_has_json() -> None:
    without = {
        " ".join(words)
        for words, command in EVERY.items()
        if not isinstance(command, click.Group)
        and "--json" not in {opt for p in command.params for opt in p.opts}
    }
    assert {"serve", "dump", "exporter", "purge", "completion", "keys new"} >= without, without


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_that_the_shell_takes(shell: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["completion", shell])
    assert 0 == result.exit_code
    assert "_PEGASHM_COMPLETE" in result.output
    script = tmp_path / "completion"
    script.write_text(result.output)
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    checked = subprocess.run(
        [shell, "-n", str(script)], capture_output=True, text=True, check=False
    )
    assert 0 == checked.returncode, checked.stderr


def test_completion_knows_commands_options_and_arenas(arena_name: Callable[..., str]) -> None:
    if not PROGRAM.exists():
        pytest.skip("pegashm is not installed as a command here")
    name = arena_name()

    def completed(line: str) -> list[str]:
        words = line.split(" ")
        environment = {
            **os.environ,
            "_PEGASHM_COMPLETE": "bash_complete",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
        }
        done = subprocess.run(
            [PROGRAM], env=environment, capture_output=True, text=True, check=False
        )
        return [row.partition(",")[2] for row in done.stdout.splitlines()]

    assert {"doctor", "drop", "drain", "dump"} == set(completed("pegashm d"))
    assert ["--request-file"] == completed("pegashm explain --req")
    assert [name] == completed(f"pegashm top --name {name[:-2]}")


def test_completion_of_an_unknown_shell() -> None:
    result = CliRunner().invoke(main, ["completion", "tcsh"])
    assert (2, True) == (result.exit_code, "bash" in result.output)
