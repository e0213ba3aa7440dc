"""The address book: the addresses of peers, and the time of the next dial to each. Rule 1: no I/O and no clock; callers pass
`now` in seconds of any monotonic clock. Rule 2: an address that a person gave stays for ever. The book forgets one from
the network if it stays dead, or if the book is full.

A target is the subject of one dial: a peer with all its addresses, or an address whose peer is not known yet. The caller
takes targets from `due`, says `started`, and reports `succeeded`, `failed` or `ourselves`.

Hearsay is an address that no person gave and where no member has proved itself yet. The node dials hearsay only where
`may_dial` allows it (dial/hearsay.py), and then not again for a fixed time, whatever the result.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from math import inf
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator

    from federation.net.dial.address import PeerAddress

# In order of trust: given by a person, announced on this LAN just now, named in the peer's own record, saved by an earlier
# run of this daemon, found in the DHT.
Source = Literal["token", "peer", "mdns", "record", "saved", "dht"]
_RANK: dict[Source, int] = {"token": 0, "peer": 0, "mdns": 1, "record": 2, "saved": 3, "dht": 4}
_BOOTSTRAP_RANK = 0

BACKOFF_FIRST_S = 0.25  # a peer that restarts is back within a second or two
BACKOFF_MAX_S = 30.0  # under NODE_ONLINE_WINDOW: after a cut, nodes find each other before all records age out
BACKOFF_JITTER = 0.25  # share of the wait that is random, so that two peers do not keep dialling each other in step
STABLE_S = 10.0  # a connection that ends sooner counts as a failure: accept-and-close must cause no busy loop
TOGETHER_S = 10.0  # peers lost within this time of each other were probably lost for one reason: a cut
DROP_AFTER_S = 3600.0  # the ledger forgets a silent peer after the same hour
MAX_PEERS = 4096  # as many as the ledger holds
MAX_ADDRESSES = 16  # a machine with several interfaces, both families, has under ten
MAX_OURS = 256


def backoff(failures: int, jitter: float) -> float:
    """Seconds to wait after `failures` in a row (>= 1); `jitter` in [0, 1) shortens that by up to a quarter."""
    nominal = BACKOFF_FIRST_S * 2.0 ** min(failures - 1, _DOUBLINGS)
    return min(nominal, BACKOFF_MAX_S) * (1.0 - BACKOFF_JITTER * jitter)


_DOUBLINGS = 7  # 0.25 s * 2**7 is the first to exceed the cap


@dataclass(frozen=True, slots=True)
class Target:
    """One dial: a peer and its addresses, best first, or one address without a peer."""

    peer_id: str | None
    addresses: tuple[PeerAddress, ...]
    proven: bool = field(
        default=True, compare=False
    )  # given by a person, announced on this LAN, or it answered before; else it is hearsay
    hopeless: bool = field(default=False, compare=False)  # no address answered last time, so relays start at once
    hearsay: frozenset[PeerAddress] = field(default=frozenset(), compare=False)  # those of them that are hearsay


@dataclass(slots=True)
class _Known:
    rank: int
    first_seen: int  # a count, not a time: peers announce their addresses best first
    last_seen: int
    last_success: float = -inf
    last_failure: float = -inf
    busy_until: float = -inf  # hearsay only
    is_saved: bool = False  # saved by an earlier run, where it made sense, or a member proved itself there

    @property
    def is_bootstrap(self) -> bool:
        return self.rank == _BOOTSTRAP_RANK

    @property
    def is_hearsay(self) -> bool:
        return not self.is_bootstrap and not self.has_answered

    @property
    def has_answered(self) -> bool:
        return self.last_success > -inf

    def is_busy(self, now: float) -> bool:
        return self.is_hearsay and now < self.busy_until


@dataclass(slots=True)
class _State:
    """The state of one target."""

    known: dict[PeerAddress, _Known] = field(default_factory=dict)
    dialling: bool = False
    failures: int = 0  # in a row
    failing_since: float = inf
    ended_at: float = -inf  # end of the last dial, whatever the result
    retry_at: float = -inf
    connected_at: float = -inf
    answered_by: str | None = None  # the peer found at an address that names none

    @property
    def is_bootstrap(self) -> bool:
        return any(known.is_bootstrap for known in self.known.values())

    @property
    def is_proven(self) -> bool:
        return any(known.rank <= _RANK["mdns"] or known.has_answered for known in self.known.values())

    @property
    def is_hopeless(self) -> bool:
        return all(known.last_failure > known.last_success for known in self.known.values())

    def disposable(self) -> list[PeerAddress]:
        return [address for address, known in self.known.items() if not known.is_bootstrap]

    def best_first(self, is_near: Callable[[PeerAddress], bool]) -> list[PeerAddress]:
        """Addresses on this machine's own networks first, unless they failed last time; then by latest success."""

        def order(item: tuple[PeerAddress, _Known]) -> tuple[bool, float, int, int]:
            address, known = item
            is_hopeful = known.last_failure <= known.last_success and is_near(address)
            return not is_hopeful, -known.last_success, known.rank, known.first_seen

        return [address for address, _ in sorted(self.known.items(), key=order)]

    def refresh(self) -> None:
        """Retry as soon as after a first failure; no sooner, or a flood of sightings would cause a flood of dials."""
        self.failures = 0
        self.failing_since = inf
        self.retry_at = min(self.retry_at, self.ended_at + BACKOFF_FIRST_S)

    def connected(self, now: float, jitter: float) -> None:
        self.failures = self.failures + 1 if now - self.connected_at < STABLE_S else 0
        self.failing_since = inf
        self.connected_at = self.ended_at = now
        self.retry_at = now + backoff(max(self.failures, 1), jitter)

    def failed(self, now: float, jitter: float, *, permanent: bool) -> None:
        self.failures = _DOUBLINGS + 1 if permanent else self.failures + 1
        self.ended_at = now
        self.failing_since = min(self.failing_since, now)
        self.retry_at = now + backoff(self.failures, jitter)


