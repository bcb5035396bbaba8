"""Can the documentation be read as it lies and as a site, without a network?

Links and drawings are checked on the Markdown itself. The site is built, strictly, where its generator is installed (`make docs`).
"""

from __future__ import annotations

import os
import re
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.docs import hooks

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".cache" / "docs-venv" / "bin" / "python"
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / name for name in hooks.ADOPTED)])
# What a browser would fetch by itself.
_FETCHED = re.compile(
    r"""<(?:script|img|iframe|source|video)\b[^>]*\bsrc=["']?(?:https?:)?//"""
    r"""|<link\b[^>]*\brel=["']?(?:stylesheet|preload|preconnect|icon|modulepreload)[^>]*\bhref=["']?(?:https?:)?//"""
    r"""|<link\b[^>]*\bhref=["']?(?:https?:)?//[^>]*\brel=["']?(?:stylesheet|preload|preconnect|icon|modulepreload)"""
)
_LOST_ITEM = re.compile(r"<p>(?:[^<]|<(?!/p>))*?(?:^|(?<=<p>))(?:[-*]|\d+\.) ", re.MULTILINE)
_STYLE_FETCHED = re.compile(r"""(?:url\(\s*["']?|@import\s+["'])(?:https?:)?//""")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    repository = page.relative_to(ROOT).as_posix()
    broken = [link for link in _links(repository) if not (ROOT / link).exists()]
    assert not broken


@pytest.mark.parametrize(
    "drawing", sorted((ROOT / "docs/figures").glob("*.svg")), ids=lambda path: path.name
)
def test_drawings_stand_alone(drawing: Path) -> None:
    """Well-formed, without scripts, and nothing in them comes from elsewhere."""
    for element in ET.parse(drawing).iter():
        assert not element.tag.endswith("script")
        assert not [name for name in element.attrib if name.endswith("href")]
    text = drawing.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert "http" not in text


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not PYTHON.exists():
        pytest.skip("MkDocs is not installed: type `make docs` once")
    built = tmp_path_factory.mktemp("site")
    command = [
        str(PYTHON),
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--site-dir",
        str(built),
    ]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "true"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return built


def test_site_has_every_page(site: Path) -> None:
    names = {path.relative_to(site).with_suffix(".md").as_posix() for path in site.rglob("*.html")}
    assert {path.name for path in (ROOT / "docs").glob("*.md")} <= names
    assert set(hooks.ADOPTED.values()) <= names


def test_lists_are_lists(site: Path) -> None:
    """Markdown on a forge forgives a list without a blank line before it, or with less indent; the site's does not."""
    for path in site.rglob("*.html"):
        if path.relative_to(site).parts[0] != "source":
            assert not _LOST_ITEM.search(path.read_text(encoding="utf-8")), path


def test_site_needs_no_network(site: Path) -> None:
    for path in site.rglob("*.html"):
        assert not _FETCHED.search(path.read_text(encoding="utf-8")), path
    for path in site.rglob("*.css"):
        assert not _STYLE_FETCHED.search(path.read_text(encoding="utf-8")), path


def _links(repository: str) -> Iterator[str]:
    """Files of the repository that a page links to."""
    text = (ROOT / repository).read_text(encoding="utf-8")
    folder = Path(repository).parent.as_posix()
    yield from hooks.targets(text, folder)
