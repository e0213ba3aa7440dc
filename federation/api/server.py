"""The control API's server: which requests it takes, within which limits, and how they meet routes (routes.py).

Two ways lead in. The socket in the state directory is for the daemon's own user, who is the owner: a request there needs no
proof. The socket has connections of its own, so that clients of the port cannot use them up.

At the port, every program on this machine may read. Requests that change something or show a secret are the owner's: they
carry the control key (`Authorization: Bearer KEY`), or a session of the dashboard, or a proof of the key that does not say
it (proof.py). Where other machines can reach the API, every request needs one of these, except for the dashboard's files,
which hold no secret, the first steps of a proof and a session, and what a machine gets by the code of an install line.

A web page that a browser shows may do neither: a request must name this node by address, or by a name that was allowed (a
page cannot make its own name resolve to us and pass), and must not come from another origin, nor on behalf of another site.
"""

from __future__ import annotations

import hmac
import os
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Protocol

import structlog
import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from federation import unixsocket
from federation.api import (
    access,
    diagnosis,
    door,
    events,
    handover,
    http_server,
    invites,
    localai,
    machines,
    openapi,
    routes,
    static,
)
from federation.api.proof import ANSWER_HEADER, SCHEME, Challenges
from federation.api.routing import OWNER_ONLY, http_error, json_response, mark_owner, route
from federation.api.sessions import Sessions
from federation.clock import time_asleep
from federation.units import HostPort

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable, Sequence

    from starlette.types import ASGIApp, Message, Receive, Scope, Send
    from trio_typing import TaskStatus

log = structlog.get_logger(__name__)

MAX_BODY_BYTES = 64 * 1024
BODY_S = 10.0
WRONG_KEY = (
    "the control key is wrong, or a session that has ended; control.key in the node's state directory has the right one"
)
WRONG_PROOF = "the proof of the control key is wrong, too old, or was here before"
SESSION_OVER = "this session has ended"
OWN_SOCKET = "federation.own_socket"  # in the scope of requests by the state directory's socket


@dataclass(frozen=True)
class Access:
    """The rules of admission. `key`: the owner's. `remote`: other machines can connect. `hosts`: names that pass."""

    key: str = field(repr=False)
    remote: bool = False
    hosts: tuple[str, ...] = ()


class ServedNode(
    routes.ControlledNode,
    invites.InvitingNode,
    diagnosis.DiagnosableNode,
    machines.WatchfulNode,
    handover.HandedOverNode,
    Protocol,
):
    """The node, as all routes need it."""


class KeyedNode(ServedNode, Protocol):
    def control_key(self) -> str: ...
    def control_hosts(self) -> tuple[str, ...]: ...
    def control_socket(self) -> socket.socket | None: ...
    def control_tls(self) -> ssl.SSLContext | None: ...
    async def has_started(self) -> None: ...


def create_app(node: ServedNode, key: str, *, remote: bool = False, hosts: tuple[str, ...] = ()) -> Starlette:
    """Make the ASGI application. The arguments are Access's."""
    hub = events.Hub(node, lambda: datetime.now(timezone.utc))
    challenges, sessions = Challenges(key, _now), Sessions(_now)
    operations = [*routes.routes, *invites.routes, *diagnosis.routes, *machines.routes, *access.routes(challenges, sessions)]
    operations += [*events.routes(hub), *localai.routes, *handover.routes]
    operations += openapi.routes(operations)
    guard = Middleware(_Guard, access=Access(key, remote, hosts), challenges=challenges, sessions=sessions)
    app = Starlette(
        routes=[*(route(operation, node) for operation in operations), *static.routes(), *handover.files(node)],
        middleware=[guard],
        exception_handlers={HTTPException: http_error},
    )
    app.state.hub = hub
    app.state.sessions = sessions
    return app


def _now() -> float:
    """Seconds, with the time asleep: a code's half minute does not last a night."""
    return trio.current_time() + time_asleep()


async def serve(
    app: Starlette,
    address: HostPort,
    *,
    own: Callable[[], socket.socket | None] = lambda: None,
    tls: Callable[[], ssl.SSLContext | None] = lambda: None,
    task_status: TaskStatus[HostPort] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; `started` gets the address in use, which tells the port where 0 was asked for.

    `own`: makes the listening socket for the daemon's own user. `tls`: for the port; None is plain HTTP.
    Raises ListenFailed where the port cannot be had.
    """
    with door.opened(address, own) as (listeners, own_listener):
        task_status.started(door.address_in_use(address, listeners))
        await serve_on(app, listeners, own_listener, tls)


async def serve_on(
    app: Starlette,
    listeners: Sequence[socket.socket],
    own: socket.socket | None,
    tls: Callable[[], ssl.SSLContext | None],
) -> None:
    """Serve on sockets that are there already."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(app.state.hub.run)
        for listener in listeners:
            nursery.start_soon(partial(http_server.serve, app, listener, tls=tls))
        if own is not None:
            nursery.start_soon(partial(http_server.serve, _marked(app), own, admits=_is_own_user))


def _marked(app: ASGIApp) -> ASGIApp:
    """Mark the requests that come by the socket of the state directory."""

    async def marked(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, OWN_SOCKET: True}, receive, send)

    return marked


