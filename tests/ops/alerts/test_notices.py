"""Who tells, what, and how often: nodes that do not run, with peers set by hand. Whole daemons: tests/integration."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from pydantic import SecretStr

from federation.errors import NotDone
from federation.ops.alerts import notices
from federation.ops.alerts.notices import GIVE_UP_S, MAX_WAITING, Notices
from federation.ops.alerts.webhook import Address, Message, NotDelivered
from tests.support.nodes import MakeNode, add

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from federation.node import Node

URL = "http://127.0.0.1:1/t0psecret"
AFTER_S = 30.0


class Told:
    def __init__(self, node: Node) -> None:
        self.node = node
        self.messages: list[Message] = []
        self.fails = False
        self.notices = Notices(node.parts, send=self.send)

    async def send(self, address: Address, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        if self.fails:
            raise NotDelivered(f"{address.shown} answered 500")
        self.messages.append(message)

    def heard_of(self, name: str, **how: Any) -> str:
        """Now, by gossip, and with a link unless `linked` is false."""
        self.node.host.links.pop("12D3KooW" + name * 4, None)
        how = {"seq": int(trio.current_time()), **how}
        return add(self.node, name, age_s=0.0, **how)

    def loses(self, name: str) -> None:
        self.node.host.links.pop("12D3KooW" + name * 4)

    async def stays(self, seconds: float) -> None:
        await trio.sleep(seconds)
        await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def watching(node: Node) -> AsyncIterator[Told]:
    told = Told(node)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(told.notices.run)
        yield told
        nursery.cancel_scope.cancel()


@pytest.fixture
def watcher(make: MakeNode) -> Callable[[], Any]:
    """A node with an address."""
    return lambda: watching(make(notify_url=URL, notify_after_s=AFTER_S))


async def test_a_death_and_a_return_once_each(watcher: Callable[[], Any], autojump_clock: Any) -> None:
    async with watcher() as told:
        peer = told.heard_of("bergen")
        await told.stays(5)
        told.loses("bergen")
        await told.stays(AFTER_S - 2)
        assert told.messages == []
        await told.stays(200)
        (died,) = told.messages
        assert died.title == "testnet: bergen does not answer" or died.title.endswith(": bergen does not answer")
        assert died.is_bad
        assert died.text.startswith("bergen: not heard of since ")
        (event,) = died.facts["events"]
        assert (event["kind"], event["peer_id"], event["trouble"]) == ("died", peer, "silent")
        told.heard_of("bergen")
        await told.stays(200)
        assert [message.title.rpartition(": ")[2] for message in told.messages] == [
            "bergen does not answer",
            "bergen is back",
        ]
        assert not told.messages[1].is_bad
        status = told.notices.status()
        assert (status["told"], status["waiting"], status["tells"], status["to"]) == (2, 0, True, "http://127.0.0.1:1/…")


@pytest.mark.parametrize("is_met", [True, False])
async def test_one_that_dies_between_two_looks(watcher: Callable[[], Any], autojump_clock: Any, is_met: bool) -> None:
    async with watcher() as told:
        await told.stays(0.5)
        peer = told.heard_of("bergen")
        if is_met:  # as the node says of each link and each first record
            told.notices.met(peer)
        await told.stays(0.1)
        told.loses("bergen")
        await told.stays(200)
        assert len(told.messages) == is_met


async def test_one_that_others_still_hear_of_is_not_dead(watcher: Callable[[], Any], autojump_clock: Any) -> None:
    async with watcher() as told:
        told.heard_of("bergen")
        await told.stays(5)
        for _ in range(20):  # only the way between the two is cut: its records come by way of others
            told.heard_of("bergen", linked=False)
            await told.stays(10)
        assert told.messages == []
        await told.stays(AFTER_S + 5)
        assert len(told.messages) == 1


async def test_a_server_that_does_not_answer(watcher: Callable[[], Any], autojump_clock: Any) -> None:
    async with watcher() as told:
        told.heard_of("bergen")
        await told.stays(5)
        told.heard_of("bergen", services={"default": False})
        await told.stays(AFTER_S + 5)
        assert "its server has not answered since" in told.messages[0].text


async def test_machines_that_die_together_are_one_message(watcher: Callable[[], Any], autojump_clock: Any) -> None:
    async with watcher() as told:
        for name in ("a", "b", "c", "d"):
            told.heard_of(name)
        await told.stays(5)
        for name in ("a", "b", "c", "d"):
            told.loses(name)
        await told.stays(AFTER_S + 5)
        (message,) = told.messages
        assert "a, b, c and 1 more do not answer" in message.title
        assert "it may be cut off itself" in message.text


async def test_a_good_bye_a_ban_and_the_node_s_own_end_are_no_deaths(
    watcher: Callable[[], Any], autojump_clock: Any
) -> None:
    async with watcher() as told:
        bad = told.heard_of("bad")
        told.heard_of("leaver")
        told.heard_of("stays")
        await told.stays(5)
        told.heard_of("leaver", left=True, linked=False)
        told.node.bans.ban(bad, "bad")
        told.node.host.links.clear()
        told.node.stop()
        await told.stays(10 * AFTER_S)
        assert told.messages == []


async def test_of_several_that_could_the_one_with_the_lowest_id_tells(
    watcher: Callable[[], Any], autojump_clock: Any
) -> None:
    async with watcher() as told:
        own = told.node.parts.peer_id
        lower, higher = "12D3KooW" + "1" * 4, "12D3KooW" + "z" * 4
        assert lower < own < higher
        told.heard_of("bergen")
        told.heard_of("z", notifies=True)
        assert told.notices.status()["tells"]
        told.heard_of("1", notifies=True)
        assert not told.notices.status()["tells"]
        await told.stays(5)
        told.loses("bergen")
        await told.stays(AFTER_S + 5)
        assert told.messages == []  # the other one did
        told.loses("1")
        await told.stays(AFTER_S + 5)
        (message,) = told.messages  # nobody else is left to tell of that one
        assert message.title.endswith(": 1 does not answer")


async def test_what_does_not_arrive_is_sent_again_and_says_so(watcher: Callable[[], Any], autojump_clock: Any) -> None:
    async with watcher() as told:
        told.heard_of("bergen")
        await told.stays(5)
        told.fails = True
        told.loses("bergen")
        await told.stays(AFTER_S + 5)
        status = told.notices.status()
        assert (status["waiting"], status["problem"]) == (1, "http://127.0.0.1:1/… answered 500")
        assert not told.node.own_record().notifies  # let another one tell
        (finding,) = told.notices.findings()
        assert finding["severity"] == "fail"
        told.heard_of("bergen")
        await told.stays(AFTER_S + 5)
        told.fails = False
        await told.stays(400)
        (message,) = told.messages
        assert "bergen does not answer; bergen is back" in message.title
        assert told.notices.status()["problem"] == ""
        assert told.node.own_record().notifies


async def test_another_address_is_tried_at_once(watcher: Callable[[], Any], autojump_clock: Any) -> None:
    async with watcher() as told:
        told.heard_of("bergen")
        await told.stays(5)
        told.fails = True
        told.loses("bergen")
        await told.stays(1000)  # the next try is five minutes away
        told.fails = False
        facts = told.node.facts
        facts.settings = facts.settings.model_copy(update={"notify_url": SecretStr("https://box.lan/t0psecret")})
        await told.stays(5)
        assert len(told.messages) == 1
        assert told.notices.status()["to"] == "https://box.lan/…"


async def test_an_address_that_is_dead_for_long_costs_nothing(
    watcher: Callable[[], Any], autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "LOOK_EVERY_S", 10.0)
    async with watcher() as told:
        told.fails = True
        names = [f"m{n}" for n in range(MAX_WAITING + 10)]
        for name in names:
            told.heard_of(name)
        await told.stays(5)
        for name in names:
            told.loses(name)
        await told.stays(AFTER_S + 5)
        assert told.notices.status()["waiting"] == MAX_WAITING
        assert told.notices.status()["dropped"] == 10
        await told.stays(GIVE_UP_S + 600)
        assert told.notices.status()["waiting"] == 0
        assert told.notices.status()["dropped"] == len(names)
        told.fails = False
        await told.stays(600)
        assert told.messages == []


async def test_a_test_message(watcher: Callable[[], Any], autojump_clock: Any, make: MakeNode) -> None:
    async with watcher() as told:
        await told.notices.try_out()
        assert [message.title for message in told.messages] == ["one: a test"]
        told.fails = True
        with pytest.raises(NotDelivered, match="answered 500"):
            await told.notices.try_out()
        with pytest.raises(NotDone, match="--notify-url"):
            await Told(make("two")).notices.try_out()


async def test_without_an_address_nothing_is_told(make: MakeNode, autojump_clock: Any) -> None:
    async with watching(make()) as told:
        told.heard_of("bergen")
        await told.stays(5)
        told.loses("bergen")
        await told.stays(AFTER_S + 50)
        assert told.messages == []
        assert told.notices.status() == {"to": "", "tells": False, "told": 0, "waiting": 0, "dropped": 0, "problem": ""}
        assert told.notices.findings()[0]["severity"] == "info"
        told.heard_of("cusco", notifies=True)
        assert told.notices.findings()[0]["finding"] == "sent by cusco"


async def test_silence_is_longer_where_nodes_announce_rarely(watcher: Callable[[], Any], autojump_clock: Any) -> None:
    async with watcher() as told:
        told.heard_of("bergen", announce_every_s=60)
        await told.stays(5)
        told.loses("bergen")
        await told.stays(100)
        assert told.messages == []
        await told.stays(30)
        assert len(told.messages) == 1


async def test_the_address_is_nowhere_in_what_people_see(watcher: Callable[[], Any], autojump_clock: Any) -> None:
    async with watcher() as told:
        told.fails = True
        told.heard_of("bergen")
        await told.stays(5)
        told.loses("bergen")
        await told.stays(AFTER_S + 5)
        shown = [
            told.notices.status(),
            told.notices.findings(),
            told.node.facts,
            told.node.facts.settings,
            told.node.own_record(),
        ]
        assert "t0psecret" not in "".join(map(repr, shown))
