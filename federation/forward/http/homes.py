"""The home of a conversation: the replica where the beginning of its prompt is cached. No I/O, no clock: callers pass `now`.

All entries find one home without telling each other anything, since all of them compute it from the keys and the replicas:

1. k0 orders the replicas: weighted rendezvous hashing, so that a node that comes or goes moves only its share. The first m
   of that order are the homes of k0. With its heat m doubles: 1, 2, 4 ... all. The sets are nested, so entries that differ
   about m agree about most conversations.
2. k1 orders those m, by rendezvous hashing again. The first one is the conversation's home; the rest of k0's order follows.
3. The first of that order whose load is at most max(least load + SLACK, STRETCH times its fair share, rounded up) is chosen.
   So a home beyond its bound costs one other home, and each entry finds the same one.
4. An entry remembers such a conversation's other home for REMEMBERED_S, since the newest turns are cached there.

    k0 cold         a b c d     m = 1: all its conversations are at a
    k0 hot          a b c d     m = 2: half of them are at b; those that stay at a keep what is cached
    a overloaded                a conversation of a goes to b, and stays there while b is within its bound

Heat is what k0 brings of the new conversations of this entry, of late. m doubles while each of the m homes would get more
than LARGEST_PIECE of one replica's share of them, and at least CHATS_A_HOME: larger pieces cannot be spread evenly, and
conversations that give way find nothing cached. m is halved when a quarter of that is left, so that a set does not flap.
Later turns are no heat: else a chat alone would heat its own k0, and move in the middle.
Nothing else is stored, and both memories are bounded.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache
from hashlib import blake2b
from math import ceil, log
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from federation.forward.http.conversation import Keys

SLACK = 2  # a bound below it would bind where there is hardly any load
STRETCH = 1.25
# Simulated, see test_homes.py. A twentieth and a fifth are worse: the one spreads what fits in one place, the other
# lets a dozen system prompts weigh on three boxes as they fall.
LARGEST_PIECE = 0.1
CHATS_A_HOME = 2.5  # with 4 a network that starts moves more chats that have begun
HALF_LIFE_S = 120.0  # a few turns of a chat
REMEMBERED_S = 600.0  # a backend with other work to do keeps a prompt for no longer
MAX_CHATS = 4096  # 200 bytes each
MAX_HEATS = 1024
MAX_DRAWS = 4096  # of the turns of some hundred chats; 250 bytes each

_BITS = 2.0**-64


class Replica(Protocol):
    """A model on a node, as a pick sees it. `weight`: its slots, or 1 where nothing is known; `load`: in flight there."""

    @property
    def peer_id(self) -> str: ...
    @property
    def load(self) -> int: ...
    @property
    def weight(self) -> float: ...


class Home(NamedTuple):
    """`place`: 0 is the home itself, n the n-th one after it. `is_spilled`: not at home, since that has too much load."""

    peer_id: str
    place: int = 0
    is_spilled: bool = False


class _Heat:
    """New chats of late, each of which counts half after HALF_LIFE_S; and the number of homes that they are given."""

    __slots__ = ("_at", "chats", "homes")

    def __init__(self, now: float) -> None:
        self.chats = 0.0
        self.homes = 1
        self._at = now

    def count(self, now: float) -> None:
        if now > self._at:
            self.chats *= 0.5 ** ((now - self._at) / HALF_LIFE_S)
            self._at = now
        self.chats += 1.0

    def spread(self, share: float, replicas: int) -> None:
        """`share`: of all new chats."""
        wanted = min(share * replicas / LARGEST_PIECE, self.chats / CHATS_A_HOME)
        while self.homes < min(wanted, replicas):
            self.homes *= 2
        while self.homes > 1 and (wanted < self.homes / 4 or self.homes >= 2 * replicas):
            self.homes //= 2


class Homes:
    """The homes of conversations, as one entry knows them."""

    def __init__(self) -> None:
        # k1 -> the peer that is its home instead, or "" for one that is at home; until when
        self._chats: OrderedDict[bytes, tuple[str, float]] = OrderedDict()
        self._heats: OrderedDict[bytes, _Heat] = OrderedDict()
        self._all: _Heat | None = None

    def choose(self, keys: Keys, replicas: Sequence[Replica], now: float) -> Home | None:
        """The home of a request's conversation; None without a key or a replica. Call it once a request.

        `replicas`: those of its model that may take it, with the loads as this entry believes them."""
        if not keys.k0 or not replicas:
            return None
        before = self._remembered(keys.k1, now)
        if before is None:
            self._warm(keys.k0, replicas, now)
        order = self.order(keys, replicas)
        fits = within_bound(replicas)
        peer_id = before if before and before in fits else next(peer_id for peer_id in order if peer_id in fits)
        place = order.index(peer_id)
        if keys.k1:
            self._remember(keys.k1, peer_id if place or peer_id == before else "", now)
        return Home(peer_id, place, is_spilled=place > 0)

    def order(self, keys: Keys, replicas: Sequence[Replica]) -> list[str]:
        """Peer ids: the homes of k0 as k1 orders them, then the other replicas as k0 does."""
        m = self.homes_of(keys.k0)
        if m >= len(replicas) and keys.k1:
            return [replica.peer_id for replica in rendezvous(keys.k1, replicas)]
        by_k0 = rendezvous(keys.k0, replicas)
        inside = rendezvous(keys.k1, by_k0[:m]) if keys.k1 and m > 1 else by_k0[:m]
        return [replica.peer_id for replica in (*inside, *by_k0[m:])]

    def homes_of(self, k0: bytes) -> int:
        """How many homes k0 has, were there as many replicas: a power of two."""
        heat = self._heats.get(k0)
        return heat.homes if heat is not None else 1

    def _warm(self, k0: bytes, replicas: Sequence[Replica], now: float) -> None:
        if self._all is None:
            self._all = _Heat(now)
        heat = self._heats.get(k0)
        if heat is None:
            heat = self._heats[k0] = _Heat(now)
            if len(self._heats) > MAX_HEATS:
                self._heats.popitem(last=False)
        self._heats.move_to_end(k0)
        heat.count(now)
        self._all.count(now)
        heat.spread(min(1.0, heat.chats / self._all.chats), len(replicas))

    def _remembered(self, k1: bytes, now: float) -> str | None:
        """None for a new chat; see _chats."""
        peer_id, until = self._chats.get(k1, (None, 0.0))
        return peer_id if now < until else None

    def _remember(self, k1: bytes, peer_id: str, now: float) -> None:
        self._chats[k1] = peer_id, now + REMEMBERED_S
        self._chats.move_to_end(k1)
        if len(self._chats) > MAX_CHATS:
            self._chats.popitem(last=False)


def within_bound(replicas: Sequence[Replica]) -> dict[str, Replica]:
    """Peer id -> replica, for those that may have one more request; the least busy one always may."""
    least = min(replica.load for replica in replicas)
    share = STRETCH * (sum(replica.load for replica in replicas) + 1) / sum(replica.weight for replica in replicas)
    return {r.peer_id: r for r in replicas if r.load <= max(least + SLACK, ceil(share * r.weight))}


def rendezvous(key: bytes, replicas: Sequence[Replica]) -> list[Replica]:
    """Each replica draws a number from the key and its own id; twice the weight is first for twice as many keys."""
    return sorted(replicas, key=lambda r: (_drawn(key, r.peer_id) / r.weight, r.peer_id), reverse=True)


@lru_cache(MAX_DRAWS)
def _drawn(key: bytes, peer_id: str) -> float:
    digest = blake2b(peer_id.encode(), key=key, digest_size=8).digest()
    return log((int.from_bytes(digest, "big") + 0.5) * _BITS)