def _is_own_user(client: unixsocket.HasOptions) -> bool:
    """Whether the client is the daemon's own user. The modes of directory and socket say so too, if nobody changed them."""
    return unixsocket.peer_uid(client) in (None, 0, os.geteuid())


async def serve_node(
    node: KeyedNode, address: HostPort, listeners: Sequence[socket.socket], own: socket.socket | None
) -> None:
    """The node's API on the sockets that door.py made."""
    remote = not address.is_loopback
    if remote and node.control_tls() is None:
        log.warning("other machines can reach the control API, over plain HTTP; it asks each for the control key")
    app = create_app(node, node.control_key(), remote=remote, hosts=(address.host, *node.control_hosts()))
    await serve_on(app, listeners, own, node.control_tls if remote else lambda: None)


class _Guard:
    """ASGI middleware, around all: refuses requests without a right, and turns a bug of ours into one logged JSON 500."""

    def __init__(self, app: ASGIApp, access: Access, challenges: Challenges, sessions: Sessions) -> None:
        self._app = app
        self._access = access
        self._key = access.key.encode()
        self._challenges = challenges
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no websockets here
            await send({"type": "websocket.close", "code": 1008})
            return
        answer = _Answer(send)
        try:
            await self._serve(scope, _limited(receive), answer)
        except HTTPException as error:
            headers = dict(error.headers or {})
            await json_response({"error": error.detail}, error.status_code, headers)(scope, receive, answer)
        except Exception:  # one request must not end the daemon
            log.exception("a control request failed", path=scope["path"])
            if not answer.begun:  # else it ends where it is
                problem = {"error": "internal error; the daemon's log has the details"}
                await json_response(problem, 500)(scope, receive, answer)

    async def _serve(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        """Serve a request, marked if it is the owner's. Raises HTTPException for one that is to be refused."""
        if scope.get(OWN_SOCKET):
            mark_owner(scope)
            await self._app(scope, receive, answer)
            return
        refusal = _refusal(scope, self._access)
        if refusal is not None:
            raise HTTPException(403, refusal)
        given = [value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"]
        if not given:
            method, path = scope["method"], scope["path"]
            is_open = static.is_page(path) or access.is_open(method, path) or handover.is_open(method, path)
            if self._access.remote and not is_open:
                raise HTTPException(401, OWNER_ONLY, {"WWW-Authenticate": "Bearer"})
            await self._app(scope, receive, answer)
            return
        scheme, _, shown = given[0].partition(" ")
        if len(given) == 1 and scheme.lower() == SCHEME.lower():
            await self._serve_proven(scope, receive, answer, shown)
        elif len(given) == 1 and scheme.lower() == "bearer" and self._is_key(shown.strip()):
            mark_owner(scope)
            await self._app(scope, receive, answer)
        elif len(given) == 1 and scheme.lower() == "bearer" and self._sessions.is_one(shown.strip()):
            await self._serve_session(scope, receive, answer, shown.strip())
        else:
            raise HTTPException(401, WRONG_KEY, {"WWW-Authenticate": "Bearer"})

    async def _serve_proven(self, scope: Scope, receive: Receive, answer: _Answer, shown: str) -> None:
        """The body is read first, since the proof covers it; the answer goes out whole, and signed."""
        body = await _whole(receive)
        (host,) = (value.decode("latin-1") for name, value in scope["headers"] if name == b"host")
        target = b"?".join(filter(None, (scope["raw_path"], scope["query_string"]))).decode("latin-1")
        nonces = self._challenges.take(shown, host, scope["method"], target, body)
        if nonces is None:
            raise HTTPException(401, WRONG_PROOF, {"WWW-Authenticate": "Bearer"})
        answer.sign = partial(self._challenges.answered, nonces)
        if scope["path"] == events.PATH:
            raise HTTPException(400, "a stream without an end cannot be signed; send the control key")
        mark_owner(scope)
        await self._app(scope, _given(body, receive), answer)

    async def _serve_session(self, scope: Scope, receive: Receive, answer: _Answer, session: str) -> None:
        mark_owner(scope)
        with trio.CancelScope() as life, self._sessions.used(session, life.cancel):
            await self._app(scope, receive, answer)
        if life.cancelled_caught and not answer.begun:
            raise HTTPException(401, SESSION_OVER, {"WWW-Authenticate": "Bearer"})

    def _is_key(self, text: str) -> bool:
        return hmac.compare_digest(text.encode("utf-8", "replace"), self._key)


class _Answer:
    """An answer on its way to the client. `sign`: makes the proof of the whole answer, from status and body."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False
        self.sign: Callable[[int, bytes], str] | None = None
        self._start: Message = {}
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            # A page of another site may not even load our pictures, by which it would know that we are here.
            headers = [*message.get("headers", ()), (b"cross-origin-resource-policy", b"same-origin")]
            message = {**message, "headers": headers}
        if self.sign is None:
            self.begun = True
            await self._send(message)
        elif message["type"] == "http.response.start":
            self._start, self._body = message, b""
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                signed = (ANSWER_HEADER.lower().encode(), self.sign(self._start["status"], self._body).encode())
                self.begun = True
                await self._send({**self._start, "headers": [*self._start["headers"], signed]})
                await self._send({"type": "http.response.body", "body": self._body})


async def _whole(receive: Receive) -> bytes:
    """A request's body."""
    body: bytes = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return body


def _given(body: bytes, receive: Receive) -> Receive:
    """Receive `body`, then the messages of `receive`."""
    left = [body]

    async def again() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return await receive()

    return again


def _limited(receive: Receive) -> Receive:
    """A request's messages, up to MAX_BODY_BYTES of its body."""
    size = 0
    done = False
    deadline: float | None = None

    async def limited() -> Message:
        nonlocal size, done, deadline
        if done:  # the next message is the end of the connection, which may be hours away
            return await receive()
        if deadline is None:
            deadline = trio.current_time() + BODY_S  # for the whole body, however it trickles
        with trio.move_on_at(deadline) as waiting:
            message = await receive()
        if waiting.cancelled_caught:
            raise HTTPException(408, f"the request's body did not come within {BODY_S:g} s")
        if message["type"] != "http.request":  # the client went away: not worth a line in the log
            raise HTTPException(400, "the request did not come whole")
        done = not message.get("more_body", False)
        size += len(message.get("body", b""))
        if size > MAX_BODY_BYTES:
            raise HTTPException(413, f"a request's body has at most {MAX_BODY_BYTES} bytes")
        return message

    return limited


def _refusal(scope: Scope, access: Access) -> str | None:
    """The reason to refuse this request; None if there is none."""
    headers = [(name, value.decode("latin-1")) for name, value in scope["headers"]]
    hosts = [value for name, value in headers if name == b"host"]
    port = scope["server"][1]
    if len(hosts) != 1 or not (_is_loopback(hosts[0]) or _is_named(hosts[0], access)):
        how = "the machine's address" if access.remote else "127.0.0.1 and the control port"
        return f"this host name is not served here; use {how}, or allow the name with --control-host"
    origins = [value for name, value in headers if name == b"origin"]
    if not all(_is_own(origin, hosts[0], port, access) for origin in origins):
        return "requests from another origin are refused"
    if not _is_for_own_page(scope["path"], {name.decode("latin-1"): value for name, value in headers}):
        return "requests on behalf of another site are refused"
    return None


def _is_for_own_page(path: str, headers: dict[str, str]) -> bool:
    """Whether a browser sends this for a person or for our own page. A page of another site may lead its reader to our front
    page and no further. Programs other than browsers do not say (no Sec-Fetch-Site), and pass.
    """
    if headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
        return True
    is_visit = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    return path == "/" and is_visit


def _is_own(origin: str, host: str, port: int, access: Access) -> bool:
    scheme, _, authority = origin.partition("://")
    schemes = ("http", "https") if access.remote or _is_named(host, access) else ("http",)  # https: through a proxy
    if scheme in schemes and authority.lower() == host.lower():
        return True
    address = _parsed(authority)
    return scheme == "http" and _is_loopback(authority) and address is not None and address.port == port


def _is_loopback(authority: str) -> bool:
    """At any port: it may be forwarded (`ssh -L`), and only the name tells who sent a browser here."""
    address = _parsed(authority)
    return address is not None and address.is_loopback


def _is_named(authority: str, access: Access) -> bool:
    """Whether Host is an allowed name or, where other machines can connect, an address, which no name server decides."""
    address = _parsed(authority)
    if address is None or address.is_wildcard:
        return False
    names = {name.lower().rstrip(".") for name in access.hosts}
    return (access.remote and address.is_ip) or address.host.lower().rstrip(".") in names


def _parsed(authority: str) -> HostPort | None:
    try:
        return HostPort.parse(authority, default_port=80)
    except ValueError:
        return None
