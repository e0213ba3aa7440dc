"""Members find each other on the local network by multicast DNS.

A node announces a DNS-SD service whose type and instance name are keyed hashes under the token's rendezvous, so they tell
an outsider nothing of the network. The TXT record holds peer id and addresses under a MAC with that key, so that an
outsider cannot make members dial addresses of his choice. SRV, A and AAAA repeat the addresses for common tools
(`avahi-browse -r`); members believe the TXT record alone.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import hashlib
import hmac
import secrets
import socket
import sys
import time
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING

import structlog
import trio
from zeroconf import Error as ZeroconfError
from zeroconf import ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

from federation.errors import UsageError
from federation.net.dial.address import PeerAddress
from federation.net.dial.book import MAX_ADDRESSES
from federation.net.discover.interfaces import multicast_interfaces
from federation.ratelimit import Bucket

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from trio_typing import TaskStatus

log = structlog.get_logger(__name__)

CHECK_S = 5.0  # a change of address is announced this late at most
RETRY_S = 60.0  # without multicast: the machine's network may not be up yet
RESOLVE_MS = 3000  # zeroconf's own default
# Members send their TXT record with their name, so hardly any name needs a query. A query blocks the browser's thread, and
# any machine on the LAN can announce names without a record, so queries are few.
RESOLVES_A_SECOND, RESOLVES_AT_ONCE = 1 / 15, 4.0
START_TIMEOUT_S = 10.0  # zeroconf gives its own start nine

_IP_MULTICAST_ALL = 49  # <linux/in.h>; Python has no name for it


# The announcement


def service_name(rendezvous: str) -> str:
    """DNS-SD type of the network: 15 characters at most (RFC 6763, section 7.2)."""
    return f"_fed-{_keyed(rendezvous, 'type')[:10]}._tcp.local."


def instance_name(rendezvous: str, peer_id: str) -> str:
    return f"{_keyed(rendezvous, 'instance', peer_id)[:16]}.{service_name(rendezvous)}"


def encode_txt(rendezvous: str, peer_id: str, addresses: Sequence[PeerAddress], *, nonce: str) -> dict[bytes, bytes]:
    """The TXT record. A new nonce makes a restarted node's announcement news to members that know the node."""
    texts = [str(replace(address, peer_id=None)) for address in addresses][:MAX_ADDRESSES]
    texts = [text for text in texts if len(text) <= 250]  # "aN=" and the address share 255 bytes
    fields = {"id": peer_id, "n": nonce, **{f"a{i}": text for i, text in enumerate(texts)}}
    fields["m"] = _keyed(rendezvous, "txt", peer_id, nonce, *texts)
    return {key.encode(): value.encode() for key, value in fields.items()}


def decode_txt(rendezvous: str, txt: Mapping[bytes, bytes | None]) -> list[PeerAddress]:
    """The addresses in a TXT record, with the peer id; none if a member did not write it."""
    try:
        fields = {key.decode("ascii"): (value or b"").decode("ascii") for key, value in txt.items()}
        texts = [fields[key] for key in (f"a{i}" for i in range(MAX_ADDRESSES)) if key in fields]
        mac = _keyed(rendezvous, "txt", fields["id"], fields["n"], *texts)
        if not hmac.compare_digest(mac, fields["m"]):
            return []
        return [PeerAddress.parse(f"{text}/p2p/{fields['id']}") for text in texts]
    except (KeyError, UnicodeDecodeError, UsageError):
        return []


def _keyed(rendezvous: str, *parts: str) -> str:
    """HMAC-SHA256 cut to 128 bits, in hex. Lengths keep the parts apart, since a remote may have chosen them."""
    message = "".join(f"{len(part)}:{part}" for part in ("mdns", *parts))
    return hmac.new(rendezvous.encode(), message.encode(), hashlib.sha256).hexdigest()[:32]


# The service


@dataclass(frozen=True, slots=True)
class _Plan:
    """All values that a session depends on: a change of one begins a new session."""

    addresses: tuple[PeerAddress, ...]
    interfaces: tuple[str | int, ...]


