"""A race between addresses and relays, without a network; then ports that outgoing connections share with a listener."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest
import trio

from federation.errors import AnotherPeer
from federation.net.dial.address import PeerAddress
from federation.net.dial.book import Target
from federation.net.dial.race import CIRCUIT_AFTER_S, CIRCUIT_STAGGER_S, DIAL_TIMEOUT_S, STAGGER_S, Ourselves, Race
from federation.net.dial.tcp import listen_beside, open_from_port
from federation.units import HostPort

if TYPE_CHECKING:
    pass

PEER = "12D3KooW" + "A" * 44
FIRST, SECOND, THIRD = (PeerAddress(f"192.0.2.{n}", 1, PEER) for n in (1, 2, 3))


class World:
    """`answers`: address or relay -> (after how long, what happens)."""

    def __init__(self, answers: dict[Any, tuple[float, Any]]) -> None:
        self.answers = answers
        self.relays = [relay for relay in answers if isinstance(relay, str)]
        self.news = trio.Event()
        self.tried: list[tuple[Any, float]] = []
        self.refused: list[PeerAddress] = []  # hearsay whose turn it is not
        self.settled_at = -1.0

    async def answer(self, whom: Any) -> Any:
        self.tried.append((whom, trio.current_time()))
        after_s, what = self.answers[whom]
        await trio.sleep(after_s)
        if isinstance(what, Exception):
            raise what
        return what

    async def connect_via_relay(self, relay: str, peer: str) -> Any:
        assert peer == PEER
        return await self.answer(relay)

    async def race(
        self, *addresses: PeerAddress, peer: str | None = PEER, hopeless: bool = False, hearsay: tuple[PeerAddress, ...] = ()
    ) -> Race:
        """When it settled is in `settled_at`."""
        target = Target(peer, addresses, hopeless=hopeless, hearsay=frozenset(hearsay))
        race = Race(
            target, lambda _peer: self.relays, news=lambda: self.news, connect=self.answer,
            connect_via_relay=self.connect_via_relay, may=lambda address: address not in self.refused,
        )  # fmt: skip

        async def note() -> None:
            await race.settled.wait()
            self.settled_at = trio.current_time()

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(note)
                await race.run()
        return race


class TestRace:
    async def test_the_first_that_answers_wins_and_the_others_end(self, autojump_clock: trio.testing.MockClock) -> None:
        world = World({FIRST: (9.0, "late"), SECOND: (0.1, "link")})
        race = await world.race(FIRST, SECOND)
        assert race.winner == (SECOND, "link")
        assert trio.current_time() == pytest.approx(STAGGER_S + 0.1)

    async def test_a_failure_lets_the_next_one_start(self, autojump_clock: trio.testing.MockClock) -> None:
        world = World({FIRST: (0.05, OSError("no")), SECOND: (0.0, "link")})
        race = await world.race(FIRST, SECOND)
        assert world.tried == [(FIRST, 0.0), (SECOND, pytest.approx(0.05))]
        assert race.missed == [FIRST]
        assert [str(problem) for problem in race.problems] == ["no"]

    async def test_another_peer_there_is_noted(self, autojump_clock: trio.testing.MockClock) -> None:
        race = await World({FIRST: (0.0, OSError()), SECOND: (0.0, AnotherPeer())}).race(FIRST, SECOND)
        assert (race.missed, race.taken_over) == ([FIRST, SECOND], [SECOND])

    async def test_our_own_address_is_no_problem_of_the_peers(self, autojump_clock: trio.testing.MockClock) -> None:
        race = await World({FIRST: (0.0, Ourselves())}).race(FIRST)
        assert (race.winner, race.problems, race.missed, race.ourselves) == (None, [], [], [FIRST])

    async def test_relays_give_direct_addresses_a_start(self, autojump_clock: trio.testing.MockClock) -> None:
        world = World({FIRST: (9.0, "late"), "relay": (0.0, "relayed")})
        race = await world.race(FIRST)
        assert race.winner == (None, "relayed")
        assert world.tried == [(FIRST, 0.0), ("relay", CIRCUIT_AFTER_S)]

    async def test_unless_all_addresses_have_failed(self, autojump_clock: trio.testing.MockClock) -> None:
        world = World({FIRST: (0.1, OSError()), "full": (0.0, OSError()), "relay": (0.0, "relayed")})
        race = await world.race(FIRST)
        assert race.winner == (None, "relayed")
        assert world.tried[1:] == [("full", pytest.approx(0.1)), ("relay", pytest.approx(0.1))]

    async def test_unless_none_answered_last_time(self, autojump_clock: trio.testing.MockClock) -> None:
        world = World({FIRST: (9.0, "late"), "relay": (0.0, "relayed")})
        assert (await world.race(FIRST, hopeless=True)).winner == (None, "relayed")
        assert trio.current_time() == 0.0

    async def test_a_relay_that_says_nothing_does_not_hold_up_the_next(self, autojump_clock: trio.testing.MockClock) -> None:
        world = World({FIRST: (0.0, OSError()), "mute": (9.0, "late"), "relay": (0.1, "relayed")})
        race = await world.race(FIRST)
        assert race.winner == (None, "relayed")
        assert trio.current_time() == pytest.approx(CIRCUIT_STAGGER_S + 0.1)

    async def test_a_relay_that_becomes_known_meanwhile_is_tried(self, autojump_clock: trio.testing.MockClock) -> None:
        world = World({FIRST: (9.0, OSError()), "relay": (0.0, "relayed")})
        world.relays = []

        async def learn() -> None:
            await trio.sleep(2)
            world.relays.append("relay")
            world.news.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(learn)
            race = await world.race(FIRST)
        assert race.winner == (None, "relayed")
        assert trio.current_time() == pytest.approx(2)

    async def test_an_address_of_nobody_in_particular_has_no_relays(self, autojump_clock: trio.testing.MockClock) -> None:
        world = World({FIRST: (0.0, OSError()), "relay": (0.0, "relayed")})
        assert (await world.race(FIRST, peer=None)).winner is None
        assert [whom for whom, _ in world.tried] == [FIRST]


class TestHearsay:
    @pytest.mark.parametrize(
        "answer", [(0.0, OSError("closed")), (0.1, AnotherPeer()), (99.0, "silent"), (0.0, Ourselves())]
    )
    async def test_what_comes_of_it_shows_nowhere(
        self, answer: tuple[float, Any], autojump_clock: trio.testing.MockClock
    ) -> None:
        """Neither in when the next address is dialled, nor when all of it is tried again, nor when it counts as missed."""
        wait_s, what = answer
        silent = (DIAL_TIMEOUT_S, trio.TooSlowError()) if wait_s > DIAL_TIMEOUT_S else answer
        world = World({FIRST: (0.0, OSError()), SECOND: silent, THIRD: (0.0, OSError())})
        race = await world.race(FIRST, SECOND, THIRD, hearsay=(FIRST, SECOND, THIRD))
        assert world.tried == [(FIRST, 0.0), (SECOND, STAGGER_S), (THIRD, 2 * STAGGER_S)]
        assert world.settled_at == 2 * STAGGER_S + DIAL_TIMEOUT_S
        assert race.missed == [FIRST, *([] if isinstance(what, Ourselves) else [SECOND]), THIRD]

    async def test_it_may_be_right(self, autojump_clock: trio.testing.MockClock) -> None:
        world = World({FIRST: (0.0, OSError()), SECOND: (0.1, "link")})
        race = await world.race(FIRST, SECOND, hearsay=(FIRST, SECOND))
        assert race.winner == (SECOND, "link")
        assert world.settled_at == pytest.approx(STAGGER_S + 0.1)

    async def test_where_a_member_is_known_to_be_does_not_wait_for_it(self, autojump_clock: trio.testing.MockClock) -> None:
        """A peer that restarts is dialled again soon; what was hearsay may still win."""
        world = World({FIRST: (0.0, OSError()), SECOND: (3.0, "link")})
        race = await world.race(FIRST, SECOND, hearsay=(SECOND,))
        assert world.settled_at == pytest.approx(STAGGER_S)
        assert race.winner == (SECOND, "link")
        assert trio.current_time() == pytest.approx(3.0)

    async def test_whose_turn_it_is_not_is_not_dialled(self, autojump_clock: trio.testing.MockClock) -> None:
        world = World({FIRST: (0.0, "link"), SECOND: (0.0, OSError())})
        world.refused = [FIRST]
        race = await world.race(FIRST, SECOND, hearsay=(FIRST, SECOND))
        assert world.tried == [(SECOND, STAGGER_S)]
        assert race.missed == [SECOND]

    async def test_who_is_elsewhere_now_gives_up(self, autojump_clock: trio.testing.MockClock) -> None:
        world = World({FIRST: (0.0, OSError()), "relay": (0.0, OSError())})
        race = Race(
            Target(PEER, (FIRST,), hearsay=frozenset([FIRST])), lambda _peer: world.relays, news=lambda: world.news,
            connect=world.answer, connect_via_relay=world.connect_via_relay,
        )  # fmt: skip
        async with trio.open_nursery() as nursery:
            nursery.start_soon(race.run)
            await trio.sleep(1.0)
            race.give_up()
            await race.settled.wait()
        assert (trio.current_time(), race.winner) == (1.0, None)

    async def test_relays_wait_no_longer_for_it(self, autojump_clock: trio.testing.MockClock) -> None:
        world = World({FIRST: (0.0, OSError()), "relay": (0.0, "relayed")})
        assert (await world.race(FIRST, hearsay=(FIRST,))).winner == (None, "relayed")
        assert world.tried[1:] == [("relay", CIRCUIT_AFTER_S)]

    async def test_who_has_no_address_is_reached_through_a_relay_at_once(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        world = World({"relay": (0.0, "relayed")})
        assert (await world.race()).winner == (None, "relayed")
        assert trio.current_time() == 0.0


class TestPorts:
    async def test_outgoing_connections_come_from_the_port_that_listens(self) -> None:
        at, listeners = await listen_beside(HostPort("127.0.0.1", 0))
        with socket.create_server(("127.0.0.1", 0)) as other:
            stream = await open_from_port(at, *other.getsockname(), within_s=5)
            accepted, address = other.accept()
            with accepted:
                assert address == ("127.0.0.1", at.port)
            await stream.aclose()
        inbound = socket.create_connection((at.host, at.port))
        with inbound, trio.fail_after(20):
            await (await listeners[0].accept()).aclose()
        await listeners[0].aclose()

    async def test_two_that_dial_each_other_at_once_meet(self) -> None:
        """Each may find the other's listener, or its SYN: either way there is a connection."""
        (a, a_listeners), (b, b_listeners) = [await listen_beside(HostPort("127.0.0.1", 0)) for _ in range(2)]
        met = trio.Event()
        async with trio.open_nursery() as nursery:

            async def dial(own: HostPort, other: HostPort) -> None:
                try:
                    stream = await open_from_port(own, other.host, other.port, within_s=5)
                except OSError:
                    return  # the other one's SYN was here first: it is accepted
                met.set()
                await stream.aclose()

            nursery.start_soon(dial, a, b)
            nursery.start_soon(dial, b, a)
        assert met.is_set()
        for listener in (*a_listeners, *b_listeners):
            await listener.aclose()

    async def test_nobody_there(self) -> None:
        at, listeners = await listen_beside(HostPort("127.0.0.1", 0))
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            with pytest.raises(OSError, match="refused"):
                await open_from_port(at, *closed.getsockname(), within_s=5)
        await listeners[0].aclose()
