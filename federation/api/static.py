"""The dashboard's files, as the package has them: read once, served from memory under a policy that lets in nothing else.

They hold no secret and need no key, which a browser could not send for a page. The page asks the API.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.responses import Response
from starlette.routing import Route

if TYPE_CHECKING:
    from starlette.requests import Request

DIRECTORY = Path(__file__).with_name("dashboard")
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # names come from other machines: text never becomes markup
    )
)
HEADERS = {
    "Cache-Control": "no-cache",  # kept, but asked for again: the daemon may have been upgraded
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
    ".woff2": "font/woff2",
}


def is_page(path: str) -> bool:
    return path == "/" or path.startswith("/static/")


def routes(directory: Path = DIRECTORY) -> list[Route]:
    """index.html at /, every other file at /static/ and its place. None without an index.html."""
    if not (directory / "index.html").is_file():
        return []
    files = [path for path in sorted(directory.rglob("*")) if path.suffix in TYPES]
    return [_route(path, _place(path.relative_to(directory).as_posix())) for path in files]


def _place(name: str) -> str:
    return "/" if name == "index.html" else f"/static/{name}"


def _route(path: Path, place: str) -> Route:
    content = path.read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = HEADERS | {"ETag": tag}

    async def page(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=TYPES[path.suffix])

    return Route(place, page, methods=["GET"])
