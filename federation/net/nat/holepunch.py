"""From a relayed link to a direct one: both sides dial each other at the same moment.

A NAT lets in a packet that looks like an answer to one that went out. The two sides agree over the relayed link; the side
that dialled it leads. Each side takes a new port, listens and dials from it, and asks a member outside for the address that
the NAT gives this port. (A used port has left traces in NATs, and answers that do not fit them are lost.) The sides
exchange these addresses; the leader says "go", and half a round trip later both connect. SYNs that cross make one
connection that both sides dialled, so the leader speaks first in the handshake. This works where a NAT maps a port to one
address for all remotes; elsewhere the link stays relayed. Tunnels that are open on the relayed link stay there until they
end.

A peer's endpoints are its own claim, so they are bounded: this node meets only a peer to which it has a relayed link, once
in PUNCH_EVERY_S, at endpoints on its own subnets and at one or two outside them. It dials each endpoint so many times, and
one host, over all peers, no more often than `hearsay.Pace` allows. Ports of the system's services are excluded.

    leader:    [endpoint, ...]     "when"                       "go"
    other:                    [endpoint, ...]     "now"
"""

from __future__ import annotations

import errno
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import structlog
import trio

from federation.errors import FederationError, ProtocolViolation
from federation.net import wire
from federation.net.dial.address import PeerAddress, ip_address
from federation.net.dial.hearsay import Pace
from federation.net.dial.tcp import listen_beside, open_from_port
from federation.net.link.link import talk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from federation.net.host import Host
    from federation.net.link.carrier import Path
    from federation.net.link.link import Link
    from federation.net.streams import TrioStream
    from federation.units import HostPort

log = structlog.get_logger(__name__)

PROTOCOL = "/federation/punch/1"
APPOINTMENT_S = 12.0  # from the first word to "go"
PUNCH_S = 3.5  # how long both sides dial: the kernel repeats a SYN that came too early after 1 s, and after 2 s more
# With a NAT that refuses instead of dropping, timing matters: dial often at first, for PUNCH_S in all.
DIALS, DIAL_AGAIN_S, DIAL_SLOWER = 20, 0.05, 1.13
WAIT_FOR_PACE_S = 0.5
PUNCH_EVERY_S = 10.0
RETRY_AFTER_S = (0.2, PUNCH_EVERY_S, 15.0, 60.0, 300.0)  # the last one is repeated
MAX_ENDPOINTS = 12
MAX_NEAR, MAX_OUTSIDE = 4, 2  # endpoints to dial: a NAT gives one address, and there may be IPv6 beside it
MAX_GREETED = 16  # at once in a try: any machine that finds the port may connect
FIRST_PORT = 1024  # the kernel, and a NAT, take none below it
MAX_MESSAGE = 2048
NO_USE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EAFNOSUPPORT, errno.EINVAL)
Endpoint = tuple[str, int]


