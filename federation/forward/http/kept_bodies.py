"""All bodies of requests that an entry keeps, to find their models and for a retry: how many bytes they may have together.
No I/O, no clock.

The first FREE bytes of each body do not count: a chat is no reason to wait, and --max-connections bounds them.

    used 0 ......................................... most - each ................ most
    every body grows                               | the oldest that grows, alone     | nobody

Rule 1: the room of one whole body (`each`, --http-buffer) is left to the oldest body that still grows. It can be finished,
so bodies that wait for each other's bytes do not wait for ever. A client whose body may not grow is not read.
Rule 2: where it is tight, bodies that have come as a whole are not kept for a retry any more (`give_up_retry`); they go on
as soon as their backends take them.
Rule 3: all bodies that wait are looked at in their order when a byte is free, in a turn of its own. How long they wait is
for their requests to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

FREE = 64 * 1024
BUFFERS = 4  # whole bodies at once


class Keeper(Protocol):
    """A request that keeps its body."""

    def may_grow(self) -> None:
        """It had no room, and may look again."""

    def give_up_retry(self) -> None:
        """Keep what its backend has not had, and no more, as soon as it has one."""


class KeptBodies:
    """Of one entry. `used`: bytes that count."""

    def __init__(self, each: int, soon: Callable[[Callable[[], None]], None]) -> None:
        """`each`: what one body may have. `soon(f)` calls f in a turn of its own."""
        self.each = each
        self.used = 0
        self._soon = soon
        self._sizes: dict[Keeper, int] = {}
        self._growing: dict[Keeper, None] = {}  # the oldest first
        self._waiting: dict[Keeper, None] = {}
        self._settles_soon = False

    def __len__(self) -> int:
        """The bodies of which bytes count, and those that wait to be among them."""
        return len(self._sizes.keys() | self._waiting)

    @property
    def most(self) -> int:
        return BUFFERS * self.each

    @property
    def is_tight(self) -> bool:
        return self.used + self.each > self.most

    def room(self, keeper: Keeper, size: int) -> int:
        """How many more bytes a body of this size may have now."""
        if size < FREE:
            return FREE - size
        if self.is_tight and next(iter(self._growing), keeper) is not keeper:
            return 0
        return max(0, min(self.each - size, self.most - self.used))

    def wait(self, keeper: Keeper) -> None:
        """It has no room: tell it when it may look again."""
        self._waiting[keeper] = None

    def keeps(self, keeper: Keeper, size: int, *, grows: bool) -> None:
        """The body has so many bytes here; `grows`: its client may send more that will be kept."""
        had, now = self._sizes.get(keeper, 0), max(0, size - FREE)
        if now:
            self._sizes[keeper] = now
        else:
            self._sizes.pop(keeper, None)
        self.used += now - had
        has_grown_up = not grows and keeper in self._growing
        if grows and now:
            self._growing[keeper] = None
        elif has_grown_up:
            del self._growing[keeper]
        if (self._waiting and (now < had or has_grown_up)) or (now > had and self.is_tight):
            self._settle_soon()

    def drops(self, keeper: Keeper) -> None:
        """The request is over."""
        self._waiting.pop(keeper, None)
        self.keeps(keeper, 0, grows=False)

    def _settle_soon(self) -> None:
        if not self._settles_soon:
            self._settles_soon = True
            self._soon(self._settle)

    def _settle(self) -> None:
        self._settles_soon = False
        if self.is_tight:
            for keeper in [keeper for keeper in self._sizes if keeper not in self._growing]:
                keeper.give_up_retry()
        for keeper in list(self._waiting):
            if keeper in self._waiting and self.room(keeper, FREE) > 0:
                del self._waiting[keeper]
                keeper.may_grow()