_Key = str | tuple[str, int]  # a peer id; or host and port, where no peer is named


def _key(address: PeerAddress) -> _Key:
    return address.peer_id or (address.host, address.port)


class AddressBook:
    """All targets. Bounded: MAX_PEERS targets, MAX_ADDRESSES each."""

    def __init__(self, *, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()
        self._states: dict[_Key, _State] = {}
        self._ours: dict[tuple[str, int], None] = {}  # an ordered set
        self._sightings = 0
        self.is_near: Callable[[PeerAddress], bool] = lambda _address: False  # on a network of this machine
        # `may_dial(address, trusted)`: whether to dial an address that no person gave; see hearsay.Surroundings
        self.may_dial: Callable[[PeerAddress, bool], bool] = lambda _address, _trusted: True

    def __len__(self) -> int:
        return len(self._states)

    def __contains__(self, peer_id: object) -> bool:
        return peer_id in self._states

    def __iter__(self) -> Iterator[str]:
        """The ids of all peers here."""
        return (key for key in self._states if isinstance(key, str))

    def addresses(self, peer_id: str) -> list[PeerAddress]:
        """The peer's addresses that make sense from here, best first: by latest success, source, the peer's own order."""
        state = self._states.get(peer_id)
        return self._sensible(state) if state else []

    def worth_saving(self, peer_id: str) -> list[PeerAddress]:
        """The peer's addresses that may make sense at the next start, when this machine may be elsewhere."""
        state = self._states.get(peer_id)
        if state is None:
            return []
        sensible = self._sensible(state)
        return [a for a in state.best_first(self.is_near) if a in sensible or (a.ip is not None and not a.is_loopback)]

    def has_answered(self, address: PeerAddress) -> bool:
        """Whether the address's peer has proved itself there since this daemon started."""
        state = self._states.get(_key(address))
        return state is not None and address in state.known and state.known[address].has_answered

    def _sensible(self, state: _State) -> list[PeerAddress]:
        def makes_sense(address: PeerAddress) -> bool:
            known = state.known[address]
            return known.is_bootstrap or self.may_dial(address, known.is_saved or known.has_answered)

        return [address for address in state.best_first(self.is_near) if makes_sense(address)]

    def add(self, address: PeerAddress, *, source: Source) -> bool:
        """Note a sighting. Returns whether there is something new to dial.

        A new address and any sighting by mDNS end the target's backoff. A record that repeats itself does not: peers
        that no node can dial announce themselves as often as others. See `refresh` for a peer that restarted.
        """
        rank = _RANK[source]
        if (address.host, address.port) in self._ours and rank != _BOOTSTRAP_RANK:
            return False
        state = self._states.get(_key(address))
        if state is None:
            if len(self._states) >= MAX_PEERS and not self._evict_target(bootstrap=rank == _BOOTSTRAP_RANK):
                return False
            state = self._states[_key(address)] = _State()
        self._sightings += 1
        known = state.known.get(address)
        is_new = known is None
        if known is None:
            if len(state.known) >= MAX_ADDRESSES and not _evict_address(state):
                return False
            state.known[address] = _Known(rank, self._sightings, self._sightings)
        else:
            known.rank = min(known.rank, rank)
            known.last_seen = self._sightings
        state.known[address].is_saved |= source == "saved"
        if is_new or source == "mdns":
            state.refresh()
            return True
        return False

    def update(self, peer_id: str, addresses: Iterable[PeerAddress], *, source: Source) -> bool:
        """Replace the addresses that `source` gave for this peer: add these, and forget those that it no longer names."""
        named = [replace(address, peer_id=peer_id) for address in addresses][:MAX_ADDRESSES]
        is_fresh = any([self.add(address, source=source) for address in named])  # all of them, so no generator
        if state := self._states.get(peer_id):
            rank = _RANK[source]
            stale = [a for a, k in state.known.items() if k.rank == rank and not k.is_bootstrap and a not in named]
            self._drop(peer_id, state, stale)
        return is_fresh

    def refresh(self, peer_id: str) -> None:
        """Dial the peer soon, however often dials failed: it has announced a newer incarnation."""
        if state := self._states.get(peer_id):
            state.refresh()

    def wake_all(self) -> None:
        """End all backoffs: this machine has moved, so failures from its former place say nothing."""
        for state in self._states.values():
            state.refresh()
            for known in state.known.values():
                known.busy_until = -inf

    def forget(self, peer_id: str) -> None:
        """Forget a peer that left, except the addresses that a person gave."""
        if state := self._states.get(peer_id):
            self._drop(peer_id, state, state.disposable())

    def ourselves(self, address: PeerAddress) -> None:
        """Drop an address that leads back here, whoever announces it: every machine's docker bridge has the same one."""
        self._ours[address.host, address.port] = None
        if len(self._ours) > MAX_OURS:
            del self._ours[next(iter(self._ours))]
        for key, state in list(self._states.items()):
            self._drop(key, state, [a for a in state.known if (a.host, a.port) == (address.host, address.port)])

    def due(self, now: float, *, connected: Container[str], self_id: str) -> Iterator[Target]:
        """The targets to dial now, most promising first: not connected, not in backoff, not being dialled.

        Equal targets come in random order: if all newcomers dialled the same nodes first, these would carry the gossip.
        Thousands may be made up, and each costs a look at all its addresses: take no more than can be dialled.
        """
        self._states.pop(self_id, None)
        rng = self._rng
        found = [
            (not state.is_proven, state.failures, rng.random(), key)
            for key, state in self._states.items()
            if state.retry_at <= now and not state.dialling and not self._is_served(key, state, connected)
        ]
        for *_, key in sorted(found, key=lambda item: item[:3]):
            target = self._target(key, self._states[key], now)
            if target.addresses or target.peer_id is not None:  # a relay may lead to the peer
                yield target

    def _target(self, key: _Key, state: _State, now: float) -> Target:
        addresses = tuple(address for address in self._sensible(state) if not state.known[address].is_busy(now))
        return Target(
            key if isinstance(key, str) else None, addresses, proven=state.is_proven, hopeless=state.is_hopeless,
            hearsay=frozenset(address for address in addresses if state.known[address].is_hearsay),
        )  # fmt: skip

    def next_due(self, now: float) -> float | None:
        """The end of the next backoff; None if none is running. `due` has the targets whose backoff is over."""
        return min((state.retry_at for state in self._states.values() if state.retry_at > now), default=None)

    def started(self, target: Target) -> None:
        if state := self._states.get(_target_key(target)):
            state.dialling = True

    def leave_alone(self, address: PeerAddress, until: float) -> None:
        """Do not dial this hearsay again before `until`: the time of its next dial must not tell the result of this one."""
        state = self._states.get(_key(address))
        if state is not None and address in state.known:
            state.known[address].busy_until = until

    def succeeded(self, address: PeerAddress, peer_id: str, now: float) -> None:
        """Note that a dial to this address found the peer `peer_id`."""
        state = self._states.get(_key(address))
        if state is not None:
            state.dialling = False
            self._back_together(state)
            if address.peer_id is None:
                state.answered_by = peer_id
                state.connected(now, self._rng.random())
        # Not as bootstrap: the person named an address, not this peer.
        found = replace(address, peer_id=peer_id)
        self.add(found, source="saved")
        if owner := self._states.get(peer_id):
            owner.connected(now, self._rng.random())
            if found in owner.known:
                owner.known[found].last_success = now

    def missed(self, address: PeerAddress, now: float) -> None:
        """Note that no member answered at this one of several addresses."""
        state = self._states.get(_key(address))
        if state is not None and address in state.known:
            state.known[address].last_failure = now

    def taken_over(self, address: PeerAddress) -> None:
        """Another peer answers there. Dial any member at an address that a person gave: the machine may have lost its disk,
        and its identity with it, and perhaps no node can find it."""
        state = self._states.get(_key(address))
        if state is not None and address in state.known and state.known[address].is_bootstrap:
            self.add(replace(address, peer_id=None), source="saved")

    def reached(self, target: Target, now: float) -> None:
        """The target's peer is connected, but not by an address of the target: through a relay, or by its own dial."""
        if state := self._states.get(_target_key(target)):
            state.dialling = False
            state.connected(now, self._rng.random())

    def dialled_us(self, peer_id: str, now: float) -> None:
        """The peer is connected by its own dial."""
        if state := self._states.get(peer_id):
            self._back_together(state)
            state.connected(now, self._rng.random())

    def _back_together(self, state: _State) -> None:
        """Dial now all targets that began to fail at about the same time: one cut, now healed, is the likely reason."""
        since = state.failing_since
        if since < inf:
            for other in self._states.values():
                if other is not state and abs(other.failing_since - since) <= TOGETHER_S:
                    other.refresh()

    def failed(self, target: Target, now: float, *, permanent: bool = False) -> None:
        """The dial failed. `permanent`: the peer answered, and an early retry is of no use (another network)."""
        key = _target_key(target)
        state = self._states.get(key)
        if state is None:
            return
        state.dialling = False
        state.failed(now, self._rng.random(), permanent=permanent)
        if now - state.failing_since >= DROP_AFTER_S:
            self._drop(key, state, state.disposable())

    def _is_served(self, key: _Key, state: _State, connected: Container[str]) -> bool:
        """Whether the peer is connected or, behind an address without a peer id, has a target of its own that goes first."""
        if isinstance(key, str):
            return key in connected
        if state.answered_by is None:
            return False
        owner = self._states.get(state.answered_by)
        return state.answered_by in connected or (owner is not None and (owner.dialling or owner.failures == 0))

    def _drop(self, key: _Key, state: _State, addresses: Iterable[PeerAddress]) -> None:
        for address in addresses:
            del state.known[address]
        if not state.known:
            del self._states[key]

    def _evict_target(self, *, bootstrap: bool) -> bool:
        """Forget the target that failed most often. With `bootstrap`, for a person's address, it need not have failed."""
        candidates = [(s.failures, key) for key, s in self._states.items() if not s.is_bootstrap and not s.dialling]
        failures, key = max(candidates, key=lambda item: item[0], default=(0, None))
        if key is None or (failures == 0 and not bootstrap):
            return False
        del self._states[key]
        return True


def _evict_address(state: _State) -> bool:
    """Forget the address with the oldest success, then the oldest sighting. Returns whether there was one."""
    candidates = state.disposable()
    if not candidates:
        return False
    del state.known[min(candidates, key=lambda a: (state.known[a].last_success, state.known[a].last_seen))]
    return True


def _target_key(target: Target) -> _Key:
    return target.peer_id or _key(target.addresses[0])
