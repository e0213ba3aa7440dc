"""Clients that make new HTTP connections at a steady pace, and the record of how each one went."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness import Address, Server

GIVE_UP_S = 30.0  # an answer that takes longer counts as a failed request

_run_numbers = itertools.count()


@dataclass(frozen=True)
class Request:
    """Times are time.monotonic()."""

    target: str
    started: float
    finished: float
    answered_by: str = ""
    error: str = ""

    @property
    def failed(self) -> bool:
        return bool(self.error)

    @property
    def took_s(self) -> float:
        return self.finished - self.started


class Load:
    """Runs while the `with` block does: `clients` clients at `address`, each a new connection every `every_s`.

    The pace does not depend on the answers: a client whose last request still waits makes its next one all the same.
    """

    def __init__(
        self,
        address: Address,
        *,
        clients: int = 4,
        every_s: float = 0.02,
        where: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.address = address
        self.clients = clients
        self.every_s = every_s
        self.requests: list[Request] = []
        self._prefix = f"/load{next(_run_numbers)}"
        self._stop = threading.Event()
        self._where = where
        self._thread = threading.Thread(target=self._run_in_thread, name="load")

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def answered_by(self, name: str, *, since: float = 0.0) -> int:
        """Requests begun after `since` that `name` answered."""
        return sum(request.answered_by == name and request.started >= since for request in list(self.requests))

    def finished_since(self, when: float) -> int:
        """Requests begun after `when` that have ended."""
        return sum(request.started >= when for request in list(self.requests))

    @property
    def failed(self) -> list[Request]:
        return [request for request in list(self.requests) if request.failed]

    def shares(self) -> Counter[str]:
        return Counter(request.answered_by for request in list(self.requests))

    def _run_in_thread(self) -> None:
        with self._where():
            trio.run(self._run)

    async def _run(self) -> None:
        async with trio.open_nursery() as nursery:
            for client in range(self.clients):
                nursery.start_soon(self._client, client, nursery)

    async def _client(self, client: int, nursery: trio.Nursery) -> None:
        next_at = trio.current_time() + self.every_s * client / self.clients
        for number in itertools.count():
            await trio.sleep_until(next_at)
            if self._stop.is_set():
                return
            nursery.start_soon(self._request, f"{self._prefix}/{client}/{number}")
            next_at = max(next_at + self.every_s, trio.current_time())

    async def _request(self, target: str) -> None:
        started = time.monotonic()
        finish: Callable[..., Request] = partial(Request, target, started)
        try:
            with trio.fail_after(GIVE_UP_S):
                name = await fetch(self.address, target)
        except (OSError, trio.BrokenResourceError, trio.TooSlowError, ValueError) as error:
            result = finish(time.monotonic(), error=f"{type(error).__name__}: {error}")
        else:
            result = finish(time.monotonic(), answered_by=name)
        self.requests.append(result)


async def fetch(address: Address, target: str) -> str:
    """The body of a 200 answer, whole; ValueError for anything else."""
    stream = await trio.open_tcp_stream(*address)
    async with stream:
        await stream.send_all(f"GET {target} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while True:
            head, found, body = answer.partition(b"\r\n\r\n")
            if found:
                status, _, fields = head.partition(b"\r\n")
                if status != b"HTTP/1.1 200 OK":
                    raise ValueError(answer)
                length = int(fields.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                if len(body) >= length:
                    return body.decode()
            data = await stream.receive_some()
            if not data:
                raise ValueError(f"closed after {answer!r}")
            answer += data


def received(server: Server) -> dict[str, list[float]]:
    """Target -> when its bytes reached this backend, from the backend's journal."""
    seen: dict[str, list[float]] = {}
    for when, what in server.events():
        kind, _, target = what.partition(" ")
        if kind == "request":
            seen.setdefault(target, []).append(when)
    return seen
