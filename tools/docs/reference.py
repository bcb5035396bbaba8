"""How does docs/configuration.md come about? Every option, variable, TOML key and connector setting, as the code has them.

Nothing is typed twice: options come from click's commands, connector settings from `connector/settings.py`.

    python -m tools.docs.reference            write the page
    python -m tools.docs.reference --check    write nothing; exit 1 when the page is not what it would be
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import click

from pegashm.cli import COMMANDS, main
from pegashm.connector.settings import ENVIRONMENT, OURS, VLLM, Key

__all__ = ["PAGE", "page", "variables"]

PAGE: Final = Path(__file__).parents[2] / "docs" / "configuration.md"
# What most commands have, told once.
SHARED: Final = frozenset({"name", "config", "as_json", "help"})
_DEFAULT: Final = re.compile(r"\s*Default: (.+?)\.?$")

HEAD: Final = """\
<!-- Made by `python -m tools.docs.reference` from the code. Edit the code. -->

# Configuration

Every option, environment variable, TOML key and connector setting, with its default. This page is made from the code, and a test
fails when it is stale. What each command is for: [commands](commands.md).

A value is taken from the command line, else from the environment variable, else from the TOML file that `--config` (or
`PEGASHM_CONFIG`) names, else it is the default. Sizes are `64G`, `512M`, `1.5T` (powers of 1024) or a number of bytes. Flags are `1` or `0` as
variables, `true` or `false` in TOML. What can be given several times is a list in TOML, and has spaces between its parts as a variable.

## The same arena, said three ways

```sh
pegashm serve --name kv0 --size 64G \\
    --spill /ssd0/kv0.spill --spill /ssd1/kv0.spill --spill-size 1T
```

```sh
PEGASHM_NAME=kv0 PEGASHM_SIZE=64G \\
    PEGASHM_SPILL="/ssd0/kv0.spill /ssd1/kv0.spill" PEGASHM_SPILL_SIZE=1T pegashm serve
```

```toml
# pegashm serve --config /etc/pegashm/kv0.toml
name = "kv0"
size = "64G"
spill = ["/ssd0/kv0.spill", "/ssd1/kv0.spill"]
spill-size = "1T"
```

Other commands take from the same file what they know (`name`, mostly).
"""

CONNECTOR: Final = """\
## The connector, in vLLM

`kv_connector_extra_config` in `--kv-transfer-config`. An unknown key is an error that names the nearest known one.

```sh
PEGASHM_ARENA=kv0 vllm serve MODEL --kv-transfer-config '{
    "kv_connector": "PegaShmConnector", "kv_role": "kv_both",
    "kv_connector_module_path": "pegashm.connector",
    "kv_connector_extra_config": {"checksums": "on", "reserved_bytes": "16G"}}'
```
"""

REQUEST: Final = """\
### A request

`kv_transfer_params` of a request: `{"pegashm": {"load": false}}` looks nothing up for it, `{"pegashm": {"store": false}}` stores nothing of it.
"""


def page() -> str:
    """All of docs/configuration.md."""
    parts = [HEAD]
    for words, command in _commands():
        rows = list(_rows(command, all_of_them=words == ("serve",)))
        if rows or words == ("serve",):
            parts.append(_section(words, command, rows))
    parts.append(CONNECTOR)
    parts.append(_keys("key", OURS))
    parts.append("Of vLLM's offloading framework, passed on:\n\n" + _keys("key", VLLM))
    parts.append(REQUEST)
    parts.append("### Variables of an engine\n\n" + _keys("variable", ENVIRONMENT))
    return "\n".join(parts)


def variables() -> frozenset[str]:
    """All environment variables that the page tells of."""
    return frozenset(re.findall(r"PEGASHM_[A-Z_]+", page()))


def _commands() -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command and subcommand that has options of its own."""
    context = click.Context(main)
    for name in COMMANDS:
        if name == "dump":  # passes its words on
            from pegashm.tools.dump import main as dump

            yield ("dump",), dump
            continue
        command = main.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            for sub, each in command.commands.items():
                yield (name, sub), each
        else:
            yield (name,), command


def _section(words: tuple[str, ...], command: click.Command, rows: list[str]) -> str:
    arguments = [_value(each) for each in command.params if isinstance(each, click.Argument)]
    usage = " ".join(("pegashm", *words, *arguments))
    head = "| option, variable | default | |\n|---|---|---|\n"
    first = (command.help or "").strip().split("\n\n", maxsplit=1)[0]
    return f"## `{usage}`\n\n{' '.join(first.split())}\n\n{head}" + "\n".join(rows) + "\n"


def _rows(command: click.Command, *, all_of_them: bool) -> Iterator[str]:
    for option in command.params:
        if isinstance(option, click.Option) and (all_of_them or option.name not in SHARED):
            help_text, default = _help_and_default(option)
            names = " / ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
            value = "" if option.is_flag else f" `{_value(option)}`"
            repeated = " *(several)*" if option.multiple else ""
            yield f"| {names}{value}{repeated}{_variables(option)} | {default} | {help_text} |"


def _value(option: click.Parameter) -> str:
    """What stands for the value; by ourselves, since click's own words differ between its versions."""
    if option.metavar:
        text = option.metavar
    elif isinstance(option.type, click.Choice):
        text = "|".join(option.type.choices)
    elif isinstance(option, click.Argument):
        text = (option.name or "").upper()
    else:
        text = {"integer": "N", "float": "NUMBER"}.get(
            option.type.name.removesuffix(" range"), "TEXT"
        )
    return text.replace("|", "\\|")


def _help_and_default(option: click.Option) -> tuple[str, str]:
    """Its help without the default, and the default, as its help or else click knows it."""
    text = " ".join((option.help or "").split()).replace("|", "\\|")
    if found := _DEFAULT.search(text):
        return text[: found.start()], found[1]
    default = option.default
    if option.required:
        return text, "**required**"
    if isinstance(default, bool):
        on, off = option.opts[0], (option.secondary_opts or ["off"])[0]
        return text, f"`{on if default else off}`" if option.secondary_opts else (
            "on" if default else "off"
        )
    if isinstance(default, str | int | float) and not isinstance(default, bool):
        return text, f"`{default}`"
    return text, ""


def _variables(option: click.Option) -> str:
    names = [option.envvar] if isinstance(option.envvar, str) else list(option.envvar or ())
    return "".join(f"<br>`{name}`" for name in names)


def _keys(what: str, keys: Mapping[str, Key]) -> str:
    lines = [f"| {what} | default | |", "|---|---|---|"]
    for name, key in keys.items():
        meaning = key.meaning.replace("|", "\\|")
        lines.append(f"| `{name}` | {key.default} | {meaning} |")
    return "\n".join(lines) + "\n"


def _run(words: list[str]) -> int:
    text = page()
    if words == ["--check"]:
        stale = not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text
        if stale:
            print(f"{PAGE.name} is stale. Type: python -m tools.docs.reference", file=sys.stderr)
        return int(stale)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(_run(sys.argv[1:]))
