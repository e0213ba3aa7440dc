"""The control API's server: who may ask, how much, and how requests meet routes (api.py).

Whoever is on this machine may read; what changes something or shows a secret takes the control key, which only the
daemon's own user can read from the state directory: `Authorization: Bearer KEY`. Where other machines can reach the API,
every request takes it; only the dashboard's files, which hold nothing, do not.

A web page that a browser shows may do neither: a request must name this node by address, or by a name that was allowed (a
page cannot make its own name resolve to us and pass), and must not come from another origin.
"""

from __future__ import annotations

import hmac
import socket
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Protocol

import structlog
import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from federation import api, api_care, events, httpd, localai, openapi, pages
from federation.errors import ListenFailed, listen_problem
from federation.values import HostPort
from federation.web import OWNER_ONLY, http_error, json_response, mark_owner, route

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
    from trio_typing import TaskStatus

log = structlog.get_logger(__name__)

MAX_BODY_BYTES = 64 * 1024
BODY_S = 10.0
WRONG_KEY = "the control key is wrong; control.key in the node's state directory has the right one"


@dataclass(frozen=True)
class Access:
    """Who gets in. `key`: the owner's. `remote`: other machines can connect; they may use one of the names in `hosts`."""

    key: str = field(repr=False)
    remote: bool = False
    hosts: tuple[str, ...] = ()


class ServedNode(api.ControlledNode, api_care.CaredForNode, Protocol):
    """What all routes need of a node."""


class KeyedNode(ServedNode, Protocol):
    def control_key(self) -> str: ...
    def control_hosts(self) -> tuple[str, ...]: ...


def create_app(node: ServedNode, key: str, *, remote: bool = False, hosts: tuple[str, ...] = ()) -> Starlette:
    """The arguments are Access's."""
    hub = events.Hub(node, lambda: datetime.now(timezone.utc))
    operations = [*api.routes, *api_care.routes, *events.routes(hub), *localai.routes]
    operations += openapi.routes(operations)
    app = Starlette(
        routes=[*(route(operation, node) for operation in operations), *pages.routes()],
        middleware=[Middleware(_Guard, access=Access(key, remote, hosts))],
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

    Raises ListenFailed where the port cannot be had.
    """
    with _bind(address) as listener:
        await _serve(app, listener, address.host, task_status)


async def _serve(app: Starlette, listener: socket.socket, host: str, task_status: TaskStatus[HostPort]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(app.state.hub.run)
        nursery.start_soon(httpd.serve, app, listener)
        task_status.started(HostPort(host, listener.getsockname()[1]))


async def serve_node(
    node: KeyedNode, address: HostPort, *, task_status: TaskStatus[HostPort] = trio.TASK_STATUS_IGNORED
) -> None:
    """The node's API, as node.py starts it."""
    remote = not address.is_loopback
    if remote:
        log.warning("other machines can reach the control API, over plain HTTP; it asks each for the control key")
    app = create_app(node, node.control_key(), remote=remote, hosts=(address.host, *node.control_hosts()))
    await serve(app, address, task_status=task_status)


class _Guard:
    """ASGI middleware, around everything: refuses strangers, and turns a bug of ours into one logged JSON 500."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access
        self._key = access.key.encode()

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
        refusal = _refusal(scope, self._access)
        if refusal is not None:
            raise HTTPException(403, refusal)
        keys = [value for name, value in scope["headers"] if name == b"authorization"]
        if keys:
            if len(keys) > 1 or not self._is_key(keys[0]):
                raise HTTPException(401, WRONG_KEY, {"WWW-Authenticate": "Bearer"})
            mark_owner(scope)
        elif self._access.remote and not pages.is_page(scope["path"]):
            raise HTTPException(401, OWNER_ONLY, {"WWW-Authenticate": "Bearer"})

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


def _refusal(scope: Scope, access: Access) -> str | None:
    """Why this request is none of ours; None when it is."""
    headers = [(name, value.decode("latin-1")) for name, value in scope["headers"]]
    hosts = [value for name, value in headers if name == b"host"]
    port = scope["server"][1]
    if len(hosts) != 1 or not (_is_loopback(hosts[0], port) or (access.remote and _is_named(hosts[0], access.hosts))):
        if access.remote:
            return "this host name is not served here; use the machine's address, or allow the name with --control-host"
        return "this host name is not served here; use 127.0.0.1 and the control port"
    origins = [value for name, value in headers if name == b"origin"]
    if not all(_is_own(origin, hosts[0], port, access) for origin in origins):
        return "requests from another origin are refused"
    return None


def _is_own(origin: str, host: str, port: int, access: Access) -> bool:
    scheme, _, authority = origin.partition("://")
    if access.remote and scheme in ("http", "https") and authority.lower() == host.lower():  # https: through a proxy
        return True
    return scheme == "http" and _is_loopback(authority, port)


def _is_loopback(authority: str, port: int) -> bool:
    address = _parsed(authority)
    return address is not None and address.is_loopback and address.port == port


def _is_named(authority: str, names: tuple[str, ...]) -> bool:
    """By an address, which nobody's name server decides, or by a name that was allowed. Any port: it may be forwarded."""
    address = _parsed(authority)
    if address is None or address.is_wildcard:
        return False
    return address.is_ip or address.host.lower().rstrip(".") in {name.lower().rstrip(".") for name in names}


def _parsed(authority: str) -> HostPort | None:
    try:
        return HostPort.parse(authority, default_port=80)
    except ValueError:
        return None


def _bind(address: HostPort) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        return socket.create_server((address.host, address.port), family=family)
    except OSError as error:
        raise ListenFailed(listen_problem("the control API", str(address), "--control", error)) from None
