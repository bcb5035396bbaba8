"""`pegashm keys new|show`: the keys by which hosts know each other."""

import json

import click

from pegashm.cli.common import CONTEXT, clear_errors, json_option

__all__ = ["keys"]


@click.group(context_settings=CONTEXT)
def keys() -> None:
    """Make and show the keys by which hosts know each other.

    \b
    Examples, on each host:
      pegashm keys new /etc/pegashm/keys      make them, once; prints the public key
      pegashm keys show /etc/pegashm/keys     print it again, and who is allowed
    and list the public keys of the others in /etc/pegashm/keys/allowed, one a line.

    \b
    Exit status:
      0  made, or shown
      1  it cannot be made, or read
      2  wrong usage
    """


@keys.command(name="new", context_settings=CONTEXT)
@click.argument("folder", metavar="DIR")
@clear_errors
def keys_new(folder: str) -> None:
    """Make this host's keys in DIR; never overwrites any.

    \b
    Example:
      pegashm keys new /etc/pegashm/keys

    \b
    Exit status:
      0  made; the public key is printed
      1  there are keys already, or the folder cannot be made
      2  wrong usage
    """
    from pegashm.peers.keys import make_keys

    click.echo(make_keys(folder).public.decode())


@keys.command(name="show", context_settings=CONTEXT)
@click.argument("folder", metavar="DIR")
@json_option
@clear_errors
def keys_show(folder: str, as_json: bool) -> None:
    """Print this host's public key and the hosts it allows. The secret is never printed.

    \b
    Examples:
      pegashm keys show /etc/pegashm/keys
      pegashm keys show /etc/pegashm/keys --json | jq -r .public

    \b
    Exit status:
      0  shown
      1  there are no keys, or they cannot be read
      2  wrong usage
    """
    from pegashm.peers.keys import Keys

    found = Keys.load(folder)
    public = found.pair.public.decode()
    allowed = [(entry.public.decode(), entry.hosts) for entry in found.allowed.entries]
    if as_json:
        click.echo(json.dumps({"public": public, "allowed": dict(allowed)}))
        return
    click.echo(public)
    for key, hosts in allowed:
        click.echo(f"allowed: {key} {' '.join(hosts)}".rstrip())
    if not allowed:
        click.echo(f"nobody is allowed: list public keys in {found.allowed.path}", err=True)