class Puncher:
    """Turns relayed links into direct ones. `mapped_address(listener)`: the address that a NAT gives that port, as outsiders
    see it; None: no member can tell. `own_hosts()`: this machine's addresses, for peers nearby. `is_outside(host)`: not on
    its subnets. `may_dial(address, trusted)`: whether an address makes sense from here."""

    def __init__(
        self,
        host: Host,
        *,
        mapped_address: Callable[[HostPort], Awaitable[Endpoint | None]],
        own_hosts: Callable[[], Sequence[str]],
        is_outside: Callable[[str], bool],
        may_dial: Callable[[PeerAddress, bool], bool],
    ) -> None:
        self._host = host
        self._mapped_address = mapped_address
        self._own_hosts = own_hosts
        self._is_outside = is_outside
        self._may_dial = may_dial
        self._pace = Pace()
        self._listen: HostPort | None = None
        self._nursery: trio.Nursery | None = None
        self._retry = trio.Event()
        self._punching: set[str] = set()
        self._punched_at: dict[str, float] = {}  # peer -> when the last try began, if that is not long ago
        host.handle_stream(PROTOCOL, self._follow)

    async def run(self, listen: HostPort) -> None:
        self._listen = listen
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await trio.sleep_forever()

    def peer_up(self, link: Link) -> None:
        if link.path == "relayed" and link.is_initiator and self._nursery is not None:
            self._nursery.start_soon(talk, link, self._lead_until_direct)

    def reset_backoff(self) -> None:
        """Forget failures: addresses changed, here or at a peer."""
        self._retry.set()
        self._retry = trio.Event()

    async def _lead_until_direct(self, link: Link) -> None:
        tries = 0
        while True:
            retry = self._retry
            with trio.move_on_after(RETRY_AFTER_S[min(tries, len(RETRY_AFTER_S) - 1)]):
                await retry.wait()
                tries = 0
            tries += 1
            if self._host.links.get(link.peer_id) is not link:
                return
            await self._lead(link)

    async def _lead(self, link: Link) -> None:
        try:
            async with self._bound_port(link.peer_id) as (at, listeners):
                with trio.fail_after(APPOINTMENT_S):
                    ours = await self._endpoints(at)
                    stream = await self._host.open_stream(link.peer_id, PROTOCOL)
                    async with stream:
                        await wire.send(stream, ours)
                        theirs = self._dialable(_read_endpoints(await wire.receive(stream, at_most=MAX_MESSAGE)))
                        started = trio.current_time()
                        await wire.send(stream, "when")
                        await _hear(stream, "now")
                        rtt_s = trio.current_time() - started
                        await wire.send(stream, "go")
                        await stream.send_eof()
                await trio.sleep(rtt_s / 2)
                log.debug("dialling each other", peer=link.peer_id, ours=ours, theirs=theirs)
                await self._simultaneous_open(link.peer_id, at, listeners, theirs, is_leader=True)
        except (FederationError, OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
            log.debug("no appointment for a direct connection", peer=link.peer_id, why=str(error) or type(error).__name__)

    async def _follow(self, link: Link, stream: TrioStream) -> None:
        peer_id = link.peer_id
        async with self._bound_port(peer_id) as (at, listeners):
            with trio.fail_after(APPOINTMENT_S):
                async with stream:
                    theirs = self._dialable(_read_endpoints(await wire.receive(stream, at_most=MAX_MESSAGE)))
                    ours = await self._endpoints(at)
                    await wire.send(stream, ours)
                    await _hear(stream, "when")
                    await wire.send(stream, "now")
                    await _hear(stream, "go")
            log.debug("dialling each other", peer=peer_id, ours=ours, theirs=theirs)
            await self._simultaneous_open(peer_id, at, listeners, theirs, is_leader=False)

    @asynccontextmanager
    async def _bound_port(self, peer_id: str) -> AsyncIterator[tuple[HostPort, list[trio.SocketListener]]]:
        """Bind a port for one try. Raises OSError, and ProtocolViolation if a try makes no sense, or not yet."""
        if peer_id in self._punching or self._listen is None:
            raise ProtocolViolation("we are about to meet already")  # both dialled a relayed link at once, and both lead
        link = self._host.links.get(peer_id)
        if link is None or link.path != "relayed":
            raise ProtocolViolation("only who is connected through a relay needs to be met")
        now = trio.current_time()
        self._punched_at = {known: at for known, at in self._punched_at.items() if now - at < PUNCH_EVERY_S}
        if peer_id in self._punched_at:
            raise ProtocolViolation("we have met a moment ago")
        self._punched_at[peer_id] = now
        self._punching.add(peer_id)
        try:
            at, listeners = await listen_beside(self._listen)
            try:
                yield at, listeners
            finally:
                for listener in listeners:
                    listener.socket.close()
        finally:
            self._punching.discard(peer_id)

    async def _endpoints(self, at: HostPort) -> list[Endpoint]:
        mapped = await self._mapped_address(at)
        own = [(host, at.port) for host in self._own_hosts()]
        return list(dict.fromkeys((*([mapped] if mapped is not None else []), *own)))[:MAX_ENDPOINTS]

    def _dialable(self, theirs: list[PeerAddress]) -> list[Endpoint]:
        """The endpoints to dial: those that make sense from here, on our own subnets and, fewer, outside them."""
        sound = [a for a in dict.fromkeys(theirs) if a.port >= FIRST_PORT and self._may_dial(a, False)]
        near = [a for a in sound if not self._is_outside(a.host)][:MAX_NEAR]
        outside = [a for a in sound if self._is_outside(a.host)][:MAX_OUTSIDE]
        return [(a.host, a.port) for a in (*outside, *near)]

    async def _simultaneous_open(
        self, peer_id: str, at: HostPort, listeners: list[trio.SocketListener], theirs: list[Endpoint], *, is_leader: bool
    ) -> None:
        """Dial all endpoints, and accept connections at our port, until there is a direct link."""
        found = trio.Event()
        greeted = trio.CapacityLimiter(MAX_GREETED)
        with trio.move_on_after(PUNCH_S) as attempt:
            async with trio.open_nursery() as nursery:
                for listener in listeners:
                    nursery.start_soon(self._open, nursery, greeted, listener, peer_id, is_leader, found)
                for endpoint in theirs:
                    nursery.start_soon(self._dial_repeatedly, at, endpoint, peer_id, is_leader, found)
                await found.wait()
                nursery.cancel_scope.cancel()
        if attempt.cancelled_caught:
            log.debug("no direct connection could be made; the relay stays", peer=peer_id)

    async def _open(
        self, nursery: trio.Nursery, greeted: trio.CapacityLimiter, listener: trio.SocketListener, peer_id: str,
        is_leader: bool, found: trio.Event,
    ) -> None:  # fmt: skip
        async def greet(stream: trio.SocketStream, host: str) -> None:
            try:
                await self._greet(stream, host, peer_id, is_leader, found)
            finally:
                greeted.release_on_behalf_of(stream)

        while True:
            try:
                stream = await listener.accept()
                host = stream.socket.getpeername()[0]
            except OSError:
                await trio.sleep(DIAL_AGAIN_S)
                continue
            try:
                greeted.acquire_on_behalf_of_nowait(stream)
            except trio.WouldBlock:
                await trio.aclose_forcefully(stream)
                continue
            nursery.start_soon(greet, stream, host)

    async def _dial_repeatedly(
        self, at: HostPort, endpoint: Endpoint, peer_id: str, is_leader: bool, found: trio.Event
    ) -> None:
        pause_s = DIAL_AGAIN_S
        for _ in range(DIALS):
            while not self._pace.take(endpoint[0], trio.current_time()):  # noqa: ASYNC110  # a bucket fills by itself
                await trio.sleep(WAIT_FOR_PACE_S)
            if not await self._dial_once(at, endpoint, peer_id, is_leader, found):
                return
            await trio.sleep(pause_s)
            pause_s *= DIAL_SLOWER

    async def _dial_once(self, at: HostPort, endpoint: Endpoint, peer_id: str, is_leader: bool, found: trio.Event) -> bool:
        """Dial an endpoint once. Returns whether another try makes sense."""
        try:
            stream = await open_from_port(at, *endpoint, within_s=PUNCH_S)
        except OSError as error:
            return _errno(error) not in NO_USE
        await self._greet(stream, endpoint[0], peer_id, is_leader, found)
        return True

    async def _greet(self, stream: trio.SocketStream, host: str, peer_id: str, is_leader: bool, found: trio.Event) -> None:
        path: Path = "punched" if self._is_outside(host) else "direct"
        try:
            await self._host.link_from_punch(stream, peer_id, is_leader=is_leader, path=path)
        except Exception as error:  # noqa: BLE001  # as in Host._admit: any program may answer there
            log.debug("somebody else, or nobody, is there", peer=peer_id, at=host, why=str(error) or type(error).__name__)
        else:
            found.set()


async def _hear(stream: TrioStream, word: str) -> None:
    if await wire.receive(stream, at_most=MAX_MESSAGE) != word:
        raise ProtocolViolation("not the word that was agreed")


def _errno(error: OSError) -> int | None:
    return error.errno if error.errno is not None else getattr(error.__cause__, "errno", None)


def _read_endpoints(message: Any) -> list[PeerAddress]:
    """Read a peer's endpoints. Raises ProtocolViolation. Older versions may name more endpoints than make sense here."""
    if not isinstance(message, list) or len(message) > MAX_ENDPOINTS:
        raise ProtocolViolation("not a list of endpoints")
    return [_read_endpoint(item) for item in message]


def _read_endpoint(item: Any) -> PeerAddress:
    match item:
        case [str(host), int(port)] if (address := ip_address(host, port)) is not None:
            return address
    raise ProtocolViolation("an endpoint is an IP address and a port")
