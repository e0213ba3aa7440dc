"""From a relayed link to a direct one: both sides dial each other at the same moment, each from the port where it listens.

A NAT lets in what looks like an answer to what went out. The relayed link carries the appointment: the side that dialled it
leads. It says where it can be met, hears the same, and takes the time of that; "go", and half a round trip later both
connect. SYNs that cross make one connection that both sides dialled, so who speaks first in the handshake is agreed: the
leader. Works where NATs give a port the same face to everybody; elsewhere the link stays relayed. Tunnels that are open on
the relayed link stay there until they end.

    leader:    [endpoint, ...]     the other:    [endpoint, ...]     leader:    "go"
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog
import trio

from federation.errors import FederationError, ProtocolViolation
from federation.net import messages
from federation.net.addresses import PeerAddress
from federation.net.dialler import open_from_port

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from federation.net.host import Host
    from federation.net.link import Link, Path
    from federation.net.streams import TrioStream
    from federation.values import HostPort

log = structlog.get_logger(__name__)

PROTOCOL = "/federation/punch/1"
APPOINTMENT_S = 8.0  # from the first word to "go"
MEETING_S = 3.5  # how long both knock: a SYN that came too early is sent again after 1 s, and after 2 s more
KNOCK_AGAIN_S = 0.05  # a NAT that refuses instead of dropping has to be hit at the right moment
RETRY_AFTER_S = (0.2, 2.0, 5.0, 15.0, 60.0, 300.0)  # the last one is repeated
MAX_ENDPOINTS = 12
MAX_MESSAGE = 2048
Endpoint = tuple[str, int]


class Puncher:
    """`endpoints()`: where this node may be met, best first. `is_outside(host)`: not on this machine's own subnets."""

    def __init__(
        self, host: Host, *, endpoints: Callable[[], Sequence[Endpoint]], is_outside: Callable[[str], bool]
    ) -> None:
        self._host = host
        self._endpoints = endpoints
        self._is_outside = is_outside
        self._listen: HostPort | None = None
        self._nursery: trio.Nursery | None = None
        self._again = trio.Event()
        self._meeting: set[str] = set()
        host.handle_stream(PROTOCOL, self._answer)

    async def run(self, listen: HostPort) -> None:
        self._listen = listen
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await trio.sleep_forever()

    def peer_up(self, link: Link) -> None:
        if link.path == "relayed" and link.is_initiator and self._nursery is not None:
            self._nursery.start_soon(self._lead_until_direct, link)

    def again(self) -> None:
        """Addresses changed, here or at a peer: what failed may work now."""
        self._again.set()
        self._again = trio.Event()

    async def _lead_until_direct(self, link: Link) -> None:
        tries = 0
        while True:
            again = self._again
            with trio.move_on_after(RETRY_AFTER_S[min(tries, len(RETRY_AFTER_S) - 1)]):
                await again.wait()
                tries = 0
            tries += 1
            if self._host.links.get(link.peer) is not link:
                return
            await self._lead(link)

    async def _lead(self, link: Link) -> None:
        try:
            with trio.fail_after(APPOINTMENT_S):
                stream = await self._host.open_stream(link.peer, PROTOCOL)
                async with stream:
                    started = trio.current_time()
                    await messages.send(stream, list(self._endpoints()))
                    theirs = _read_endpoints(await messages.receive(stream, at_most=MAX_MESSAGE))
                    rtt_s = trio.current_time() - started
                    await messages.send(stream, "go")
                    await stream.send_eof()
            await trio.sleep(rtt_s / 2)
        except (FederationError, OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
            log.debug("no appointment for a direct connection", peer=link.peer, why=str(error) or type(error).__name__)
            return
        await self._meet(link.peer, theirs, leads=True)

    async def _answer(self, peer: str, stream: TrioStream) -> None:
        with trio.move_on_after(APPOINTMENT_S) as patience:
            async with stream:
                theirs = _read_endpoints(await messages.receive(stream, at_most=MAX_MESSAGE))
                await messages.send(stream, list(self._endpoints()))
                if await messages.receive(stream, at_most=MAX_MESSAGE) != "go":
                    raise ProtocolViolation("not the word that was agreed")
        if not patience.cancelled_caught and self._nursery is not None:
            self._nursery.start_soon(self._meet_as_led, peer, theirs)

    async def _meet_as_led(self, peer: str, theirs: list[Endpoint]) -> None:
        await self._meet(peer, theirs, leads=False)

    async def _meet(self, peer: str, theirs: list[Endpoint], *, leads: bool) -> None:
        """Knock everywhere until there is a direct link."""
        if peer in self._meeting:
            return  # both had a relayed link of their own for a moment, and both led
        self._meeting.add(peer)
        log.debug("dialling each other", peer=peer, theirs=theirs, ours=self._endpoints())
        host = self._host
        found = trio.Event()
        for endpoint in theirs:  # the other's SYN may find our listener instead of our own
            host.expected[endpoint] = (peer, leads, self._path(endpoint), found)
        try:
            with trio.move_on_after(MEETING_S) as meeting:
                async with trio.open_nursery() as nursery:
                    for endpoint in theirs:
                        nursery.start_soon(self._knock, peer, endpoint, leads, found)
                    await found.wait()
                    nursery.cancel_scope.cancel()
        finally:
            self._meeting.discard(peer)
            for endpoint in theirs:
                if host.expected.get(endpoint, (None, None, None, None))[3] is found:
                    del host.expected[endpoint]
        if meeting.cancelled_caught:
            log.debug("no direct connection could be made; the relay stays", peer=peer)

    async def _knock(self, peer: str, endpoint: Endpoint, leads: bool, found: trio.Event) -> None:
        while not found.is_set() and await self._knock_once(peer, endpoint, leads, found):  # noqa: ASYNC110  # a pause
            await trio.sleep(KNOCK_AGAIN_S)

    async def _knock_once(self, peer: str, endpoint: Endpoint, leads: bool, found: trio.Event) -> bool:
        """Whether it is worth another try."""
        assert self._listen is not None
        try:
            stream = await open_from_port(self._listen, *endpoint, within_s=MEETING_S)
        except ConnectionRefusedError:
            return True
        except OSError as error:
            log.debug("no way there from here", peer=peer, at=endpoint, why=str(error))
            return False
        try:
            await self._host.met(stream, peer, leads=leads, path=self._path(endpoint))
        except Exception as error:  # noqa: BLE001  # as in Host._admit: whoever answers there
            log.debug("a knock was answered in vain", peer=peer, at=endpoint, why=str(error) or type(error).__name__)
        else:
            found.set()
        return True

    def _path(self, endpoint: Endpoint) -> Path:
        return "punched" if self._is_outside(endpoint[0]) else "direct"


def _read_endpoints(message: Any) -> list[Endpoint]:
    if not isinstance(message, list) or len(message) > MAX_ENDPOINTS:
        raise ProtocolViolation("not a list of endpoints")
    endpoints: list[Endpoint] = []
    for item in message:
        match item:
            case [str(host), int(port)]:
                address = PeerAddress.parse(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
                if address.ip is None or address.is_loopback or address.ip.is_link_local:
                    raise ProtocolViolation("not where anybody can be met")
                endpoints.append((address.host, address.port))
            case _:
                raise ProtocolViolation("an endpoint is a host and a port")
    return endpoints
