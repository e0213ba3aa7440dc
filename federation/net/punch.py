"""From a relayed link to a direct one: both sides dial each other at the same moment.

A NAT lets in what looks like an answer to what went out. The relayed link carries the appointment: the side that dialled it
leads. Each side takes a new port, listens and dials from it, and has a member outside say what the NAT makes of it: a port
that was used before has left traces in NATs, and answers that do not fit them are lost. They tell each other where they
are to be met; "go", and half a round trip later both connect. SYNs that cross make one connection that both sides dialled,
so who speaks first in the handshake is agreed: the leader. Works where NATs give a port the same face to everybody;
elsewhere the link stays relayed. Tunnels that are open on the relayed link stay there until they end.

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
from federation.net import messages
from federation.net.addresses import PeerAddress
from federation.net.dialler import listen_beside, open_from_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from federation.net.host import Host
    from federation.net.link import Link, Path
    from federation.net.streams import TrioStream
    from federation.values import HostPort

log = structlog.get_logger(__name__)

PROTOCOL = "/federation/punch/1"
APPOINTMENT_S = 12.0  # from the first word to "go"
MEETING_S = 3.5  # how long both knock: a SYN that came too early is sent again after 1 s, and after 2 s more
KNOCK_AGAIN_S = 0.05  # a NAT that refuses instead of dropping has to be hit at the right moment
RETRY_AFTER_S = (0.2, 2.0, 5.0, 15.0, 60.0, 300.0)  # the last one is repeated
MAX_ENDPOINTS = 12
MAX_MESSAGE = 2048
NO_USE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EAFNOSUPPORT, errno.EINVAL)
Endpoint = tuple[str, int]


class Puncher:
    """`face_of(listener)`: how outsiders see that port of ours; None: nobody can tell. `own_hosts()`: this machine's own
    addresses, where a peer on the same network meets us. `is_outside(host)`: not on this machine's own subnets."""

    def __init__(
        self,
        host: Host,
        *,
        face_of: Callable[[HostPort], Awaitable[Endpoint | None]],
        own_hosts: Callable[[], Sequence[str]],
        is_outside: Callable[[str], bool],
    ) -> None:
        self._host = host
        self._face_of = face_of
        self._own_hosts = own_hosts
        self._is_outside = is_outside
        self._listen: HostPort | None = None
        self._nursery: trio.Nursery | None = None
        self._again = trio.Event()
        self._meeting: set[str] = set()
        host.handle_stream(PROTOCOL, self._follow)

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
            async with self._door(link.peer) as (at, listeners):
                with trio.fail_after(APPOINTMENT_S):
                    ours = await self._endpoints(at)
                    stream = await self._host.open_stream(link.peer, PROTOCOL)
                    async with stream:
                        await messages.send(stream, ours)
                        theirs = _read_endpoints(await messages.receive(stream, at_most=MAX_MESSAGE))
                        started = trio.current_time()
                        await messages.send(stream, "when")
                        await _hear(stream, "now")
                        rtt_s = trio.current_time() - started
                        await messages.send(stream, "go")
                        await stream.send_eof()
                await trio.sleep(rtt_s / 2)
                log.debug("dialling each other", peer=link.peer, ours=ours, theirs=theirs)
                await self._meet(link.peer, at, listeners, theirs, leads=True)
        except (FederationError, OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
            log.debug("no appointment for a direct connection", peer=link.peer, why=str(error) or type(error).__name__)

    async def _follow(self, link: Link, stream: TrioStream) -> None:
        peer = link.peer
        async with self._door(peer) as (at, listeners):
            with trio.fail_after(APPOINTMENT_S):
                async with stream:
                    theirs = _read_endpoints(await messages.receive(stream, at_most=MAX_MESSAGE))
                    ours = await self._endpoints(at)
                    await messages.send(stream, ours)
                    await _hear(stream, "when")
                    await messages.send(stream, "now")
                    await _hear(stream, "go")
            log.debug("dialling each other", peer=peer, ours=ours, theirs=theirs)
            await self._meet(peer, at, listeners, theirs, leads=False)

    @asynccontextmanager
    async def _door(self, peer: str) -> AsyncIterator[tuple[HostPort, list[trio.SocketListener]]]:
        """A port for one meeting. Raises OSError, and ProtocolViolation while another one with the peer goes on."""
        if peer in self._meeting or self._listen is None:
            raise ProtocolViolation("we are about to meet already")  # both had a relayed link for a moment, and both lead
        self._meeting.add(peer)
        try:
            at, listeners = await listen_beside(self._listen)
            try:
                yield at, listeners
            finally:
                for listener in listeners:
                    listener.socket.close()
        finally:
            self._meeting.discard(peer)

    async def _endpoints(self, at: HostPort) -> list[Endpoint]:
        face = await self._face_of(at)
        own = [(host, at.port) for host in self._own_hosts()]
        return list(dict.fromkeys((*([face] if face is not None else []), *own)))[:MAX_ENDPOINTS]

    async def _meet(
        self, peer: str, at: HostPort, listeners: list[trio.SocketListener], theirs: list[Endpoint], *, leads: bool
    ) -> None:
        """Knock everywhere and open whoever knocks, until there is a direct link."""
        found = trio.Event()
        with trio.move_on_after(MEETING_S) as meeting:
            async with trio.open_nursery() as nursery:
                for listener in listeners:
                    nursery.start_soon(self._open, nursery, listener, peer, leads, found)
                for endpoint in theirs:
                    nursery.start_soon(self._knock, at, endpoint, peer, leads, found)
                await found.wait()
                nursery.cancel_scope.cancel()
        if meeting.cancelled_caught:
            log.debug("no direct connection could be made; the relay stays", peer=peer)

    async def _open(
        self, nursery: trio.Nursery, listener: trio.SocketListener, peer: str, leads: bool, found: trio.Event
    ) -> None:
        while True:
            try:
                stream = await listener.accept()
                host = stream.socket.getpeername()[0]
            except OSError:
                await trio.sleep(KNOCK_AGAIN_S)
                continue
            nursery.start_soon(self._greet, stream, host, peer, leads, found)

    async def _knock(self, at: HostPort, endpoint: Endpoint, peer: str, leads: bool, found: trio.Event) -> None:
        while await self._knock_once(at, endpoint, peer, leads, found):  # noqa: ASYNC110  # a pause
            await trio.sleep(KNOCK_AGAIN_S)

    async def _knock_once(self, at: HostPort, endpoint: Endpoint, peer: str, leads: bool, found: trio.Event) -> bool:
        """Whether it is worth another try."""
        try:
            stream = await open_from_port(at, *endpoint, within_s=MEETING_S)
        except OSError as error:
            return _errno(error) not in NO_USE
        await self._greet(stream, endpoint[0], peer, leads, found)
        return True

    async def _greet(self, stream: trio.SocketStream, host: str, peer: str, leads: bool, found: trio.Event) -> None:
        path: Path = "punched" if self._is_outside(host) else "direct"
        try:
            await self._host.met(stream, peer, leads=leads, path=path)
        except Exception as error:  # noqa: BLE001  # as in Host._admit: whoever is there
            log.debug("somebody else, or nobody, is there", peer=peer, at=host, why=str(error) or type(error).__name__)
        else:
            found.set()


async def _hear(stream: TrioStream, word: str) -> None:
    if await messages.receive(stream, at_most=MAX_MESSAGE) != word:
        raise ProtocolViolation("not the word that was agreed")


def _errno(error: OSError) -> int | None:
    return error.errno if error.errno is not None else getattr(error.__cause__, "errno", None)


def _is_meetable(address: PeerAddress) -> bool:
    """Not on this very machine: nobody has us knock at our own services."""
    return address.ip is not None and not address.is_loopback and not address.ip.is_link_local


def _read_endpoints(message: Any) -> list[Endpoint]:
    if not isinstance(message, list) or len(message) > MAX_ENDPOINTS:
        raise ProtocolViolation("not a list of endpoints")
    endpoints: list[Endpoint] = []
    for item in message:
        match item:
            case [str(host), int(port)]:
                address = PeerAddress.parse(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
                if not _is_meetable(address):
                    raise ProtocolViolation("not where anybody can be met")
                endpoints.append((address.host, address.port))
            case _:
                raise ProtocolViolation("an endpoint is a host and a port")
    return endpoints
