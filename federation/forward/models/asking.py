"""A small HTTP client for the local servers of this node: GET, one connection a request, everything bounded.

    asker = Asker(HostPort("127.0.0.1", 11434))
    answer = await asker.get("/api/tags")         # None: no answer, or none of this path
    asker.speaks_http                             # whether any answer was HTTP
    asker.is_silent                               # whether it stopped answering on the way

An asker asks each path once and keeps the answer: recognising a server and listing its models share them. After the first
request that gets no answer, it asks no more. Nothing is sent but GET; no redirect is followed.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import h11
import trio

from federation.units import UnixPath

if TYPE_CHECKING:
    from federation.units import Place

MAX_ANSWER = 1024 * 1024  # 512 models as Ollama describes them have some 300 kB
MAX_HEAD = 16 * 1024
TIMEOUT_S = 2.0  # of one request; a server that computes answers these between two tokens
AGENT, FINDER = "federation", "federation-detect"
OWN_AGENTS = frozenset((AGENT.encode(), FINDER.encode()))  # what entries answer no question of
_CHUNK = 64 * 1024


class Answer(NamedTuple):
    status: int
    server: str  # the header of that name
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")

    def json(self) -> Any:
        """The body as JSON; None if it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


async def open_place(at: Place) -> trio.SocketStream:
    """Connect to a local server. Raises OSError."""
    if isinstance(at, UnixPath):
        return await trio.open_unix_socket(at.path)
    return await trio.open_tcp_stream(at.host, at.port)


class Asker:
    """One server, asked for one purpose at one time."""

    def __init__(self, address: Place, *, timeout_s: float = TIMEOUT_S, agent: str = AGENT) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._agent = agent
        self._answers: dict[str, Answer | None] = {}
        self.is_silent = False  # since some path got no answer
        self.speaks_http: bool | None = None  # None: nothing was heard

    async def get(self, path: str) -> Answer | None:
        """The answer to GET `path`, whatever its status; None for an answer that is too large."""
        if path not in self._answers:
            self._answers[path] = None if self.is_silent else await self._ask(path)
        return self._answers[path]

    async def json(self, path: str) -> Any:
        """The body of a good answer as JSON; None if there is none."""
        answer = await self.get(path)
        return None if answer is None or answer.status != 200 else answer.json()

    async def text(self, path: str) -> str:
        """The body of a good answer as text; empty if there is none."""
        answer = await self.get(path)
        return "" if answer is None or answer.status != 200 else answer.text

    async def _ask(self, path: str) -> Answer | None:
        try:
            with trio.fail_after(self._timeout_s):
                stream = await open_place(self._address)
                async with stream:
                    return await self._exchange(stream, path)
        except h11.RemoteProtocolError:
            self._heard_no_http()
        except (OSError, trio.BrokenResourceError, trio.TooSlowError):
            self.is_silent = True
        return None

    def _heard_no_http(self) -> None:
        self.is_silent = True
        self.speaks_http = self.speaks_http or False

    async def _exchange(self, stream: trio.SocketStream, path: str) -> Answer | None:
        http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        headers = [
            ("Host", self._address.authority),
            ("User-Agent", self._agent),
            ("Accept", "*/*"),
            ("Connection", "close"),
        ]
        request = http.send(h11.Request(method="GET", target=path, headers=headers))
        assert request is not None
        await stream.send_all(request)
        http.send(h11.EndOfMessage())
        head: h11.Response | None = None
        body = bytearray()
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await stream.receive_some(_CHUNK))
            elif isinstance(event, h11.Response):
                head, self.speaks_http = event, True
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > MAX_ANSWER:
                    return None
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                server = dict(head.headers).get(b"server", b"").decode("latin-1")
                return Answer(head.status_code, server, bytes(body))
            elif not isinstance(event, h11.InformationalResponse):  # it hung up
                self._heard_no_http()
                return None
