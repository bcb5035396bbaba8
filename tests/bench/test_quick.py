"""Do the benches still run? Each in its smallest extent, as a user types it; figures are not judged.

Checked is what later readers rely on: exit status 0, the last line one JSON object with the bench's own figures, a
hash of the work done, and nothing left behind (mounts, shared memory).
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FIGURES: dict[str, set[str]] = {
    "admission": set(),
    "attach": {"attach_ms", "ratio_largest"},
    "checksum": {"hash_cold_gbs", "store_share", "load_share", "batch_ms_more"},
    "copy": {"share_median", "share_min", "share_batch_median"},
    "fetch": {"share_median", "share_min", "one_block_us", "cpu_s_gb_serving", "cpu_s_gb_reading"},
    "directory": {"cpu_share", "table_bytes", "events_s", "miss_ns_more"},
    "lookup": {"cold_hits", "hot_misses"},
    "operations": set(),
    "replay": {"ceilings", "oracle", "broker", "pools", "pool_ratios", "mla", "wrong_blocks"},
    "rivals": {"rivals", "kills", "rounds"},
    "reserve": {"lost_with", "lost_without", "hit_rate_alone_in_reserve"},
    "reuse": {"error_points_max", "error_unique_p95_percent", "cost"},
    "tier": {"hit_rate_with", "hit_rate_without", "wrong_blocks", "slowdown_p50"},
    "spill": {"share_spill_median", "share_promote_median", "amplification_max", "open_s"},
    "start": {"of_kernel"},
    "watching": {"watchers", "loss", "cpu_share"},
}
SECONDS_MAX = 400  # on a machine many times as slow


def left_behind() -> set[str]:
    """Mounts and shared-memory objects of benches, but those that another living process has made: names say which."""
    mounts = Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
    found = {line for line in mounts if "pegashm-bench" in line}
    for name in os.listdir("/dev/shm"):
        if "pegashm.bench-" in name:
            made_by = re.match(r"pegashm\.bench-[a-z]+-(\d+)", name)
            if made_by is None or not Path("/proc", made_by[1]).exists():
                found.add(name)
    return found


@pytest.mark.skipif(shutil.which("cc") is None, reason="benches compile their yardsticks: no cc")
@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.timeout(SECONDS_MAX + 100)
def test_runs_and_ends_with_one_json_object(name: str) -> None:
    """The question, machine, command, limits and hash stand above the JSON; nothing stays behind."""
    if name == "spill" and shutil.which("fio") is None:
        pytest.skip("bench.spill measures beside fio, and there is none here: apt install fio")
    if name == "fetch" and shutil.which("iperf3") is None:
        pytest.skip(
            "bench.fetch measures beside iperf3, and there is none here: apt install iperf3"
        )
    before = left_behind()

    done = subprocess.run(
        [sys.executable, "-m", f"bench.{name}", "--smoke"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )

    assert 0 == done.returncode, done.stderr
    for said in (
        "machine: ",
        f"command: python -m bench.{name} --smoke",
        "not shown: ",
        "work done: ",
    ):
        assert said in done.stdout
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert name == result["bench"]
    assert "smoke" == result["extent"]
    assert FIGURES[name] <= result.keys()
    assert result["results"]
    assert result["work_hash"]
    assert {"cpu", "cores", "load", "load_after"} <= result["machine"].keys()
    assert left_behind() <= before
