"""Which files does the page consist of, and what may a browser do with them?

Read once from the package, kept in memory (150 KiB), served with an entity tag: a poll costs no bytes twice. The policy
that goes with each lets scripts, styles and data come from this server only, no inline script or style, no frame, and
no string become markup (Trusted Types); a label of an arena that somehow got so far could still do nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pegashm.exporter.server import Answer, Handler, Request, text_answer

__all__ = ["HEADERS", "PREFIX", "file_routes"]

PREFIX: Final = "/page/"
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS: Final = {
    # A browser keeps what it may; the server's few connections are for scrapers too.
    "Connection": "close",
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".LICENSE": "text/plain; charset=utf-8",
}


def file_routes() -> Mapping[str, Handler]:
    """`/` is the page, the rest of it lies below PREFIX."""
    folder = Path(__file__).with_name("static")
    paths = [path for path in folder.rglob("*") if path.is_file()]
    known = {path.relative_to(folder).as_posix(): _answer(path) for path in paths}

    def page(request: Request) -> Answer:
        return _unless_known(request, known["index.html"])

    def part(request: Request) -> Answer:
        answer = known.get(request.path.removeprefix(PREFIX))
        if answer is None:
            return text_answer(f"the page has no {request.path}\n", status=404)
        return _unless_known(request, answer)

    return {"/": page, PREFIX: part}


def _answer(path: Path) -> Answer:
    content = path.read_bytes()
    tag = f'"{hashlib.blake2b(content, digest_size=12).hexdigest()}"'
    return Answer(
        body=content,
        content_type=_TYPES[path.suffix],
        headers={**HEADERS, "ETag": tag, "Cache-Control": "no-cache"},
    )


def _unless_known(request: Request, answer: Answer) -> Answer:
    """304 when the browser has it as it is."""
    if request.headers.get("if-none-match") != answer.headers["ETag"]:
        return answer
    return Answer(body=b"", content_type=answer.content_type, status=304, headers=answer.headers)
