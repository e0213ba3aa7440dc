"""The parts of a node, as ops/ reads and uses them. node.py builds them; nothing here knows node.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from federation.errors import UsageError
from federation.mesh.bans import find_peer
from federation.mesh.gpu import GpuReading

if TYPE_CHECKING:
    from collections.abc import Callable

    from federation.clock import Clock
    from federation.config import Settings
    from federation.forward.backends import Backends
    from federation.forward.client_keys import ClientKeys
    from federation.forward.frontend import Frontend
    from federation.forward.model_watch import ModelWatch
    from federation.forward.roster import Roster
    from federation.forward.selection import Selector
    from federation.mesh.bans import Bans
    from federation.mesh.connectivity import Connectivity
    from federation.mesh.discovery import Discovery
    from federation.mesh.gossip import Gossip
    from federation.mesh.key_exchange import KeyExchange
    from federation.mesh.key_use import KeyUse
    from federation.mesh.ledger import Ledger
    from federation.mesh.newcomers import Newcomers
    from federation.mesh.probe import Probe
    from federation.mesh.records import NodeData
    from federation.mesh.remote import Remote
    from federation.mesh.rotation import Rotation
    from federation.mesh.tokens import Token
    from federation.metrics import Metrics
    from federation.net.dial.address import PeerAddress
    from federation.net.dial.book import AddressBook
    from federation.net.host import Host
    from federation.ops.history import History
    from federation.ops.rates import Rates
    from federation.reactor.tls import Certificate
    from federation.state import StateDir
    from federation.units import HostPort, Place


@dataclass(slots=True)
class Facts:
    """Facts about this node that change while it runs and belong to none of its parts."""

    settings: Settings
    started_at: float
    p2p: HostPort  # where it listens; before the start, where it is to
    control: HostPort
    listeners: list[tuple[str, Place]] = field(default_factory=list)  # service and where its clients connect
    gpu: GpuReading = field(default_factory=lambda: GpuReading((), "none", "not read yet"))
    draining: bool = False
    has_owner_key: bool = False
    forgets_network: bool = False  # when it stops
    serves: trio.Event = field(default_factory=trio.Event)
    notices_fail: bool = False  # the last message to --notify-url did not arrive

    @property
    def notifies(self) -> bool:
        """Whether this node can tell a person of machines that die (notices.py)."""
        return self.settings.notify_url is not None and not self.notices_fail

    @property
    def listens(self) -> dict[str, Place]:
        """Service -> the first address of its clients."""
        return dict(reversed(self.listeners))


@dataclass(frozen=True, slots=True)
class Parts:
    """`stop`: the node leaves the network and ends once this is set. `own_record`: its record, with so many in flight."""

    facts: Facts
    stop: trio.Event
    own_record: Callable[[int], NodeData]
    clock: Clock
    state: StateDir
    host: Host
    book: AddressBook
    ledger: Ledger
    bans: Bans
    rotation: Rotation
    connectivity: Connectivity
    gossip: Gossip
    discovery: Discovery
    probe: Probe
    selector: Selector
    backends: Backends
    models: ModelWatch
    keys: KeyExchange
    client_keys: ClientKeys
    key_use: KeyUse
    certificate: Certificate
    newcomers: Newcomers
    roster: Roster
    frontend: Frontend
    rates: Rates
    history: History
    remote: Remote
    metrics: Metrics

    @property
    def token(self) -> Token:
        return self.rotation.keyring.token

    @property
    def peer_id(self) -> str:
        return self.host.peer_id

    @property
    def addresses(self) -> list[PeerAddress]:
        return self.connectivity.addresses

    def name_of(self, peer_id: str) -> str:
        """The name that a peer gave itself; empty where none is known."""
        row = self.ledger.get(peer_id)
        return row.record.name if row is not None else ""

    def copied(self) -> list[str]:
        """The peers that run on two machines, as this node and others say."""
        told = [peer for record in self.ledger.online(self.clock.utc_now()) for peer in record.copied]
        return [peer for peer in dict.fromkeys((*self.own_record(0).copied, *told)) if peer != self.peer_id]

    def find_other(self, text: str, *, if_itself: str = "this is the node itself") -> str:
        """The id of the other node that a person means by `text`; see bans.find_peer. Raises NotFound or UsageError."""
        names = {record.peer_id: record.name for record in self.ledger.records()}
        peer_id = find_peer(text, names, among="the nodes of this network")
        if peer_id == self.peer_id:
            raise UsageError(if_itself)
        return peer_id
