"""How does the repository become the site of its documentation? Hooks of MkDocs, named in mkdocs.yml.

Texts that live elsewhere (README, FORMAT.md, DESIGN.md, results/, ...) become pages, and every link between files of the repository
becomes one between pages: what is no Markdown gets a page that shows it. So the same Markdown is right in the repository and on the
site, which needs no network. A link that leads nowhere is left as it is, for MkDocs to complain of. SVG drawings are put into the page
itself, so that they follow its light and dark. Called by `mkdocs build`; nothing else imports it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

__all__ = [
    "ADOPTED",
    "on_config",
    "on_files",
    "on_page_content",
    "on_page_markdown",
    "targets",
]

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = "docs"
# Files of the repository that are pages, beside docs/ and results/: what they are called on the site.
ADOPTED: Final = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "pegashm/DESIGN.md": "decisions.md",
    "pegashm/_core/FORMAT.md": "format.md",
}
LANGUAGES: Final = {
    ".c": "c",
    ".hpp": "cpp",
    ".json": "json",
    ".pxi": "cython",
    ".py": "python",
    ".pyi": "python",
    ".pyx": "cython",
    ".sh": "bash",
    ".toml": "toml",
    ".yaml": "yaml",
    ".yml": "yaml",
}
# What source files and results begin with: they would drown all other pages in the search.
UNSEARCHED: Final = "---\nsearch:\n  exclude: true\n---\n\n"
# Opening and closing fences; a link or picture outside of them and of `code`.
FENCE: Final = re.compile(r"^ *(```|~~~)")
LINK: Final = re.compile(
    r"(?P<code>`+[^`]*`+)|(?P<open>!?\[[^\]]*\]\()(?P<target>[^)\s]+)(?=[)\s])"
)
# What GitHub shows as a bar and Python-Markdown as a backslash and a bar: the escape of one in code in a table.
CELL_CODE: Final = re.compile(r"<code>[^<]*\\\|[^<]*</code>")
DRAWING: Final = re.compile(r'<img alt="(?P<alt>[^"]*)" src="(?P<target>[^"]+\.svg)"[^>]*>')
_ELSEWHERE: Final = ("http://", "https://", "mailto:", "#")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The repository's own name for each page, filled by `on_files`."""
    config["sources"] = {}
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that live outside docs/, and those that links lead to."""
    from mkdocs.structure.files import File

    sources: dict[str, str] = {page: repository for repository, page in ADOPTED.items()}
    for path in sorted((ROOT / "results").iterdir()):
        if path.suffix in {".md", ".png"}:
            sources[f"results/{path.name}"] = f"results/{path.name}"
    for page, repository in sources.items():
        if page.startswith("results/") and page.endswith(".md"):
            files.append(File.generated(config, page, content=UNSEARCHED + _text(repository)))
        elif (ROOT / repository).is_file():
            files.append(File.generated(config, page, abs_src_path=str(ROOT / repository)))
    files.append(File.generated(config, "results.md", content=_results()))
    sources["results.md"] = "results.md"
    sources |= {
        file.src_uri: f"{DOCS}/{file.src_uri}" for file in files if file.src_uri not in sources
    }
    pages = [(page, repository) for page, repository in sources.items() if page.endswith(".md")]
    for _, repository in pages:
        text = _text(repository)
        for target in targets(text, posixpath.dirname(repository)):
            page = f"source/{target}.md"
            if _is_page(target) or page in sources or not (ROOT / target).exists():
                continue
            sources[page] = target
            files.append(File.generated(config, page, content=UNSEARCHED + _shown(target)))
    config["sources"] = sources
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links between files of the repository become links between pages."""
    own = config["sources"].get(page.file.src_uri)
    if own is None or page.file.src_uri.startswith("source/"):
        return markdown
    here, folder = posixpath.dirname(page.file.src_uri), posixpath.dirname(own)
    return _with_links(
        markdown, lambda target: _on_site(target, here=here, folder=folder, files=files)
    )


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Drawings become part of the page, and so follow its colours; escaped bars in tables become bars."""

    def drawing(found: re.Match[str]) -> str:
        target = posixpath.normpath(
            posixpath.join(posixpath.dirname(page.file.src_uri), found["target"])
        )
        path = Path(config.docs_dir) / target
        if not path.is_file():
            return found[0]
        svg = path.read_text(encoding="utf-8")
        return f'<figure class="drawing" role="img" aria-label="{found["alt"]}">{svg[svg.index("<svg") :]}</figure>'

    html = CELL_CODE.sub(lambda found: found[0].replace("\\|", "|"), html)
    return DRAWING.sub(drawing, html)


def targets(markdown: str, folder: str) -> list[str]:
    """The files of the repository that a text links to."""
    found: list[str] = []

    def note(target: str) -> str:
        found.append(posixpath.normpath(posixpath.join(folder, unquote(target.partition("#")[0]))))
        return target

    _with_links(markdown, note)
    return found


def _is_page(target: str) -> bool:
    """Whether the site has it under a name of its own."""
    return target in ADOPTED or target.split("/", maxsplit=1)[0] in {DOCS, "results"}


def _on_site(target: str, *, here: str, folder: str, files: Files) -> str:
    path, mark, anchor = target.partition("#")
    repository = posixpath.normpath(posixpath.join(folder, unquote(path)))
    if repository in ADOPTED:
        page = ADOPTED[repository]
    elif repository in {"results", DOCS}:
        page = {"results": "results.md", DOCS: "index.md"}[repository]
    elif repository.startswith(f"{DOCS}/"):
        page = repository.removeprefix(f"{DOCS}/")
    elif repository.startswith("results/"):
        page = repository
    else:
        page = f"source/{repository}.md"
    if files.get_file_from_path(page) is None:
        return target
    return posixpath.relpath(page, here or ".") + mark + anchor


def _with_links(markdown: str, change: Callable[[str], str]) -> str:
    """Every link's target put through `change`, but in code and to elsewhere."""
    lines, fenced = [], False
    for line in markdown.split("\n"):
        if FENCE.match(line):
            fenced = not fenced
        lines.append(line if fenced else LINK.sub(lambda found: _changed(found, change), line))
    return "\n".join(lines)


def _changed(found: re.Match[str], change: Callable[[str], str]) -> str:
    if found["code"] or found["target"].startswith(_ELSEWHERE):
        return found[0]
    return f"{found['open']}{change(found['target'])}"


def _text(repository: str) -> str:
    path = ROOT / repository
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _shown(target: str) -> str:
    """A page that shows a file, or says what is in a folder."""
    path = ROOT / target
    if path.is_dir():
        names = sorted(
            f"- `{each.name}{'/' * each.is_dir()}`"
            for each in path.iterdir()
            if each.name[0] not in "._"
        )
        return f"# {target}/\n\n" + "\n".join(names) + "\n"
    language = LANGUAGES.get(path.suffix, "text")
    text = path.read_text(encoding="utf-8")
    return f"# {target}\n\n~~~~~~{language}\n{text}\n~~~~~~\n"


def _results() -> str:
    """A list of what was measured and recorded."""
    lines = [
        "# Results",
        "",
        "What benches and long tests printed, as it was: the figures of [performance](docs/performance.md)",
        "and [reliability](docs/reliability.md) come from here.",
        "",
    ]
    lines += [
        f"- [{path.stem}](results/{path.name})" for path in sorted((ROOT / "results").glob("*.md"))
    ]
    return "\n".join(lines) + "\n"
