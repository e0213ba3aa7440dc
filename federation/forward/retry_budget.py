"""How many requests may be sent to a second backend after a first one has had them. No I/O, no clock.

A backend that says 503, or breaks, may say so because it has too much to do: retries of all its requests would be twice as
much for the others. So each request brings SHARE of a retry, and each retry takes a whole one: for long, at most a fifth of
the requests are retries. BURST is kept for a backend that dies with all its requests at once.

What costs nothing: a peer that refused, was busier or was not reached, since no backend has had the request; and a peer
whose link is gone, which nobody asks any more.
"""

from __future__ import annotations

SHARE = 1 / 5
BURST = 100.0


class RetryBudget:
    """Of one entry. It begins full."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = BURST

    def request(self) -> None:
        """A request came."""
        self.left = min(BURST, self.left + SHARE)

    def take(self) -> bool:
        """Whether a request may be sent to a second backend; it is then paid for."""
        if self.left < 1:
            return False
        self.left -= 1
        return True
