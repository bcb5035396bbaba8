#!/usr/bin/env bash
# Builds the documentation's site into .cache/site, with an environment of its own (.cache/docs-venv), and says where it is.
# Any warning (a broken link, an anchor that is not there) fails. Environment: PYTHON (interpreter).
#
# usage: build.sh [install]      install: only the environment, with which tests/docs builds the site
set -euo pipefail
cd "$(dirname "$0")/../.."

venv=.cache/docs-venv
requirements=docs/requirements.txt
python=${PYTHON:-python3}
stamp=$(sha256sum "$requirements" | cut -d' ' -f1)
if [ "$(cat "$venv/stamp" 2>/dev/null)" != "$stamp" ]; then
    bash tools/setup/system-packages.sh "$python"
    echo "==> MkDocs in $venv (about 60 MB)"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check --progress-bar off -r "$requirements" </dev/null
    echo "$stamp" >"$venv/stamp"
fi
[ "${1:-}" != install ] || exit 0
# Not --quiet: what it does not print, --strict does not count.
said=$(NO_MKDOCS_2_WARNING=true "$venv/bin/python" -m mkdocs build --clean --strict 2>&1) || { echo "$said" >&2; exit 1; }
echo "==> open .cache/site/index.html in a browser; it needs no network"
