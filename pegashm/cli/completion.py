"""`pegashm completion bash|zsh|fish`: the lines that make a shell complete commands, options and arena names."""

import click

from pegashm.cli.common import CONTEXT, clear_errors

__all__ = ["completion"]


@click.command(context_settings=CONTEXT)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@clear_errors
def completion(shell: str) -> None:
    """Print what makes a shell complete `pegashm`: commands, options, and names of the arenas that are here.

    \b
    Examples:
      pegashm completion bash > /etc/bash_completion.d/pegashm            for all users
      pegashm completion bash >> ~/.bashrc
      pegashm completion zsh > "${fpath[1]}/_pegashm"
      pegashm completion fish > ~/.config/fish/completions/pegashm.fish

    It takes effect in the next shell.

    \b
    Exit status:
      0  printed
      2  not a shell that is known
    """
    from click.shell_completion import get_completion_class

    from pegashm.cli import main

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(main, {}, "pegashm", "_PEGASHM_COMPLETE").source())
