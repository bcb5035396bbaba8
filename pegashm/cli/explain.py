"""`pegashm explain`: why did this key, this request, or what was asked for lately, miss?"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from pegashm.cli.common import CONTEXT, any_name_option, cannot_tell, config_option, json_option
from pegashm.errors import ConfigError

if TYPE_CHECKING:
    from pegashm.admin.explain import Explained
    from pegashm.arena import Arena

__all__ = ["explain"]


@click.command(context_settings=CONTEXT)
@config_option
@any_name_option
@click.option(
    "--key", metavar="HEX", help="This key: the engine's block hash, with its KV group or without."
)
@click.option(
    "--request-file",
    metavar="FILE",
    help="The keys of a request in their order, one a line in hex, or as a JSON list; - is standard input.",
)
@click.option(
    "--recent",
    is_flag=True,
    help="What was stored lately, which is what had missed: by what had become of it before.",
)
@click.option(
    "--namespace", "said", metavar="NS", help="Of the engine that missed: id, fingerprint or label."
)
@click.option("--group", type=click.IntRange(0, 65535), help="Only this KV group.")
@json_option
@cannot_tell
def explain(
    name: str,
    key: str | None,
    request_file: str | None,
    recent: bool,
    said: str | None,
    group: int | None,
    as_json: bool,
) -> None:
    """Say why a key missed: where it is, what became of it, and when, as far as can be known.

    \b
    Examples:
      pegashm explain --name kv0 --key 5be1...c7
      pegashm explain --name kv0 --key 5be1...c7 --namespace llama-3-8b     as an engine of that namespace
      pegashm explain --name kv0 --request-file keys.txt                    where does the prefix end?
      pegashm explain --name kv0 --recent                                   why was so much computed?

    Keys are what KV events and `pegashm dump --blocks --json` show. The answer is one of: it is there (now); damaged; claimed by an engine and not yet
    published; on SSD; at another host; in another namespace, and in which facts that differs (weights, dtype, vLLM version, ...); evicted,
    between which times; never seen.

    What it cannot know: lookups are not recorded, so this is where the key is now, not what a lookup met. The journal is a ring (its reach is
    printed), a process killed at the wrong moment leaves no event, and times are those of the events around it. Facts are compared by
    16-bit digests. --recent sees what was computed and stored; what missed and was not stored leaves no trace.

    \b
    Exit status:
      0  the key is there, or all keys of the request are (memory, SSD or another host); --recent: always
      1  it is not, and why is said
      2  no such arena, not a key, wrong usage
    """
    if (key is not None) + (request_file is not None) + recent != 1:
        raise ConfigError("give one of --key HEX, --request-file FILE and --recent")
    with _opened(name) as arena:
        from pegashm.admin.selecting import namespace_of

        namespace_id = None if said is None else int(namespace_of(arena.region, said)["id"])
        if recent:
            _recent(arena, namespace_id, as_json=as_json)
            return
        keys = [key] if key is not None else _keys_of(request_file or "")
        sys.exit(_explain(arena, namespace_id, keys, group, chain=key is None, as_json=as_json))


def _opened(name: str) -> Arena:
    """For writing where that is allowed: only then hints of other hosts can be looked at. Nothing is written."""
    from pegashm.arena import open_arena
    from pegashm.errors import ResourceError

    try:
        return open_arena(name, map_payload=False)
    except ResourceError:
        return open_arena(name, writable=False, map_payload=False)


def _keys_of(path: str) -> list[str]:
    try:
        text = sys.stdin.read() if path == "-" else open(path, encoding="utf-8").read()  # noqa: SIM115
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"{path} begins as a JSON list and is none: {error}") from error
    else:
        rows = [
            line for line in (line.partition("#")[0].strip() for line in text.splitlines()) if line
        ]
    if not rows or not all(isinstance(row, str) for row in rows):
        raise ConfigError(
            f"{path} has no keys: expected one a line in hex, or a JSON list of such strings"
        )
    return list(rows)


def _explain(
    arena: Arena,
    namespace_id: int | None,
    keys: list[str],
    group: int | None,
    *,
    chain: bool,
    as_json: bool,
) -> int:
    from pegashm.admin.explain import Explainer
    from pegashm.admin.selecting import key_of

    with Explainer(arena, namespace_id) as explainer:
        told = [explainer.explain(*key_of(text, group)) for text in keys]
        journal = explainer.journal
    first_miss = next((place for place, each in enumerate(told) if not each.available), None)
    exit_status = 0 if first_miss is None else 1
    if as_json:
        document: dict[str, Any] = {
            "name": arena.name,
            "keys": [each.as_dict() for each in told],
            "first_miss": first_miss,
            "journal": {
                "first_event": journal.first,
                "last_event": journal.head,
                "since_ns": journal.since_ns,
            },
            "exit_status": exit_status,
        }
        click.echo(json.dumps(document))
        return exit_status
    if not chain:
        click.echo("\n".join(_key_lines(told[0])))
        click.echo(_reach(journal))
        return exit_status
    click.echo("\n".join([*_chain_lines(told, first_miss), _reach(journal)]))
    return exit_status


def _key_lines(told: Explained) -> list[str]:
    from pegashm.admin.explain import clock_text
    from pegashm.tools.plain import shown

    lines = [f"key {told.key}: {told.reason.replace('_', ' ')}", f"  {shown(told.says)}"]
    for place in told.places:
        since = f", since {clock_text(place['since_ns'])}" if place.get("since_ns") else ""
        extra = ""
        if place.get("pinned_by"):
            extra = ", pinned by " + ", ".join(
                shown(client["label"]) for client in place["pinned_by"]
            )
        lines.append(
            f"  {place['where']}: {place['state']}, namespace {shown(place['namespace'])} ({place['namespace_id']:#x}), group {place['group']}"
            f"{since}{extra}"
        )
    for event in told.events[-8:]:
        when = clock_text(event.after_ns) if event.after_ns else "?"
        upto = clock_text(event.before_ns) if event.before_ns else "now"
        times = when if when == upto else f"{when} to {upto}"
        lines.append(
            f"  event {event.sequence}: {event.kind}, namespace {event.namespace_id:#x}, group {event.group}, {times}"
        )
    return lines


def _chain_lines(told: list[Explained], first_miss: int | None) -> list[str]:
    from pegashm.tools.plain import shown

    if first_miss is None:
        return [f"all {len(told)} blocks are there: a hit from beginning to end"]
    lines = [f"the first {first_miss} of {len(told)} blocks are there; block {first_miss} is not:"]
    lines += [f"  {line}" for line in _key_lines(told[first_miss])]
    behind = told[first_miss + 1 :]
    there = sum(1 for each in behind if each.available)
    if there:
        lines.append(
            f"  of the {len(behind)} behind it {there} are there and useless: an engine stops at the first that is not"
        )
    reasons: dict[str, int] = {}
    for each in behind:
        if not each.available:
            reasons[each.reason] = reasons.get(each.reason, 0) + 1
    if reasons:
        lines.append(
            "  others that are not: "
            + ", ".join(
                f"{count} {shown(reason).replace('_', ' ')}" for reason, count in reasons.items()
            )
        )
    return lines


def _reach(journal: Any) -> str:
    from pegashm.admin.explain import clock_text

    since = f", from about {clock_text(journal.since_ns)}" if journal.since_ns else ""
    if not journal.events:
        return "the journal has no events"
    return f"the journal reaches from event {journal.first} to {journal.head}{since}"


def _recent(arena: Arena, namespace_id: int | None, *, as_json: bool) -> None:
    from pegashm.admin.recent import recent as read_recent
    from pegashm.tools.plain import shown

    seen = read_recent(arena, namespace_id)
    if as_json:
        click.echo(json.dumps({"name": arena.name, **seen.as_dict(), "exit_status": 0}))
        return
    total = max(seen.publishes, 1)
    lines = [
        f"{seen.publishes} blocks were computed and stored, {seen.evictions} evicted, in the journal's reach. Of those stored:",
        f"  {seen.reasons['evicted']:>8} ({seen.reasons['evicted'] / total:5.1%})  had been here and were evicted: more memory, SSD (--spill) or a reserve would have kept them",
        f"  {seen.reasons['other_namespace']:>8} ({seen.reasons['other_namespace'] / total:5.1%})  are there in another namespace: engines that could share do not",
        f"  {seen.reasons['new']:>8} ({seen.reasons['new'] / total:5.1%})  are new, or older than the journal",
    ]
    for pair in seen.pairs:
        facts = ", ".join(pair["differing_facts"]) or "what is not told"
        lines.append(
            f"  {pair['blocks']} in {shown(pair['stored_in_label'])!r} ({pair['stored_in']:#x}) that {shown(pair['was_in_label'])!r} ({pair['was_in']:#x}) has: "
            f"the two differ in {facts}"
        )
    counted = seen.counters
    lines += [
        (
            f"since the arena was made: {counted.get('lookups', 0)} lookups, {counted.get('misses', 0)} not in memory, of which "
            f"{counted.get('misses_spilled', 0)} were on SSD, {counted.get('misses_remote', 0)} at other hosts, {counted.get('misses_pending', 0)} being stored"
        ),
        (
            f"not stored: {counted.get('claims_no_space', 0)} for want of room (all pinned), {counted.get('claims_quota', 0)} by quota, "
            f"{counted.get('claims_draining', 0)} while drained; damaged: {counted.get('payloads_damaged', 0)}"
        ),
        _reach(seen.journal),
    ]
    click.echo("\n".join(lines))
