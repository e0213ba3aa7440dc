"""A request's body, in pieces and at once: what its owner hears, what is kept, and how long it may take. No loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from federation.errors import HttpInvalid
from federation.forward.http.head import parse_request
from federation.forward.http.kept_bodies import BUFFERS, FREE, KeptBodies
from federation.forward.request_body import QUIET_S, SMALL_QUIET_S, RequestBody

if TYPE_CHECKING:
    from collections.abc import Callable

EACH = 2 * FREE
ASKED = b'{"model": "m"}'
BEGUN = b'{"messages": "'


class Timer:
    def __init__(self, delay_s: float, callback: Callable[[], None]) -> None:
        self.delay_s, self.callback, self.is_on = delay_s, callback, True

    def cancel(self) -> bool:
        was, self.is_on = self.is_on, False
        return was


class World:
    """The entry, and the owner of all bodies."""

    hold_s = 10.0

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []
        self.bodies = KeptBodies(EACH, self.soon.append)
        self.timers: list[Timer] = []
        self.heard: list[Any] = []

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Any:
        self.timers.append(Timer(delay_s, callback))
        return self.timers[-1]

    @property
    def delays(self) -> list[float]:
        return [timer.delay_s for timer in self.timers if timer.is_on]

    def passes(self, delay_s: float) -> None:
        """The first timer of that delay is due."""
        next(timer for timer in self.timers if timer.is_on and timer.delay_s == delay_s).callback()

    def asked_for(self, asked: Any) -> None:
        self.heard.append(asked.model)

    def refuse_body(self, status: int, _why: str) -> None:
        self.heard.append(status)

    def may_grow(self) -> None:
        self.heard.append("may grow")

    def give_up_retry(self) -> None:
        self.heard.append("give up")

    def waited_too_long(self) -> None:
        self.heard.append("waited")

    def body(self, field: bytes) -> RequestBody:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n%b\r\n\r\n" % field
        return RequestBody(self, self, parse_request(head))

    def sized(self, size: int) -> RequestBody:
        return self.body(b"Content-Length: %d" % size)

    def is_full(self) -> list[RequestBody]:
        """So many bodies grow that there is no room for one more."""
        bodies = [self.sized(2 * EACH) for _ in range(2 * BUFFERS)]  # half of each counts
        for body in bodies:
            body.feed(BEGUN + b"x" * (EACH - 20))
            body.count()
        return bodies

    def late(self) -> RequestBody:
        late = self.sized(2 * EACH)
        late.feed(BEGUN + b"x" * (FREE - len(BEGUN)))
        return late


@pytest.mark.parametrize("size", [1, 5, 100])
def test_its_bytes_are_kept_and_the_rest_is_the_next_requests(size: int) -> None:
    world = World()
    body, used, data = world.sized(len(ASKED)), b"", ASKED + b"GET /"
    while not body.is_whole:
        used += body.feed(data[len(used) : len(used) + size])
        body.count()
    assert (used, world.heard, body.received, body.replay.whole()) == (ASKED, ["m"], len(ASKED), ASKED)
    assert (body.is_sought, world.delays) == (False, [])


def test_of_chunks_the_content_is_looked_at_and_the_bytes_are_kept() -> None:
    world = World()
    body = world.body(b"Transfer-Encoding: chunked")
    data = b"".join(b"1\r\n%c\r\n" % byte for byte in ASKED) + b"0\r\n\r\n"
    assert body.feed(data + b"GET") == data
    assert (world.heard, body.replay.whole(), body.is_whole) == (["m"], data, True)
    with pytest.raises(HttpInvalid):
        world.body(b"Transfer-Encoding: chunked").feed(b"zz\r\n")


def test_one_that_cannot_be_read_is_refused() -> None:
    world = World()
    world.sized(10).feed(b'{"model":}')
    assert world.heard == [400]


@pytest.mark.parametrize(
    ("behind", "trouble"),
    [(b'"}', ""), (b'", "model": "n"}', "another model"), (b'", "model": "m"}', ""), (b"x", "not JSON")],
)
def test_one_that_is_too_long_goes_with_the_model_that_it_has_named(behind: bytes, trouble: str) -> None:
    world = World()
    begun = b'{"model": "m", "messages": "' + b"x" * EACH
    body = world.sized(len(begun) + 1 + len(behind))
    body.feed(begun)
    assert (world.heard, body.is_sought) == (["m"], False)
    assert body.trouble_behind(body.feed(b"x"), "m") == ""
    said = body.trouble_behind(body.feed(behind), "m")
    assert trouble in said
    assert bool(said) is bool(trouble)


def test_a_model_behind_too_much_is_not_found() -> None:
    world = World()
    world.sized(4 * EACH).feed(BEGUN + b"x" * EACH)
    assert world.heard == [413]


def test_how_long_a_client_may_be_silent() -> None:
    world = World()
    small, large = world.sized(EACH), world.sized(EACH)
    small.feed(BEGUN)
    small.count()
    assert world.delays == [SMALL_QUIET_S]
    large.feed(BEGUN + b"x" * (FREE + 1))
    large.count()
    assert world.delays == [SMALL_QUIET_S, QUIET_S]
    world.passes(QUIET_S)
    assert world.heard == [408]
    for body in (small, large):
        body.drop()
    assert SMALL_QUIET_S not in world.delays
    assert (len(world.bodies), world.bodies.used) == (0, 0)


def test_without_room_it_waits_until_there_is_some() -> None:
    world = World()
    full, late = world.is_full(), world.late()
    assert late.room() <= 0 < full[0].room()  # the oldest may always grow
    assert (late.waits, world.hold_s in world.delays) == (True, True)
    for body in full[1:]:
        body.drop()
    for settle in world.soon:
        settle()
    assert (late.waits, world.heard, world.hold_s in world.delays) == (False, ["may grow"], False)
    assert late.room() > 0


def test_who_waits_too_long_is_told_so() -> None:
    world = World()
    world.is_full()
    late = world.late()
    assert late.room() <= 0
    world.passes(world.hold_s)
    assert (world.heard, late.waits) == (["waited"], False)
