"""`pegashm dump`: the same as `pegashm-dump`."""

import click

__all__ = ["dump"]


@click.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def dump(arguments: tuple[str, ...]) -> None:
    """Print what is inside an arena: the same as `pegashm-dump`."""
    from pegashm.tools.dump import main as dump_main

    dump_main(list(arguments), prog_name="pegashm dump")
