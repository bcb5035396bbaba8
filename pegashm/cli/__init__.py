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
    Examples: is this machine fit, is the arena well, what goes on, why was that a miss?
      pegashm doctor --size 64G
      pegashm status --name kv0
      pegashm top --name kv0
      pegashm explain --name kv0 --recent

    \b
    Give its memory back, under running engines:
      pegashm drain --name kv0 && pegashm purge --name kv0 --yes --force

    Each command has a --help with examples; those that report have --json. Completion for your shell: `pegashm completion bash|zsh|fish`.

    \b
    Exit status:
      0  done, or all is well
      1  failed, or a finding
      2  wrong usage or configuration, or nothing could be read
    What each command means by them stands in its --help.
    """
