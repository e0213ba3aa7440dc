"""Whether the remote of a link still lives, sans-IO: a pure function of times, which the caller passes in.

A remote that owes a tunnel an answer for PING_AFTER_S, or was silent for `ping_interval`, gets a PING. A remote that does
not answer it for SUSPECT_AFTER_S is suspect: no client is sent there. After DEAD_AFTER_S the link is closed. Anything that
arrives proves that the remote lives.

What comes first after such a silence may be old: the network was cut, and TCP brings what was lost bit by bit. An OPEN may
be one that its entry has given up since, with the RST still on its way. So nothing is dialled before the PONG, which the
remote sends behind all of that (`is_fenced`).
"""

from __future__ import annotations

from typing import Literal

PING_AFTER_S = 0.5
PING_EVERY_S = 2.0  # of silence: a peer that hangs is mostly found before a client is sent there
PING_S_A_LINK = 0.06  # 33 bytes each way: PINGs take 1.1 kB/s at most, in and out together, however many links there are
RTT_INTERVALS = 8  # the end that is pinged measures its own round trip now and then
PING_AGAIN_S = 1.0  # a remote that we do not hear may hear us: its kernel needs a sign of life to tell (delivery.py)
SUSPECT_AFTER_S = 1.5
DEAD_AFTER_S = 15.0
LATE_TICK_S = 2.0  # our own process slept: silence until now proves nothing about others

Step = Literal["", "ping", "suspect", "dead"]


def ping_interval(links: int) -> float:
    """Seconds of silence after which a node with so many links pings one."""
    return max(PING_EVERY_S, PING_S_A_LINK * links)


class Liveness:
    """Times of one link, and what follows from them."""

    def __init__(self, now: float) -> None:
        self.last_heard = self.last_ping = self.last_tick = now
        self.pinged_at: float | None = None  # the first PING since the remote was last heard
        self.sent_since_heard = False  # set where records are sent
        self._fence: float | None = None  # the PING whose PONG comes behind all that may be old

    @property
    def is_fenced(self) -> bool:
        """Whether what arrives may still be old."""
        return self._fence is not None

    def step(self, now: float, ping_every_s: float, *, has_tunnels: bool) -> Step:
        """What is to be done now. To be asked a few times a second."""
        late, self.last_tick = now - self.last_tick > LATE_TICK_S, now
        if self.pinged_at is not None:
            if late:
                self.pinged_at = now
            unanswered_s = now - self.pinged_at
            return "dead" if unanswered_s > DEAD_AFTER_S else "suspect" if unanswered_s > SUSPECT_AFTER_S else ""
        owes = has_tunnels and self.sent_since_heard and now - self.last_heard > PING_AFTER_S
        is_silent = now - max(self.last_heard, self.last_ping) > ping_every_s  # of either end's PING both hear
        return "ping" if owes or is_silent or now - self.last_ping > RTT_INTERVALS * ping_every_s else ""

    def is_to_ask_again(self, now: float) -> bool:
        """Whether a PING is unanswered for so long that the next one is due."""
        return self.pinged_at is not None and now - self.last_ping > PING_AGAIN_S

    def pinged(self, now: float) -> None:
        self.last_ping = now
        if self.pinged_at is None:
            self.pinged_at = now

    def heard(self, now: float) -> None:
        """Something arrived."""
        self.last_heard = now
        self.sent_since_heard = False
        if self.pinged_at is not None:
            self.pinged_at, self._fence = None, self.last_ping

    def ponged(self, sent_at: float, now: float) -> float | None:
        """A PONG says that it answers the PING of `sent_at`. Returns the round trip if that is the latest PING."""
        if sent_at == self._fence:
            self._fence = None
        return now - sent_at if sent_at == self.last_ping else None
