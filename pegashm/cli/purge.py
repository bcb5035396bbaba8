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
    Examples:
      pegashm purge --name kv0 --yes
      pegashm drain --name kv0 && pegashm purge --name kv0 --yes --force      under engines, without cutting a store short

    Refused while a supervisor or an engine uses it. With --force they go on: engines keep the memory that they have mapped until they attach to the next arena,
    within seconds of its start; the supervisor ends. Blocks on SSD stay; remove the spill file to be rid of them.

    \b
    Exit status:
      0  removed, or there was nothing to remove
      1  in use (stop it, or --force), or not yours to remove
      2  wrong usage, or --yes is missing
    """
    if not yes:
        raise ConfigError(f'add --yes to remove arena "{name}" and everything cached in it')
    from pegashm.creation import purge as purge_arena

    removed = purge_arena(name, force=force)
    if not removed:
        click.echo(f'there is no arena "{name}": nothing to remove', err=True)
    for path in removed:
        click.echo(f"removed {path}")
