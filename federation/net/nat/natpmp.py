"""A port forwarding on the router, asked for by NAT-PMP (RFC 6886), which routers that speak PCP answer too."""

from __future__ import annotations

import socket
import struct

import trio

from federation.net.nat.mapping import MappingRefused

PORT = 5351
FIRST_WAIT_S, WAITS = 0.25, 5  # each wait twice as long as the one before, as the RFC has it
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


async def map_port(
    gateway: str | None, internal: int, external: int, lifetime_s: int, *, port: int = PORT
) -> tuple[int, int]:
    """A mapping.Ask. The router chooses the port; at `external` 0 and `lifetime_s` 0 it takes back whatever leads here."""
    if gateway is None:
        raise MappingRefused("no router is known to this machine")
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
