"""The `pegashm` command: which commands there are.

One file a command, imported when it is asked for, so that `pegashm status` in a probe does not pay for the others.
What a command does is elsewhere in the package; its file turns text into calls, and answers into lines or JSON.
"""

import importlib
from typing import Final

import click

from pegashm import __version__
from pegashm.cli.common import CONTEXT

__all__ = ["main"]

# By what one wants, which is also the order of --help.
COMMANDS: Final = (
    "serve",
    "plan",
    "doctor",
    "status",
    "top",
    "clients",
    "namespaces",
    "dump",
    "explain",
    "trace",
    "peers",
    "exporter",
    "quota",
    "drop",
    "drain",
    "fsck",
    "purge",
    "keys",
    "completion",
)


class _Commands(click.Group):
    """Knows the commands by name; each is the object of that name in the module of that name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(
            importlib.import_module(f"pegashm.cli.{cmd_name}"), cmd_name
        )
        return command


@click.group(cls=_Commands, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="pegashm")
def main() -> None:
    """PegaShm: a KV cache for LLM engines in shared memory that outlives them all.

    \b
    Start an arena of 64 GiB, and let an engine on this host use it:
      pegashm serve --name kv0 --size 64G
      PEGASHM_ARENA=kv0 vllm serve MODEL --kv-transfer-config \\
        '{"kv_connector": "PegaShmConnector", "kv_role": "kv_both",
          "kv_connector_module_path": "pegashm.connector"}'

    \b
    Look at it, and give its memory back:
      pegashm status --name kv0
      pegashm dump --name kv0
      pegashm fsck --name kv0
      pegashm purge --name kv0 --yes

    Exit status: 0 done, 1 failed, 2 wrong usage or configuration (`status`: see there).
    """
