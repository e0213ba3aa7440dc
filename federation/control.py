"""The control API's server: who may ask, how much, and how requests meet routes (api.py).

Whoever is on this machine may read; what changes something or shows a secret takes the control key, which only the daemon's
own user can read from the state directory: `Authorization: Bearer KEY`. A web page that a browser shows here may do neither:
a request must name a loopback host (a page cannot make its own name resolve to us and pass) and must not come from
another origin.
"""

from __future__ import annotations

import hmac
import socket
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Protocol

import structlog
import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from federation import api, api_care, events, httpd, pages
from federation.errors import ConfigError, ListenFailed, listen_problem
from federation.values import HostPort
from federation.web import http_error, json_response, mark_owner, route

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
    from trio_typing import TaskStatus

log = structlog.get_logger(__name__)

MAX_BODY_BYTES = 64 * 1024
BODY_S = 10.0
WRONG_KEY = "the control key is wrong; control.key in the node's state directory has the right one"


class KeyedNode(api.ControlledNode, api_care.CaredForNode, Protocol):
    def control_key(self) -> str: ...


class ServedNode(api.ControlledNode, api_care.CaredForNode, Protocol):
    """What all routes need of a node."""


def create_app(node: ServedNode, key: str) -> Starlette:
    """`key`: the owner's."""
    hub = events.Hub(node, lambda: datetime.now(timezone.utc))
    operations = (*api.routes, *api_care.routes, *events.routes(hub))
    app = Starlette(
        routes=[*(route(operation, node) for operation in operations), *pages.routes()],
        middleware=[Middleware(_Guard, key=key)],
        exception_handlers={HTTPException: http_error},
    )
    app.state.hub = hub
    return app


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
    async with trio.open_nursery() as nursery:
        nursery.start_soon(app.state.hub.run)
        nursery.start_soon(httpd.serve, app, listener)
        task_status.started(HostPort(address.host, listener.getsockname()[1]))


async def serve_node(
    node: KeyedNode, address: HostPort, *, task_status: TaskStatus[HostPort] = trio.TASK_STATUS_IGNORED
) -> None:
    """The node's API, as node.py starts it."""
    await serve(create_app(node, node.control_key()), address, task_status=task_status)


class _Guard:
    """ASGI middleware, around everything: refuses strangers, and turns a bug of ours into one logged JSON 500."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._key = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no websockets here
            await send({"type": "websocket.close", "code": 1008})
            return
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            self._admit(scope)
            await self._app(scope, _limited(receive), watched)
        except HTTPException as error:
            headers = dict(error.headers or {})
            await json_response({"error": error.detail}, error.status_code, headers)(scope, receive, send)
        except Exception:  # one request must not end the daemon
            log.exception("a control request failed", path=scope["path"])
            if not begun:  # else it ends where it is
                problem = {"error": "internal error; the daemon's log has the details"}
                await json_response(problem, 500)(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        """Raises HTTPException for a request that is none of ours; marks the owner's."""
        refusal = _refusal(scope)
        if refusal is not None:
            raise HTTPException(403, refusal)
        keys = [value for name, value in scope["headers"] if name == b"authorization"]
        if keys:
            if len(keys) > 1 or not self._is_key(keys[0]):
                raise HTTPException(401, WRONG_KEY, {"WWW-Authenticate": "Bearer"})
            mark_owner(scope)

    def _is_key(self, value: bytes) -> bool:
        scheme, _, key = value.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(key.strip(), self._key)


def _limited(receive: Receive) -> Receive:
    """The same, up to MAX_BODY_BYTES of a body."""
    size = 0
    done = False

    async def limited() -> Message:
        nonlocal size, done
        if done:  # what comes now is the end of the connection, which may be hours away
            return await receive()
        with trio.move_on_after(BODY_S) as patience:
            message = await receive()
        if patience.cancelled_caught:
            raise HTTPException(408, f"the request's body did not come within {BODY_S:g} s")
        done = not message.get("more_body", False)
        size += len(message.get("body", b""))
        if size > MAX_BODY_BYTES:
            raise HTTPException(413, f"a request's body has at most {MAX_BODY_BYTES} bytes")
        return message

    return limited


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


def _bind(address: HostPort) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        return socket.create_server((address.host, address.port), family=family)
    except OSError as error:
        raise ListenFailed(listen_problem("the control API", str(address), "--control", error)) from None
