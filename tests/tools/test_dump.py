"""Does pegashm-dump tell the truth about a live, an abandoned and a damaged arena, with the right exit?

Runs the real command in a process of its own and reads what a person or a script would read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from pegashm import _native, fsck, liveness
from pegashm.arena import open_arena
from pegashm.cache import Cache, Copyist
from pegashm.names import SHM_DIRECTORY, control_path, payload_path
from pegashm.spill.file import SpillFile
from pegashm.tools.dump import main

from tests.arenas import Shape
from tests.format.spec import Stranger, fields_of
from tests.tools.scenes import CLAIMED_KEY, FENCE, KEYS, PAYLOAD_BYTES, client_process, fill

MakeArena = Callable[..., str]
OK, FINDING, CANNOT_TELL = 0, 1, 2


def dump(name: str, *options: str, expect: int) -> str:
    """What pegashm-dump prints."""
    done = subprocess.run(
        [sys.executable, "-m", "pegashm.tools.dump", "--name", name, *options],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    assert expect == done.returncode, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def document(name: str, *options: str, expect: int) -> dict[str, Any]:
    """The same as JSON: one document on one line, and nothing else."""
    (line,) = dump(name, "--json", *options, expect=expect).splitlines()
    read: dict[str, Any] = json.loads(line)
    assert expect == read["exit_status"]
    return read


def broken(read: dict[str, Any]) -> set[int]:
    """Numbers of the invariants that do not hold: those of FORMAT.md, as `pegashm fsck` says them."""
    return {finding["invariant"] for finding in read["findings"]}


def test_live_arena(arena_name: MakeArena) -> None:
    """A living client: everything it has and holds is shown, and nothing is a finding."""
    name = arena_name()
    with client_process(name) as child:
        read = document(name, "--blocks", expect=OK)
        printed = dump(name, "--blocks", expect=OK)
    (client,) = read["clients"]
    assert (True, child.pid, 2, 1) == tuple(
        client[key] for key in ("alive", "pid", "pins", "claims")
    )
    assert PAYLOAD_BYTES == client["claimed_bytes"]
    assert {"claimed": 1, "ready": 6} == {
        state: read["tally"][state] for state in ("claimed", "ready")
    }
    assert "ok" == read["verdict"]
    assert not read["supervisor"]["alive"]
    (fence,) = read["namespaces"]
    assert FENCE.fingerprint.hex() == fence["fingerprint"]
    assert 7 == fence["blocks"] == len(read["blocks"])
    assert {"blocks": 2, "payload_bytes": 2 * PAYLOAD_BYTES} == read["pins"]
    keys = {block["key"]: block for block in read["blocks"]}
    assert {key[:-4].hex() for key in (*KEYS, CLAIMED_KEY)} == set(keys)
    assert [client["slot"]] == keys[KEYS[0][:-4].hex()]["pinned_by"]
    assert "claimed" == keys[CLAIMED_KEY[:-4].hex()]["state"]
    counters = {counter["key"]: counter["value"] for counter in read["counters"]}
    assert (7, 6) == (counters["claims"], counters["publishes"])
    assert KEYS[0][:-4].hex() in printed
    assert "a client" in printed


def test_text_from_shared_memory_cannot_move_the_cursor(arena_name: MakeArena) -> None:
    """A label with markup and an escape sequence is shown, not obeyed."""
    name = arena_name()
    with Cache.attach(name, namespace=FENCE):
        printed = dump(name, expect=OK)
    assert "\x1b" not in printed
    assert "scene [bold]model\\x1b[31m" in printed


def test_abandoned_arena(arena_name: MakeArena) -> None:
    """A client killed while it held things is a finding, until somebody reaps it."""
    name = arena_name()
    with client_process(name) as child:
        child.kill()
        child.wait()
        read = document(name, expect=FINDING)
        assert {11, 15, 16} == broken(read)
        assert {"I11": 1, "I15": 1, "I16": 2} == read["counts"]
        assert not read["clients"][0]["alive"]
        printed = dump(name, expect=FINDING)
        assert "I11 client alive (debris), 1" in printed
        assert f"pegashm fsck --name {name} --repair" in printed
    with Cache.attach(name, namespace=FENCE) as cache:
        cache.reap_dead()
    read = document(name, expect=OK)
    assert [] == read["clients"]
    assert (0, 6) == (read["tally"]["claimed"], read["tally"]["ready"])


def test_dead_client_whose_worker_lives_is_no_finding(arena_name: MakeArena) -> None:
    """Its blocks have to wait for the worker; nobody needs to do anything."""
    name = arena_name()
    with client_process(name) as child, Copyist.open(name) as worker:
        (client,) = worker.region.clients()
        assert worker.serve(worker.region_id, client["slot"], client["incarnation"])
        child.kill()
        child.wait()
        read = document(name, expect=OK)
        assert (False, True) == (read["clients"][0]["alive"], read["clients"][0]["copiers_alive"])
        assert "workers live" in dump(name, expect=OK)
    assert {11, 15, 16} == broken(document(name, expect=FINDING))


def test_dead_client_that_held_nothing(arena_name: MakeArena) -> None:
    """One of 128 slots waits for a reaper: debris as any other."""
    name = arena_name()
    with open_arena(name) as arena:
        arena.region.attach_client(
            7, pid=1, started_at=1, now_ns=1, namespace_id=0, mode=0, engine_id=b"", label=""
        )
    read = document(name, expect=FINDING)
    assert {"I11": 1} == read["counts"]
    assert [(7, False)] == [(client["slot"], client["alive"]) for client in read["clients"]]


def test_supervisor_is_told_by_its_lock(arena_name: MakeArena) -> None:
    name = arena_name()
    descriptor = liveness.open_lock_file(name)
    assert liveness.try_lock(descriptor, liveness.SUPERVISOR_BYTE)
    assert document(name, expect=OK)["supervisor"]["alive"]
    liveness.close_lock_file(descriptor)
    assert not document(name, expect=OK)["supervisor"]["alive"]


def test_empty_arena(arena_name: MakeArena) -> None:
    read = document(arena_name(), "--blocks", expect=OK)
    assert ([], [], []) == (read["clients"], read["namespaces"], read["blocks"])
    assert read["tally"]["free"] == read["tally"]["record_count"]


def test_missing_arena() -> None:
    read = document("test-no-such-arena", expect=CANNOT_TELL)
    assert "pegashm serve" in read["error"]
    assert "pegashm serve" in dump("test-no-such-arena", expect=CANNOT_TELL)
    dump("test-no-such-arena", "--follow", expect=CANNOT_TELL)
    assert document("no/name", expect=CANNOT_TELL)["error"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("magic", 0), ("format_major", 77), ("layout_signature", 1), ("bucket_count", 3)],
)
def test_refused_header_is_printed_all_the_same(
    arena_name: MakeArena, field: str, value: int
) -> None:
    name = arena_name()
    place = next(row for row in fields_of("Header") if row.name == field)
    with Path(control_path(name)).open("r+b") as control:
        control.seek(place.offset)
        control.write(value.to_bytes(place.size, "little"))
    read = document(name, expect=CANNOT_TELL)
    assert value == read["header"][field]
    assert read["error"]
    assert f"{field}: {value}" in dump(name, expect=CANNOT_TELL)


@pytest.mark.parametrize("kept", [0, 100, 4096, 9000])
def test_truncated_control_file(arena_name: MakeArena, kept: int) -> None:
    name = arena_name()
    os.truncate(control_path(name), kept)
    assert document(name, expect=CANNOT_TELL)["error"]
    dump(name, expect=CANNOT_TELL)


@pytest.mark.parametrize("kept", [None, 4096])
def test_payload_arena_missing_or_short(arena_name: MakeArena, kept: int | None) -> None:
    name = arena_name()
    path = payload_path(name, SHM_DIRECTORY, 0)
    os.unlink(path) if kept is None else os.truncate(path, kept)
    read = document(name, expect=FINDING)
    assert {2} == broken(read)
    assert path in read["findings"][0]["where"]
    assert f"pegashm purge --name {name} --yes" in dump(name, expect=FINDING)


def test_damaged_records_are_a_finding(arena_name: MakeArena) -> None:
    """A state word that cannot be, a claim and a pin of nobody: each is named."""
    name = arena_name()
    stranger = Stranger(Path(control_path(name)).read_bytes())
    blocks = stranger.number("blocks_offset")
    with Path(control_path(name)).open("r+b") as control:
        control.seek(blocks)
        control.write((0xEE | 5 << 24).to_bytes(8, "little"))
        control.seek(blocks + 128)
        control.write((1 | 99 << 8 | 5 << 24).to_bytes(8, "little"))
        control.seek(blocks + 2 * 128)
        control.write((2 | 5 << 24).to_bytes(8, "little"))
        control.seek(blocks + 2 * 128 + 64)
        control.write((1 << 3).to_bytes(8, "little"))
    read = document(name, "--blocks", expect=FINDING)
    assert 1 == read["tally"]["damaged"]
    assert {14, 15, 16, 17} == broken(read)
    dump(name, "--blocks", expect=FINDING)


def test_drift_is_no_finding(arena_name: MakeArena) -> None:
    """What the next client puts right by the way (here a namespace's bytes) needs nobody; fsck says it."""
    name = arena_name()
    with Cache.attach(name, namespace=FENCE) as cache:
        fill(cache)
    stranger = Stranger(Path(control_path(name)).read_bytes())
    with Path(control_path(name)).open("r+b") as control:
        control.seek(stranger.number("namespaces_offset") + 56)
        control.write(bytes(8))
    assert {9} == set(fsck.check_name(name).counts)
    assert {} == document(name, expect=OK)["counts"]


def test_judges_as_fsck_does(arena_name: MakeArena) -> None:
    """There is one set of rules: whatever fsck finds, but drift, is what dump says."""
    name = arena_name()
    with client_process(name) as child:
        child.kill()
        child.wait()
        report = fsck.check_name(name).without_drift().as_json()
        said = document(name, expect=FINDING)
    assert json.loads(json.dumps(report["findings"])) == said["findings"]
    assert report["counts"] == said["counts"]


def test_random_bytes_after_the_header(arena_name: MakeArena, chance: Any) -> None:
    """Whatever stands in the tables, the answer is a document and an exit status."""
    name = arena_name(Shape(spill_records=16, remote_buckets=64))
    path = Path(control_path(name))
    size = path.stat().st_size
    for start in (4096, 8192, size // 2):
        with path.open("r+b") as control:
            control.seek(start)
            control.write(chance.randbytes(size - start))
        document(name, "--blocks", expect=FINDING)
        dump(name, "--blocks", expect=FINDING)
        dump(name, "--follow", "--seconds", "0.1", expect=OK)
        dump(name, "--follow", "--seconds", "0.1", "--json", expect=OK)


def test_dump_writes_nothing(arena_name: MakeArena) -> None:
    """Not a byte of the control region changes, and a file one may only read will do."""
    name = arena_name()
    with Cache.attach(name, namespace=FENCE) as cache:
        fill(cache)
        before = Path(control_path(name)).read_bytes()
        dump(name, "--blocks", expect=OK)
        dump(name, "--follow", "--seconds", "0.1", expect=OK)
        assert before == Path(control_path(name)).read_bytes()


def test_blocks_on_ssd(arena_name: MakeArena, tmp_path: Path) -> None:
    """By file, with whether lookups see them; and a spill file by its path."""
    name = arena_name(Shape(spill_records=16))
    with open_arena(name) as arena:
        rows = np.zeros(3, _native.SPILL_FIELDS)
        rows["key"][:, 0], rows["key_bytes"], rows["payload_bytes"] = [1, 2, 3], 32, 4096
        rows["file"], rows["file_offset"] = [0, 0, 1], [4096, 8192, 4096]
        table = _native.SpillTable(arena.region)
        table.clear()
        assert table.store(rows).all()
        table.set_usable(0b01)
    read = document(name, expect=OK)["spill"]
    assert (3, 16, False) == (read["listed"], read["record_count"], read["worker_alive"])
    assert [(0, True, 2, 8192), (1, False, 1, 4096)] == [tuple(f.values()) for f in read["files"]]
    printed = dump(name, expect=OK)
    assert "3 listed, room for 16; transport worker not running" in printed
    assert "out of use" in printed

    path = tmp_path / "kv.spill"
    SpillFile.open_or_create(str(path), 16 << 20).close()
    done = CliRunner().invoke(main, ["--spill", str(path), "--json"])
    assert 0 == done.exit_code
    assert 0 == json.loads(done.output)["records"]


def test_other_hosts(arena_name: MakeArena) -> None:
    """Who is listed, heard or not; nothing is said where there is no directory."""
    name = arena_name(Shape(remote_buckets=64))
    with Cache.attach(name, namespace=FENCE) as cache:
        table = _native.RemoteTable(cache.region)
        table.clear()
        for number, address in ((0, "10.0.0.1:7461"), (1, "\x1b[31m")):
            table.add(number, np.arange(1, 6 + number, dtype=np.uint64) << np.uint64(20))
            table.describe(
                number,
                host_id=bytes([number]) * 16,
                incarnation=bytes(16),
                address=address,
                sequence=7,
                events=9,
                heard_at_ns=time.time_ns(),
            )
        table.set_usable(1, usable=True)
    read = document(name, expect=OK)["remote"]
    assert (512, 11, False) == (read["places"], read["hints"], read["worker_alive"])
    assert [(0, False, 5), (1, True, 6)] == [
        (host["number"], host["usable"], host["hints"]) for host in read["hosts"]
    ]
    assert "01" * 16 == read["hosts"][1]["host_id"]
    said = dump(name, expect=OK)
    assert "10.0.0.1:7461" in said
    assert "not heard" in said
    assert "\x1b" not in said
    assert "11 hints of what 2 other hosts hold" in said
    assert "other hosts" not in dump(arena_name(), expect=OK)


def test_reuse_is_shown(arena_name: MakeArena) -> None:
    """What requests asked for lately and what could have been hits; nothing where nothing is counted."""
    name = arena_name(Shape(reuse_registers=1024))
    with Cache.attach(name, namespace=FENCE) as cache:
        for _ in range(4):
            cache.count_asked(KEYS)
        cache.count_served(2 * len(KEYS))
        read = document(name, expect=OK)
        printed = dump(name, expect=OK)
    assert ["15 min", "1 h", "24 h"] == [window["window"] for window in read["reuse"]]
    for window in read["reuse"]:
        assert 4 * len(KEYS) == window["asked"]
        assert window["ceiling"] == pytest.approx(0.75, abs=0.05)
        assert 0.5 == window["hit_rate"]
    assert "in the last" in printed
    assert "50.0 %" in printed
    bare = arena_name()
    assert [] == document(bare, expect=OK)["reuse"]
    assert "in the last" not in dump(bare, expect=OK)
