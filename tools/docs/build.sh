#!/usr/bin/env bash
# Builds the documentation's site into .cache/site, with an environment of its own (.cache/docs-venv), and says where it is.
# Any warning (a broken link, an anchor that is not there) fails. Environment: PYTHON (interpreter).
set -euo pipefail
cd "$(dirname "$0")/../.."

venv=.cache/docs-venv
requirements=docs/requirements.txt
stamp=$(sha256sum "$requirements" | cut -d' ' -f1)
if [ "$(cat "$venv/stamp" 2>/dev/null)" != "$stamp" ]; then
    echo "==> MkDocs in $venv (about 60 MB)"
    rm -rf "$venv"
    "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check --progress-bar off -r "$requirements" </dev/null
    echo "$stamp" >"$venv/stamp"
fi
NO_MKDOCS_2_WARNING=true "$venv/bin/python" -m mkdocs build --quiet --clean --strict
echo "==> open .cache/site/index.html in a browser; it needs no network"
