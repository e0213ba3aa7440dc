"""A port forwarding on the router, asked for by UPnP IGD: for the many home routers that do not answer NAT-PMP.

miniupnpc does it, a C library that py-libp2p installs. It waits in its own calls, so they run in a thread: one at a time,
and a router that never ends its answer keeps that thread, not the node. Any machine of the LAN can answer the search; only
the default gateway is asked for anything, where this machine knows which that is.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import trio

from federation.net.nat.mapping import MappingRefused

if TYPE_CHECKING:
    from collections.abc import Callable

SEARCH_MS = 1500  # for answers to the search
PATIENCE_S = 20.0
TRIED_PORTS = 8  # one after another, where other machines have the first ones
NAME = "federation"  # which the router shows beside the forwarding


def _library() -> Any:
    import miniupnpc  # type: ignore[import-not-found,unused-ignore]

    return miniupnpc.UPnP()


class Upnp:
    """`library()`: a new miniupnpc.UPnP."""

    def __init__(self, library: Callable[[], Any] = _library) -> None:
        self._library = library
        self._router: Any = None  # that gave the port: there is no time for a search at the end
        self._one_at_a_time = trio.CapacityLimiter(1)  # no second thread joins one that is stuck

    async def map_port(self, gateway: str | None, internal: int, external: int, lifetime_s: int) -> tuple[int, int]:
        """A mapping.Ask."""
        try:
            with trio.fail_after(PATIENCE_S):
                work = partial(self._map_port, gateway, internal, external, lifetime_s)
                limiter = self._one_at_a_time
                return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=limiter)  # type: ignore[call-arg]
        except trio.TooSlowError:
            raise MappingRefused("the router does not end its answer") from None

    def _map_port(self, gateway: str | None, internal: int, external: int, lifetime_s: int) -> tuple[int, int]:
        """The thread's work."""
        if lifetime_s:
            self._router = None
            self._router = router = self._find(gateway)
        elif (router := self._router) is None:
            return external, 0
        try:
            if not lifetime_s:
                router.deleteportmapping(external, "TCP")
                return external, 0
            for port in range(external, min(external + TRIED_PORTS, 65536)):
                there = router.getspecificportmapping(port, "TCP")
                if there is None or there[0] == router.lanaddr:
                    return port, _add(router, port, internal, lifetime_s)
        except Exception as error:  # noqa: BLE001  # the library raises nothing else
            raise MappingRefused(f"the router refuses ({error})") from None
        raise MappingRefused("other machines have these ports")

    def _find(self, gateway: str | None) -> Any:
        """Raises MappingRefused if the router is not found."""
        try:
            router = self._library()
        except ImportError:
            raise MappingRefused("not asked, miniupnpc is not installed") from None
        router.discoverdelay = SEARCH_MS
        try:
            router.discover()
            url = router.selectigd()
        except Exception:  # noqa: BLE001  # the library raises nothing else
            raise MappingRefused("no router answers") from None
        host = urlsplit(url).hostname if isinstance(url, str) else None
        if gateway is not None and host is not None and host != gateway:
            raise MappingRefused(f"{host} answers, and the router is {gateway}")
        return router


def _add(router: Any, external: int, internal: int, lifetime_s: int) -> int:
    """For how many seconds it was given."""
    try:
        router.addportmapping(external, "TCP", router.lanaddr, internal, NAME, "", lifetime_s)
    except Exception:  # noqa: BLE001  # many routers know only forwardings for good
        router.addportmapping(external, "TCP", router.lanaddr, internal, NAME, "", 0)
        return 0
    return lifetime_s
