"""A port forwarding on the router, asked for by NAT-PMP (RFC 6886), which routers that speak PCP answer too.

The node believes the router's port only once members have reached it there (reachability.py), and announces it then. It
renews the forwarding before it runs out, and gives it back at the end.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import trio

if TYPE_CHECKING:
    from collections.abc import Callable

log = structlog.get_logger(__name__)

PORT = 5351
LIFETIME_S = 3600  # a router that restarts forgets; the node asks again every half of that
RETRY_S = 120.0
FIRST_WAIT_S, WAITS = 0.25, 5  # each wait twice as long as the one before, as the RFC has it
GOODBYE_S = 0.5
MAP_TCP = 2
_REQUEST = struct.Struct(">BBHHHI")
_ANSWER = struct.Struct(">BBHIHHI")
_RESULTS = {
    1: "it does not speak this version",
    2: "it is not allowed there",
    3: "it has no network itself",
    4: "it has no room left",
    5: "it does not know how",
}


def default_gateway(routes: Path = Path("/proc/net/route")) -> str | None:
    """The router's IPv4 address, from the kernel's table; None without a router or without such a table."""
    try:
        lines = routes.read_text().splitlines()[1:]
    except OSError:
        return None
    for line in lines:
        fields = line.split()
        if len(fields) > 7 and fields[1] == "00000000" and fields[7] == "00000000" and int(fields[3], 16) & 2:
            return str(ipaddress.IPv4Address(int(fields[2], 16).to_bytes(4, "little")))
    return None


class MappingRefused(Exception):
    """The router's refusal, in words for a person."""


async def map_port(gateway: str, internal: int, external: int, lifetime_s: int, *, port: int = PORT) -> tuple[int, int]:
    """Ask for TCP `external` -> our `internal`: (the port that was given, for how many seconds). Raises MappingRefused.

    `lifetime_s` 0 gives it back.
    """
    request = _REQUEST.pack(0, MAP_TCP, 0, internal, external, lifetime_s)
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            await sock.connect((gateway, port))  # so that answers of other machines do not arrive
            for number in range(WAITS):
                await sock.send(request)
                with trio.move_on_after(FIRST_WAIT_S * 2**number):
                    return await _answer(sock, internal)
        except OSError as error:
            raise MappingRefused(f"the router {gateway} does not answer ({error.strerror})") from None
    raise MappingRefused(f"the router {gateway} does not answer")


async def _answer(sock: trio.socket.SocketType, internal: int) -> tuple[int, int]:
    while True:
        data = await sock.recv(64)
        if len(data) < _ANSWER.size:
            if len(data) >= 4 and data[1] & 128 and data[2:4] != b"\0\0":
                raise MappingRefused(_RESULTS.get(int.from_bytes(data[2:4], "big"), "the router refuses"))
            continue
        _, kind, result, _, port, external, lifetime_s = _ANSWER.unpack_from(data)
        if kind != 128 + MAP_TCP:
            continue
        if result:
            raise MappingRefused(f"the router refuses: {_RESULTS.get(result, f'result {result}')}")
        if port == internal:
            return external, lifetime_s


class PortMapping:
    """Keeps a forwarding. Calls `on_mapped(port)` with the router's port that leads here, or None once none does."""

    def __init__(self, port: int, on_mapped: Callable[[int | None], None]) -> None:
        self._port = port
        self._on_mapped = on_mapped
        self.external: int | None = None
        self.problem = "not asked yet"  # of the last request; empty if it went well

    async def run(self) -> None:
        gateway = None
        try:
            while True:
                gateway = default_gateway()
                await trio.sleep(await self._renew(gateway))
        finally:
            if gateway is not None and self.external is not None:
                with trio.move_on_after(GOODBYE_S) as scope:
                    scope.shield = True
                    await self._give_back(gateway)

    async def _renew(self, gateway: str | None) -> float:
        """Ask once. Returns the seconds until the next request."""
        try:
            if gateway is None:
                raise MappingRefused("no router is known to this machine")
            external, lifetime_s = await map_port(gateway, self._port, self.external or self._port, LIFETIME_S)
            if not external:
                raise MappingRefused(f"the router {gateway} names no port")
        except MappingRefused as refusal:
            if self.problem != str(refusal):
                log.warning("the router forwards no port to this node", why=str(refusal))
            self.problem = str(refusal)
            self._set(None)
            return RETRY_S
        self.problem = ""
        if external != self.external:
            log.info("the router forwards a port to this node", port=external)
        self._set(external)
        return max(60.0, min(lifetime_s, LIFETIME_S) / 2)  # a false router can claim 68 years

    def _set(self, external: int | None) -> None:
        if external != self.external:
            self.external = external
            self._on_mapped(external)

    async def _give_back(self, gateway: str) -> None:
        try:
            await map_port(gateway, self._port, 0, 0)
        except MappingRefused as refusal:
            log.debug("the forwarding was not given back", why=str(refusal))
