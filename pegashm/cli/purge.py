"""`pegashm purge`: the one way in which an arena goes away."""

import click

from pegashm.cli.common import CONTEXT, clear_errors, config_option, name_option
from pegashm.errors import ConfigError

__all__ = ["purge"]


@click.command(context_settings=CONTEXT)
@config_option
@name_option
@click.option("--yes", is_flag=True, help="Really do it.")
@click.option(
    "--force",
    is_flag=True,
    help="Even under a living supervisor (which then ends) or clients (which keep what they mapped).",
)
@clear_errors
def purge(name: str, yes: bool, force: bool) -> None:
    """Remove an arena and everything cached in it. Nothing else ever does.

    \b
    Example:
      pegashm purge --name kv0 --yes
    """
    if not yes:
        raise ConfigError(f'add --yes to remove arena "{name}" and everything cached in it')
    from pegashm.creation import purge as purge_arena

    removed = purge_arena(name, force=force)
    if not removed:
        click.echo(f'there is no arena "{name}": nothing to remove', err=True)
    for path in removed:
        click.echo(f"removed {path}")
