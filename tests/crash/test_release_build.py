"""Is there nothing of the crash points in what users run?

The release build compiles `crash_point` to nothing. Two proofs: the machine code of every algorithm is the same,
instruction by instruction, as from headers in which no such call is written; and the built module knows none of
the words that the checked build looks up in its environment. Skipped where there is no compiler.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pegashm import _native

from tests import flavours
from tests.crash.points import CORE, used_points

FLAGS = ("-std=c++20", "-O3", "-fPIC", "-g0")
WORDS = (b"PEGASHM_CRASH", b"PEGASHM_CRASH_LOG")
CALL = re.compile(r"\bcrash_point\(CrashPoint::(\w+)\);")

# Every algorithm that has a point, called from outside so that all of it must be compiled.
PROBE = """
#include "audit.hpp"
#include "client.hpp"
#include "header.hpp"
#include "mend.hpp"
#include "registry.hpp"
#include "remote_table.hpp"
#include "repair.hpp"
#include "reuse.hpp"
#include "spill.hpp"
using namespace pegashm;
extern "C" {
void probe_claim(Client& c, const Key* k, uint32_t n, uint64_t b, uint64_t* h, Outcome* o) { c.claim(k, n, b, h, o); }
void probe_find(Client& c, const Key* k, uint32_t n, uint64_t* h, Outcome* o) { c.find(k, n, true, false, h, o); }
void probe_pin(Client& c, const uint64_t* h, uint32_t n, Outcome* o) { c.pin(h, n, o); }
void probe_unpin(Client& c, const uint64_t* h, uint32_t n) { c.unpin(h, n); }
void probe_publish(Client& c, const uint64_t* h, uint32_t n, Outcome* o) { c.publish(h, n, 1, o); }
void probe_abandon(Client& c, const uint64_t* h, uint32_t n) { c.abandon(h, n); }
void probe_touch(Client& c, const uint64_t* h, uint32_t n) { c.touch(h, n); }
void probe_evict(Client& c, const uint64_t* h, uint32_t n, Outcome* o) { c.evict(h, n, o); }
void probe_part(const View& v, uint64_t h) { report_part(v, h, true); }
void probe_sum(const View& v, uint64_t h, uint64_t l, uint64_t s) { write_sum(v, h, 0, l, s); mark_damaged(v, h); }
void probe_spill(SpillTable& t, const Spilled& s, uint64_t f) { t.set_usable(f); t.store(s); t.forget(s); t.clear(); }
void probe_remote(RemoteTable& t, const uint64_t* h, const RemoteLabels& l) { t.add(1, h, 9, 1); t.set_usable(1, true); t.describe(1, l); t.remove(1, h, 9, 3); t.set_none_usable(); t.retire(1); t.drop(); t.clear(); }
void probe_reap(const View& v, uint32_t slot) { reap_client(v, slot); }
void probe_register(const View& v, const NamespaceRequest& r) { register_namespace(v, r); }
void probe_attach(const View& v, const ClientRequest& r) { attach_client(v, 1, r); enter_namespace(v, 1, 2); }
void probe_reuse(const View& v, const Key* k, uint32_t n) { count_asked(v, k, n, 1); count_served(v, n, 1); }
void probe_eviction(const View& v, Eviction e) { set_eviction(v, e); }
void probe_format(const View& v) { format(v); set_ready(v.header()); }
bool probe_mend(Mender& m, const Finding& f) { return m.mend(f); }
}
"""

needs_compiler = pytest.mark.skipif(
    shutil.which(flavours.COMPILER) is None, reason="no C++ compiler here"
)


def assembly(headers: Path) -> list[str]:
    """What the release flags make of the probe."""
    command = [flavours.COMPILER, *FLAGS, f"-I{headers}", "-S", "-x", "c++", "-", "-o", "-"]
    done = subprocess.run(command, input=PROBE, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return done.stdout.splitlines()


def rewritten(folder: Path, instead: str) -> Path:
    """The headers with each crash point replaced."""
    calls = 0
    for header in CORE.glob("*.hpp"):
        text, count = CALL.subn(instead, header.read_text(encoding="utf-8"))
        (folder / header.name).write_text(text, encoding="utf-8")
        calls += count
    assert calls >= len(used_points())
    return folder


@needs_compiler
def test_machine_code_is_that_of_headers_without_crash_points(tmp_path: Path) -> None:
    assert assembly(rewritten(tmp_path, "")) == assembly(CORE)


@needs_compiler
def test_the_probe_has_every_crash_point(tmp_path: Path) -> None:
    """So that the test above compared all of them: each leaves a comment in the assembly here."""
    lines = assembly(rewritten(tmp_path, r'asm volatile("# passed \1");'))
    assert used_points() == {
        line.split()[-1] for line in lines if line.strip().startswith("# passed")
    }


def test_the_release_module_knows_no_crash_point() -> None:
    assert _native.__file__ is not None
    release = Path(_native.__file__).read_bytes()
    assert not [word for word in WORDS if word in release]


def test_the_checked_module_does() -> None:
    """So that the test above would have found them."""
    if (reason := flavours.missing_tool()) is not None:
        pytest.skip(reason)
    checked = flavours.build("checked").read_bytes()
    assert all(word in checked for word in WORDS)