class Mdns:
    """Announces this node on the local network and finds the others of its network there.

    `addresses()`: those of this node; asked every CHECK_S. `on_found` is called on trio's thread, once
    for each address whenever a peer announces itself, and must not raise. `interfaces` restricts multicast to these
    addresses of this machine.
    """

    def __init__(
        self,
        *,
        rendezvous: str,
        peer_id: str,
        addresses: Callable[[], list[PeerAddress]],
        on_found: Callable[[PeerAddress], None],
        interfaces: list[str] | None = None,
    ) -> None:
        self._rendezvous = rendezvous
        self._peer_id = peer_id
        self._addresses = addresses
        self._on_found = on_found
        self._interfaces = interfaces

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled, then say goodbye. Where there is no multicast, warn once and retry now and then."""
        trio_token = trio.lowlevel.current_trio_token()

        def found(address: PeerAddress) -> None:
            trio_token.run_sync_soon(self._on_found, address)

        started = failing = False
        while True:
            plan = self._plan()
            session = _Session(self._rendezvous, self._peer_id, found)
            try:
                failure = await trio.to_thread.run_sync(session.open, plan)
                if failure and not failing:
                    log.warning("no multicast here: peers on this network are not found by themselves", reason=failure)
                failing = bool(failure)
                if not started:
                    task_status.started()
                    started = True
                with trio.move_on_after(RETRY_S if failing else inf):
                    await self._until_changed(plan)
            finally:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(session.close)

    def _plan(self) -> _Plan:
        addresses = tuple(self._addresses())
        return _Plan(addresses, tuple(self._interfaces or multicast_interfaces(addresses)))

    async def _until_changed(self, plan: _Plan) -> None:
        while True:
            await trio.sleep(CHECK_S)
            if self._plan() != plan:
                return


# zeroconf's errors: of a socket, of an interface that has gone, its own, of a loop that does not answer.
_ZEROCONF_FAILURES = (OSError, RuntimeError, ZeroconfError, concurrent.futures.TimeoutError)


class _Session:
    """One zeroconf instance, with two threads of its own. Methods block: they are for worker threads."""

    def __init__(self, rendezvous: str, peer_id: str, found: Callable[[PeerAddress], None]) -> None:
        self._rendezvous = rendezvous
        self._peer_id = peer_id
        self._found = found
        self._type = service_name(rendezvous)
        self._name = instance_name(rendezvous, peer_id)
        self._zeroconf: Zeroconf | None = None
        self._browser: ServiceBrowser | None = None
        self._resolves = Bucket(RESOLVES_A_SECOND, RESOLVES_AT_ONCE)
        self._is_closing = False

    def open(self, plan: _Plan) -> str:
        """Listen, browse, announce. Returns the reason for a failure; empty after a success."""
        try:
            self._zeroconf = Zeroconf(interfaces=list(plan.interfaces))
            if not self._zeroconf.engine.senders:
                return "no interface takes it"
            _hear_only_joined_interfaces(self._zeroconf)
            self._browser = ServiceBrowser(self._zeroconf, self._type, handlers=[self._changed])
            if plan.addresses:
                self._announce(self._zeroconf, plan.addresses)
        except _ZEROCONF_FAILURES as error:
            return str(error) or type(error).__name__
        return ""

    def close(self) -> None:
        """Say goodbye and end the threads; takes about 0.3 s, and RESOLVE_MS more while a name is asked for."""
        self._is_closing = True  # the browser's thread skips the names still in its queue
        try:
            if self._browser is not None:
                self._browser.cancel()
            if self._zeroconf is not None:
                self._zeroconf.close()
        except _ZEROCONF_FAILURES as error:
            log.debug("zeroconf did not close in order", reason=str(error))

    def _announce(self, zeroconf: Zeroconf, addresses: Sequence[PeerAddress]) -> None:
        port = addresses[0].port
        info = ServiceInfo(
            self._type,
            self._name,
            port=port,
            properties=encode_txt(self._rendezvous, self._peer_id, addresses, nonce=secrets.token_hex(8)),
            addresses=[address.ip.packed for address in addresses if address.ip and address.port == port],
        )
        # The name is a hash of the peer id, so it is unique: `cooperating_responders` saves 1.5 s of probing for others.
        # The synchronous call would wait for the last of three broadcasts.
        registration = zeroconf.async_register_service(info, cooperating_responders=True)
        assert zeroconf.loop is not None
        asyncio.run_coroutine_threadsafe(registration, zeroconf.loop).result(START_TIMEOUT_S)

    def _changed(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        """Take in a name, on the browser's thread: an exception would end it. zeroconf passes these parameters by name."""
        if self._is_closing or name == self._name or state_change is ServiceStateChange.Removed:
            return
        info = ServiceInfo(service_type, name)
        info.load_from_cache(zeroconf)
        if not info.text and self._resolves.take(time.monotonic()):  # the name came without its TXT record
            try:
                info.request(zeroconf, RESOLVE_MS)
            except _ZEROCONF_FAILURES as error:
                log.debug("zeroconf did not resolve a name", reason=str(error))
        for address in decode_txt(self._rendezvous, info.properties):
            self._found(address)


def _hear_only_joined_interfaces(zeroconf: Zeroconf) -> None:
    """Ignore interfaces that only other processes joined, or a node that listens on loopback alone would answer the LAN:
    Linux hands a wildcard socket the multicast of all of them."""
    if sys.platform == "linux":
        for reader in zeroconf.engine.readers:
            sock = reader.transport.get_extra_info("socket")
            if sock.family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
