#!/usr/bin/env bash
# Puts uPlot, the status page's plots, beside the page as it comes from npm: the minified script, its style, its licence.
#
# usage: vendor-uplot.sh [VERSION]        needs npm; to move to another version, name it, look at the page (`make screenshots`),
#                                         run tests/page, and change the version in pegashm/DESIGN.md
set -euo pipefail
cd "$(dirname "$0")/../.."

version=${1:-1.6.32}
into=$PWD/pegashm/exporter/page/static/vendor
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cd "$work"
npm pack --silent "uplot@$version" >/dev/null
tar -xzf "uplot-$version.tgz"
mkdir -p "$into"
install -m 644 package/dist/uPlot.iife.min.js package/dist/uPlot.min.css "$into/"
install -m 644 package/LICENSE "$into/uPlot.LICENSE"
echo "uPlot $version is in $into"
