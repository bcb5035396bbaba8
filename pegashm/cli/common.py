"""What all commands of `pegashm` share: how errors read, the options that most have, the config file.

An exception becomes one line on standard error and an exit status: 2 for wrong usage or configuration, 1 for
everything else that was expected to go wrong. Each option is looked for on the command line, then in its PEGASHM_* variable,
then in the TOML file of --config, then there is a default. Decides nothing about any command.
"""

import functools
import json
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from pegashm.config import read_file
from pegashm.errors import ConfigError, PegaShmError
from pegashm.logs import FORMATS, LEVELS

__all__ = [
    "CONTEXT",
    "UsageFailure",
    "any_name_option",
    "cannot_tell",
    "clear_errors",
    "config_option",
    "json_option",
    "log_options",
    "name_option",
    "parsed",
]

CONTEXT: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

_Function = TypeVar("_Function", bound=Callable[..., Any])


def clear_errors(function: _Function) -> _Function:
    """One line on standard error and the right exit status instead of a traceback."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except ConfigError as error:
            raise UsageFailure(str(error)) from error
        except (PegaShmError, OSError) as error:
            raise click.ClickException(str(error)) from error

    return wrapper  # type: ignore[return-value]


def cannot_tell(function: _Function) -> _Function:
    """For commands that say by exit status 2 that nothing could be read: one line, or with --json an object with `error`."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (PegaShmError, OSError) as error:
            if kwargs.get("as_json"):
                told = {"name": kwargs.get("name"), "error": str(error), "exit_status": 2}
                click.echo(json.dumps(told))
                raise SystemExit(2) from error
            raise UsageFailure(str(error)) from error

    return wrapper  # type: ignore[return-value]


class UsageFailure(click.ClickException):
    exit_code = 2


def parsed(parse: Callable[[str], Any]) -> Callable[[Any], Any]:
    """An option type out of a function that raises ConfigError (which click would not print)."""

    def convert(value: Any) -> Any:
        try:
            return parse(str(value))
        except ConfigError as error:
            raise click.BadParameter(str(error)) from error

    return convert


def _load_file(ctx: click.Context, _: click.Parameter, path: str | None) -> str | None:
    """Read the config file before other options are looked at, as their defaults."""
    if path is not None:
        from pegashm.cli.serve import serve

        known = {p.name for p in serve.params if p.name not in (None, "config")}
        try:
            options = read_file(path, {name for name in known if name is not None})
        except ConfigError as error:
            raise UsageFailure(str(error)) from error
        own = {parameter.name for parameter in ctx.command.params}
        ctx.default_map = {key: value for key, value in options.items() if key in own}
    return path


def _complete_names(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Arenas that are here, for a shell that completes --name."""
    from pegashm.doctor.arenas import arena_names

    return [name for name in arena_names() if name.startswith(incomplete)]


config_option = click.option(
    "--config",
    envvar="PEGASHM_CONFIG",
    show_envvar=True,
    metavar="FILE",
    is_eager=True,
    callback=_load_file,
    expose_value=False,
    help='TOML file with options of `serve` by their long names, such as  size = "64G".',
)
name_option = click.option(
    "--name",
    envvar="PEGASHM_NAME",
    show_envvar=True,
    required=True,
    metavar="NAME",
    shell_complete=_complete_names,
    help="Name of the arena; engines set PEGASHM_ARENA to it.",
)
any_name_option = click.option(
    "--name",
    envvar=["PEGASHM_NAME", "PEGASHM_ARENA"],
    show_envvar=True,
    required=True,
    metavar="NAME",
    shell_complete=_complete_names,
    help="Name of the arena; an engine's own variable will do.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def log_options(function: _Function) -> _Function:
    """--log-format and --log-level, of every command that runs until it is stopped."""
    for option in (
        click.option(
            "--log-level",
            type=click.Choice(list(LEVELS)),
            default="info",
            show_default=True,
            envvar="PEGASHM_LOG_LEVEL",
            show_envvar=True,
            help="Log what is of this level or above.",
        ),
        click.option(
            "--log-format",
            type=click.Choice(list(FORMATS)),
            default="text",
            show_default=True,
            envvar="PEGASHM_LOG_FORMAT",
            show_envvar=True,
            help="One line an event on standard error, for people or as a JSON object: see docs/logs.md.",
        ),
    ):
        function = option(function)
    return function
