#!/usr/bin/env bash
# Is everything here that pip cannot install? Root gets what is missing; anyone else gets the line to type.
#
# Called by environment.sh with the Python interpreter to build for. Looks for the thing itself (a compiler that
# knows C++20, Python.h, a venv that brings pip, libnuma for vLLM), not for package names, so that compilers and
# Pythons from elsewhere count. Knows Debian and Ubuntu; elsewhere it names what is missing and stops.
set -euo pipefail

python=$1
missing=()   # Debian package names

have_python() { command -v "$python" >/dev/null 2>&1; }
python_says() { "$python" -c "$1" >/dev/null 2>&1; }

compiler_knows_cxx20() {
    printf '#include <atomic>\nlong w; int main() { return (int)std::atomic_ref<long>(w).load(); }\n' |
        "${CXX:-g++}" -std=c++20 -x c++ -fsyntax-only - 2>/dev/null
}

# Debian's own interpreter takes its parts from packages of its version; any other must bring them itself.
python_package() {
    local version
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    case $(readlink -f "$(command -v "$python")") in
        /usr/bin/*) echo "python$version-$1" ;;
        *)
            echo "$python has no $2. Expected a complete Python; it is not Debian's, so no package can add it." \
                "Name another one: make PYTHON=/usr/bin/python3 ..." >&2
            exit 1 ;;
    esac
}

compiler_knows_cxx20 || missing+=(g++)
if have_python; then
    python_says 'import ensurepip, venv' || missing+=("$(python_package venv 'venv with pip')")
    python_says 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' ||
        missing+=("$(python_package dev Python.h)")
    python_says 'import ctypes; ctypes.CDLL("libnuma.so.1")' || missing+=(libnuma1)
else
    missing+=(python3 python3-venv python3-dev libnuma1)
fi
[ ${#missing[@]} -gt 0 ] || exit 0

line="apt-get update && apt-get install -y --no-install-recommends ${missing[*]}"
if ! command -v apt-get >/dev/null 2>&1; then
    echo "Missing here, under their Debian names: ${missing[*]}. Install them with this system's package manager, then run this again." >&2
    exit 1
fi
if [ "$(id -u)" != 0 ]; then
    become=su; ! command -v sudo >/dev/null 2>&1 || become="sudo sh"
    printf 'Missing system packages: %s. Type this, then run make again:\n\n    %s -c "%s"\n\n' \
        "${missing[*]}" "$become" "$line" >&2
    exit 1
fi
echo "==> system packages: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 </dev/null; then
    tail -n 20 "$log" >&2
    rm -f "$log"
    echo "apt-get could not install ${missing[*]} (its last lines are above). Mend that, then type: $line" >&2
    exit 1
fi
rm -f "$log"
if ! compiler_knows_cxx20; then
    echo "${CXX:-g++} does not know std::atomic_ref of C++20. Expected g++ 10 or newer. Name one: make CXX=g++-12 ..." >&2
    exit 1
fi
