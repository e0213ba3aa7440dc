"""The control API: what the command line asks a running node, as JSON over HTTP on loopback.

    GET  /api/v1/status         what this node is and does
    GET  /api/v1/peers          {"peers": [...]}, this node's own row among them
    GET  /api/v1/explain?last=N {"decisions": [...]}: the last N choices of a peer

No answer holds a secret: whoever is on this machine may ask. A web page that a browser shows here may not: a
request must name a loopback host (a page cannot make its own name resolve to us and pass) and must not come from another
origin.
"""

from __future__ import annotations

import json
import logging
import math
import socket
from typing import TYPE_CHECKING, Any, Protocol, cast

import hypercorn.trio
import structlog
import trio
from hypercorn.config import Config
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.routing import Route

from federation.errors import ConfigError, ListenFailed, listen_problem
from federation.values import HostPort

if TYPE_CHECKING:
    from hypercorn.typing import Framework
    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send
    from trio_typing import TaskStatus

log = structlog.get_logger(__name__)

EXPLAIN_DEFAULT = 20
EXPLAIN_MAX = 1000
MAX_HEADER_BYTES = 16 * 1024


class ControlledNode(Protocol):
    """What the API needs of a node."""

    def status(self) -> dict[str, Any]: ...
    def peers(self) -> list[dict[str, Any]]: ...
    def explain(self, last: int) -> list[dict[str, Any]]: ...


def create_app(node: ControlledNode) -> Starlette:
    async def status(_request: Request) -> Response:
        return _json(node.status())

    async def peers(_request: Request) -> Response:
        return _json({"peers": node.peers()})

    async def explain(request: Request) -> Response:
        text = request.query_params.get("last", str(EXPLAIN_DEFAULT))
        last = int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0
        if not 1 <= last <= EXPLAIN_MAX:
            raise HTTPException(400, f"last is a number from 1 to {EXPLAIN_MAX}")
        return _json({"decisions": node.explain(last)})

    return Starlette(
        routes=[
            Route("/api/v1/status", status),
            Route("/api/v1/peers", peers),
            Route("/api/v1/explain", explain),
        ],
        middleware=[Middleware(_Guard)],
        exception_handlers={HTTPException: _http_error},
    )


async def serve(
    app: Starlette,
    address: HostPort,
    *,
    task_status: TaskStatus[HostPort] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; `started` gets the address in use, which tells the port where 0 was asked for.

    Raises ConfigError for an address that others could reach, ListenFailed where the port cannot be had.
    """
    if not address.is_loopback:
        raise ConfigError(f"control {address}: the control API listens on loopback only in this version")
    listener = _bind(address)
    actual = HostPort(address.host, listener.getsockname()[1])
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]  # hypercorn owns the socket from here
    config.errorlog = logging.getLogger("hypercorn.error")  # by default it sets up a handler of its own
    config.accesslog = None
    config.h11_max_incomplete_size = MAX_HEADER_BYTES
    config.include_server_header = False
    async with trio.open_nursery() as nursery:
        await nursery.start(hypercorn.trio.serve, cast("Framework", app), config)
        task_status.started(actual)


async def serve_node(
    node: ControlledNode, address: HostPort, *, task_status: TaskStatus[HostPort] = trio.TASK_STATUS_IGNORED
) -> None:
    """The node's API, as node.py starts it."""
    await serve(create_app(node), address, task_status=task_status)


class _Guard:
    """ASGI middleware, around everything: refuses strangers, and turns a bug of ours into one logged JSON 500."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        refusal = _refusal(scope)
        if refusal is not None and scope["type"] == "http":
            await _json({"error": refusal}, 403)(scope, receive, send)
            return
        if scope["type"] != "http":  # no websockets here
            await send({"type": "websocket.close", "code": 1008})
            return
        try:
            await self._app(scope, receive, send)
        except Exception:  # one request must not end the daemon; responses are built before the first byte leaves
            log.exception("a control request failed", path=scope["path"])
            await _json({"error": "internal error; the daemon's log has the details"}, 500)(scope, receive, send)


def _refusal(scope: Scope) -> str | None:
    """Why this request is none of ours; None when it is."""
    headers = [(name, value.decode("latin-1")) for name, value in scope["headers"]]
    hosts = [value for name, value in headers if name == b"host"]
    port = scope["server"][1]
    if len(hosts) != 1 or not _is_us(hosts[0], port):
        return "this host name is not served here; use 127.0.0.1 and the control port"
    origins = [value for name, value in headers if name == b"origin"]
    if not all(origin.startswith("http://") and _is_us(origin[len("http://") :], port) for origin in origins):
        return "requests from another origin are refused"
    return None


def _is_us(authority: str, port: int) -> bool:
    try:
        address = HostPort.parse(authority, default_port=80)
    except ValueError:
        return False
    return address.is_loopback and address.port == port


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _json({"error": error.detail}, error.status_code, dict(error.headers or {}))


def _json(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    # ASCII, so that nobody's name reaches a terminal raw; one line, as `--json` prints it.
    try:
        text = json.dumps(content, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(content))
    return Response(
        text,
        status,
        {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"} | (headers or {}),
        "application/json",
    )


def _finite(value: Any) -> Any:
    """JSON has no infinities (a peer never used was last used at minus infinity): null instead."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _bind(address: HostPort) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        return socket.create_server((address.host, address.port), family=family)
    except OSError as error:
        raise ListenFailed(listen_problem("the control API", str(address), "--control", error)) from None
