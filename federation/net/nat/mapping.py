"""A port forwarding on the router, kept for as long as the node runs.

A router is asked in the ways of WAYS, one after another, and then in the one that worked. The node believes the router's
port only once members have reached it there (reachability.py), and announces it then. It renews the forwarding before it
runs out, and gives it back at the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import structlog
import trio

from federation.net.nat.gateway import default_gateway

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

log = structlog.get_logger(__name__)

LIFETIME_S = 3600  # a router that restarts forgets; the node asks again every half of that
RETRY_S = 120.0
GOODBYE_S = 1.0


class MappingRefused(Exception):
    """The router's refusal, in words for a person."""


class Ask(Protocol):
    async def __call__(self, gateway: str | None, internal: int, external: int, lifetime_s: int, /) -> tuple[int, int]:
        """Ask for TCP `external` -> our `internal`: (the port that was given, for how many seconds; 0: for good).

        `lifetime_s` 0 gives it back. Raises MappingRefused.
        """


class Way(NamedTuple):
    name: str  # for people
    ask: Ask


class PortMapping:
    """Calls `on_mapped(port)` with the router's port that leads here, or None once none does."""

    def __init__(
        self,
        port: int,
        on_mapped: Callable[[int | None], None],
        ways: Sequence[Way],
        *,
        gateway: Callable[[], Awaitable[str | None]] = default_gateway,
    ) -> None:
        self._port = port
        self._on_mapped = on_mapped
        self._ways = list(ways)
        self._find_gateway = gateway
        self._gateway: str | None = None
        self.external: int | None = None
        self.way = ""  # that worked
        self.problem = "the router has not answered yet"  # of the last round; empty if it went well

    async def run(self) -> None:
        try:
            while True:
                self._gateway = await self._find_gateway()
                await trio.sleep(await self._renew())
        finally:
            if self.external is not None:
                with trio.move_on_after(GOODBYE_S) as scope:
                    scope.shield = True
                    await self._give_back(self.external)

    async def _renew(self) -> float:
        """Ask once in each way, until one works. Returns the seconds until the next round."""
        problems = []
        for way in list(self._ways):
            try:
                external, lifetime_s = await way.ask(self._gateway, self._port, self.external or self._port, LIFETIME_S)
            except MappingRefused as refusal:
                problems.append(f"{way.name}: {refusal}")
                continue
            self._ways.sort(key=lambda other: other is not way)
            self.way, self.problem = way.name, ""
            if external != self.external:
                log.info("the router forwards a port to this node", port=external, asked_by=way.name)
            self._set(external)
            # A false router can claim 68 years; one that forgets at a restart may say "for good".
            return max(60.0, min(lifetime_s or LIFETIME_S, LIFETIME_S) / 2)
        problem = "; ".join(problems)
        if self.problem != problem:
            log.warning("the router forwards no port to this node", why=problem)
        self.way, self.problem = "", problem
        self._set(None)
        return RETRY_S

    def _set(self, external: int | None) -> None:
        if external != self.external:
            self.external = external
            self._on_mapped(external)

    async def _give_back(self, external: int) -> None:
        try:
            await self._ways[0].ask(self._gateway, self._port, external, 0)
        except MappingRefused as refusal:
            log.debug("the forwarding was not given back", why=str(refusal))
