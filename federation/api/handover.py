"""Hands this node's program to another machine: script and archive, under names that nobody guesses.

These paths ask for no key: the names are the key, and open nothing else. program/handover.py has the whole way.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Protocol

import trio
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from federation.api.routing import Body, Routes
from federation.ops import schemas
from federation.program.handover import MAX_DOWNLOADS, PATH, Handed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

CHUNK = 64 * 1024
AT_ONCE = 4  # downloads; a node has better things to do
AT_ONCE_BY_LINE = 2  # one machine's, and the one before, whose line broke: slow readers with one line keep no others out
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
UNKNOWN = "this line was used before, or is older than an hour, or its invite was revoked, or the node was started anew"

routes = Routes()


class HandedOverNode(Protocol):
    """The node, as these routes need it."""

    async def hand_over(self, archive: str | None, address: str | None) -> schemas.Handover: ...
    def handed_over(self, name: str) -> Handed | None: ...


class Wish(Body):
    archive: (
        Annotated[str, Field(min_length=1, max_length=120, description="of those in the state directory's folder handover")]
        | None
    ) = None
    address: (
        Annotated[str, Field(min_length=1, max_length=300, description="HOST[:PORT] where the machine reaches this port")]
        | None
    ) = None


@routes.post("/api/v1/handover", schemas.Handover, owner=True, body=Wish)
async def hand_over(node: HandedOverNode, body: Wish) -> schemas.Handover:
    """A line of shell that installs this version on one other machine, from this port, and joins; good once, for an hour."""
    return await node.hand_over(body.archive, body.address)


def is_open(method: str, path: str) -> bool:
    return method in ("GET", "HEAD") and path.startswith(f"{PATH}/")


def files(node: HandedOverNode) -> list[Route]:
    """The script and the archive, for a machine that has a line."""
    busy = trio.CapacityLimiter(AT_ONCE)

    async def script(request: Request) -> Response:
        return Response(_handed(node, request).script, headers=HEADERS, media_type="text/x-shellscript")

    async def archive(request: Request) -> Response:
        handed = _handed(node, request)
        if handed.downloads >= MAX_DOWNLOADS or not await trio.Path(handed.archive).exists():
            raise HTTPException(404, UNKNOWN)
        if busy.available_tokens < 1 or handed.running >= AT_ONCE_BY_LINE:
            raise HTTPException(503, "others get the archive now", {"Retry-After": "10"})
        handed.downloads += 1
        return _Archive(handed, busy)

    ends: dict[str, Callable[[Request], Awaitable[Response]]] = {"install.sh": script, "archive": archive}
    return [Route(f"{PATH}/{{name}}/{end}", endpoint, methods=["GET"]) for end, endpoint in ends.items()]


def _handed(node: HandedOverNode, request: Request) -> Handed:
    handed = node.handed_over(request.path_params["name"])
    if handed is None:
        raise HTTPException(404, UNKNOWN)
    return handed


class _Archive(Response):
    """An archive from the disk, in pieces. Starlette's own stream waits for the client's end beside it, which with our
    server (http_server.py) comes only after the answer.
    """

    def __init__(self, handed: Handed, busy: trio.CapacityLimiter) -> None:
        super().__init__(headers=HEADERS, media_type="application/gzip")
        self._handed = handed
        self._busy = busy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._handed.running += 1
        try:
            async with self._busy, await trio.open_file(self._handed.archive, "rb") as file:
                self.headers["content-length"] = str(os.fstat(file.fileno()).st_size)
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                while chunk := await file.read(CHUNK):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
        finally:
            self._handed.running -= 1
