"""Who may serve now. A real ledger, links that are only said to be there, and a mock clock for both times."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
import trio
from structlog.testing import capture_logs

from federation.forward.roster import LACKS_S, MAX_LACKING, MAX_LISTS, REFRESH_S, Roster, catalogs_of
from federation.forward.route import Route
from federation.mesh.ledger import Ledger
from federation.mesh.models import Model, catalog, pack
from federation.mesh.records import NODE_ONLINE_WINDOW, NodeData
from tests.support.entries import settled
from tests.support.sockets import CountingReactor, running

if TYPE_CHECKING:
    from trio.testing import MockClock

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
UP = {"default": True}


@dataclass
class FakeLink:
    suspect: bool = False
    least_rtt_s: float | None = None
    path: str = "direct"


def utc_now() -> datetime:
    return START + timedelta(seconds=trio.current_time())


class World:
    """A node `own` and what it knows."""

    def __init__(self, **own: Any) -> None:
        self.own = own
        self.ledger = Ledger()
        self.links: dict[str, Any] = {}
        self.reactor = CountingReactor()
        self.changes = 0
        self.asked = 0

    def roster(self, target: str | None = None) -> Roster:
        roster = Roster(
            ledger=self.ledger, links=self.links, own=self.own_record, utc_now=utc_now, reactor=self.reactor, target=target,
            path_penalty_s=0.1,
        )  # fmt: skip

        def count() -> None:
            self.changes += 1

        roster.on_change = count
        return roster

    def own_record(self) -> NodeData:
        self.asked += 1
        return NodeData(peer_id="own", last_seen=utc_now(), **self.own)

    def hear(self, peer_id: str, *, linked: bool = True, suspect: bool = False, **fields: Any) -> None:
        self.ledger.merge(NodeData(peer_id=peer_id, **{"services": UP, "last_seen": utc_now(), **fields}), now=utc_now())
        if linked:
            self.links[peer_id] = FakeLink(suspect)


def ids(roster: Roster, service: str = "default") -> list[str]:
    return [node.peer_id for node in roster.eligible(Route(service))]


@pytest.mark.parametrize(
    ("fields", "eligible"),
    [
        ({}, True),
        ({"services": {"default": False}}, False),
        ({"services": {"other": True}}, False),
        ({"services": {}}, False),
        ({"draining": True}, False),
        ({"left": True}, False),
        ({"linked": False}, False),
        ({"suspect": True}, False),
        ({"in_flight": 10, "capacity": 10}, True),  # full: the last choice, but one
    ],
)
async def test_who_is_eligible(mock_clock: MockClock, fields: dict[str, Any], eligible: bool) -> None:
    world = World()
    world.hear("a", **fields)
    assert ids(world.roster()) == ["a"] * eligible


@pytest.mark.parametrize(
    ("own", "eligible"), [({"services": UP}, True), ({}, False), ({"services": UP, "draining": True}, False)]
)
async def test_this_node_needs_no_link_to_itself(mock_clock: MockClock, own: dict[str, Any], eligible: bool) -> None:
    assert ids(World(**own).roster()) == ["own"] * eligible


async def test_this_node_is_there_once_and_as_it_is_now(mock_clock: MockClock) -> None:
    """The ledger has its record too, as last announced."""
    world = World(services=UP, available_vram=5)
    world.hear("own", available_vram=1)
    world.hear("a")
    nodes = world.roster().eligible(Route("default"))
    assert [(node.peer_id, node.available_vram) for node in nodes] == [("own", 5), ("a", 0)]


async def test_this_nodes_announced_health_does_not_count(mock_clock: MockClock) -> None:
    world = World(services={"default": False})
    world.hear("own")
    assert ids(world.roster()) == []


async def test_services_are_apart(mock_clock: MockClock) -> None:
    world = World()
    world.hear("a", services={"llm": True, "tts": False})
    world.hear("b", services={"tts": True})
    roster = world.roster()
    assert (ids(roster, "llm"), ids(roster, "tts"), ids(roster, "none")) == (["a"], ["b"], [])


@pytest.mark.parametrize(("target", "expected"), [("b", ["b"]), ("the big one", ["b", "c"]), ("own", ["own"]), ("x", [])])
async def test_a_target_is_a_peer_id_or_a_name(mock_clock: MockClock, target: str, expected: list[str]) -> None:
    world = World(services=UP, name="here")
    world.hear("a")
    world.hear("b", name="the big one")
    world.hear("c", name="the big one")
    assert ids(world.roster(target)) == expected


async def test_a_target_that_is_an_id_is_no_node_s_name(mock_clock: MockClock) -> None:
    world, wanted, decoy = World(), "12D3KooW" + "A" * 44, "12D3KooW" + "B" * 44
    world.hear(decoy, name=wanted)
    roster = world.roster(wanted)
    assert ids(roster) == []
    world.hear(wanted)
    assert ids(world.roster(wanted)) == [wanted]
    assert roster.namesakes() == []


async def test_a_target_that_is_the_name_of_several_is_said_once(mock_clock: MockClock) -> None:
    world = World(name="me")
    world.hear("b", name="big")
    roster = world.roster("big")
    with capture_logs() as logs:
        assert (ids(roster), roster.namesakes(), logs) == (["b"], [], [])
        world.hear("c", name="big", linked=False)
        for _ in range(2):
            roster.changed()
            assert (ids(roster), roster.namesakes()) == (["b"], ["b", "c"])
    assert [(line["name"], line["nodes"]) for line in logs] == [("big", ["b", "c"])]
    assert world.roster().namesakes() == world.roster("me").namesakes() == []


# What changes


async def test_a_change_shows_at_once_and_is_told(mock_clock: MockClock) -> None:
    world = World()
    roster = world.roster()
    world.hear("a")
    assert ids(roster) == ["a"]
    world.links["a"].suspect = True
    roster.changed()
    assert ids(roster) == []
    world.links["a"].suspect = False
    roster.changed()
    assert ids(roster) == ["a"]
    del world.links["a"]
    roster.changed()
    assert ids(roster) == []
    assert world.changes == 3


async def test_the_list_is_made_when_something_changed_and_not_for_each_connection(mock_clock: MockClock) -> None:
    world = World(services=UP)
    roster = world.roster()
    world.asked = 0
    for _ in range(1000):
        roster.eligible(Route("default"))
    assert world.asked == 1
    roster.changed()
    roster.eligible(Route("default"))
    assert world.asked == 2


async def test_a_peer_that_falls_silent_goes_though_nobody_says_so(mock_clock: MockClock) -> None:
    world = World()
    world.hear("a")
    roster = world.roster()
    mock_clock.jump(NODE_ONLINE_WINDOW.total_seconds() - 0.01)
    assert ids(roster) == ["a"]
    mock_clock.jump(REFRESH_S)
    assert ids(roster) == []


async def test_links_are_found_by_peer(mock_clock: MockClock) -> None:
    world = World()
    world.hear("a")
    roster = world.roster()
    assert roster.link("a") is world.links["a"]
    assert roster.link("b") is None
    assert roster.own_id == "own"


# Penalties


async def test_a_penalty_ends_by_itself_and_those_who_wait_hear_of_it(mock_clock: MockClock) -> None:
    world = World()
    world.hear("a")
    world.hear("b")
    roster = world.roster()
    assert ids(roster) == ["a", "b"]
    async with running(world.reactor):
        roster.penalize("a", 2.0)
        assert ids(roster) == ["b"]
        assert world.changes == 0  # nobody who waits is helped by it
        mock_clock.jump(1.9)
        await settled()
        assert ids(roster) == ["b"]
        assert world.changes == 0
        mock_clock.jump(0.1)
        await settled()
        assert world.changes == 1
        assert ids(roster) == ["a", "b"]


async def test_a_penalty_holds_for_all_services_and_for_this_node_too(mock_clock: MockClock) -> None:
    world = World(services={"llm": True, "tts": True})
    roster = world.roster()
    assert ids(roster, "llm") == ids(roster, "tts") == ["own"]
    roster.penalize("own", 1.0)
    assert ids(roster, "llm") == ids(roster, "tts") == []


async def test_the_end_of_one_penalty_does_not_end_the_next(mock_clock: MockClock) -> None:
    world = World()
    world.hear("a")
    roster = world.roster()
    async with running(world.reactor):
        roster.penalize("a", 1.0)
        mock_clock.jump(0.9)
        roster.penalize("a", 1.0)
        mock_clock.jump(0.1)
        await settled()
        assert ids(roster) == []
        mock_clock.jump(0.9)
        await settled()
        assert ids(roster) == ["a"]


async def test_thousands_that_leave_a_peer_at_once_make_the_lists_anew_once(mock_clock: MockClock) -> None:
    """With 300 peers each of them cost a look at all: 5,000 clients stopped the entry for seconds."""
    world = World()
    for peer in "abc":
        world.hear(peer)
    roster = world.roster()
    asked: list[int] = []
    for _ in range(100):
        roster.penalize("a", 2.5)
        assert ids(roster) == ["b", "c"]
        mock_clock.jump(0.0001)
        asked.append(world.asked)
    assert asked[0] == asked[-1]
    mock_clock.jump(1.0)
    roster.penalize("a", 2.5)  # later: that one is longer
    mock_clock.jump(2.0)
    assert ids(roster) == ["b", "c"]


async def test_a_peer_is_forgiven_at_once(mock_clock: MockClock) -> None:
    world = World()
    world.hear("a")
    roster = world.roster()
    roster.penalize("a", 100.0)
    assert ids(roster) == []
    roster.forgive("a")
    assert ids(roster) == ["a"]
    assert world.changes == 1
    roster.forgive("a")
    roster.forgive("nobody")
    assert world.changes == 1  # no news


async def test_it_works_before_anybody_listens(mock_clock: MockClock) -> None:
    world = World()
    roster = Roster(ledger=world.ledger, links=world.links, own=world.own_record, utc_now=utc_now, reactor=world.reactor)
    roster.changed()
    assert ids(roster) == []


async def test_far_is_said_of_those_who_are_eligible(autojump_clock: trio.testing.MockClock) -> None:
    """The nearest of them is what the others are compared with; an own backend is nearer than anybody."""
    world = World()
    for peer_id, rtt_s, path in (
        ("near", 0.02, "direct"),
        ("new", None, "direct"),
        ("far", 0.2, "direct"),
        ("round", 0.1, "relayed"),
    ):
        world.hear(peer_id)
        world.links[peer_id] = FakeLink(least_rtt_s=rtt_s, path=path)
    world.hear("busy", services={"default": False})
    roster = world.roster()
    assert roster.distant(Route("default")) == set()
    assert set(ids(roster)) == {"near", "new", "far", "round"}
    assert roster.distant(Route("default")) == {"far", "round"}
    del world.links["near"], world.links["new"]
    roster.changed()
    ids(roster)
    assert roster.distant(Route("default")) == set()
    world.own["services"] = UP
    roster.changed()
    ids(roster)
    assert roster.distant(Route("default")) == {"far", "round"}


# Models


def models(*names: str, kind: str = "vllm", service: str = "default", total: int = 0) -> bytes:
    return pack({service: catalog(kind, [Model(name) for name in names], total=total)})


def having(roster: Roster, model: str, service: str = "default") -> list[str]:
    return [node.peer_id for node in roster.eligible(Route(service, model))]


async def test_a_model_is_asked_of_those_who_announce_it(mock_clock: MockClock) -> None:
    world = World(services=UP, models=models("m", "n"))
    world.hear("a", models=models("m"))
    world.hear("b", models=models("n"))
    world.hear("old")
    roster = world.roster()
    assert having(roster, "m") == ["own", "a"]
    assert having(roster, "n") == ["own", "b"]
    assert having(roster, "") == ids(roster) == ["own", "a", "b", "old"]


async def test_a_model_that_nobody_announces_is_asked_of_those_who_do_not_tell_all(mock_clock: MockClock) -> None:
    world = World(services=UP, models=models("m"))
    world.hear("old")
    world.hear("many", models=models("x", total=1000))
    world.hear("whole", models=models("x"))
    world.hear("other", models=models("zz", service="other"))
    assert having(world.roster(), "zz") == ["old", "many", "other"]


async def test_ollama_has_its_own_names(mock_clock: MockClock) -> None:
    world = World()
    world.hear("a", models=models("llama3:latest", kind="ollama"))
    world.hear("b", models=models("llama3:latest", kind="vllm"))
    roster = world.roster()
    assert having(roster, "LLama3") == ["a"]
    assert having(roster, "llama3:latest") == ["a", "b"]


async def test_a_route_to_one_node(mock_clock: MockClock) -> None:
    world = World()
    for peer in ("a", "b"):
        world.hear(peer, models=models("m"))
    roster = world.roster()
    assert [node.peer_id for node in roster.eligible(Route("default", "other", "b"))] == ["b"]
    assert roster.eligible(Route("default", "m", "gone")) == []
    assert set(roster.models_at(Route("default", "m", "b"))) == {"a", "b"}


async def test_the_model_as_each_node_has_it(mock_clock: MockClock) -> None:
    world = World()
    world.hear("a", models=pack({"default": catalog("ollama", [Model("m:latest", True, 1 << 20, 2)])}))
    world.hear("b", models=models("m"))
    world.hear("c", models=models("other"))
    roster = world.roster()
    route = Route("default", "m")
    assert roster.models_at(route) == {"a": Model("m:latest", True, 1 << 20, 2), "b": Model("m")}
    assert roster.models_at(route) is roster.models_at(route)
    world.hear("a", models=models("other"), seq=1)
    roster.changed()
    assert roster.models_at(route) == {"b": Model("m")}


async def test_models_of_another_service_do_not_count(mock_clock: MockClock) -> None:
    world = World()
    world.hear("a", services={"default": True, "tts": True}, models=models("m", service="tts"))
    world.hear("b", models=models("m"))
    roster = world.roster()
    assert having(roster, "m") == ["b"]
    assert having(roster, "m", "tts") == ["a"]
    assert roster.catalogs("tts") == [catalog("vllm", [Model("m")])]


@pytest.mark.parametrize(
    "fields", [{"suspect": True}, {"linked": False}, {"draining": True}, {"services": {"default": False}}]
)
async def test_who_cannot_serve_is_not_asked_though_it_has_the_model(mock_clock: MockClock, fields: dict[str, Any]) -> None:
    world = World()
    world.hear("a", models=models("m"), **fields)
    world.hear("b", models=models("other"))
    roster = world.roster()
    assert having(roster, "m") == []
    assert not roster.is_unheard_of(Route("default", "m")), "it may come back"
    assert roster.is_unheard_of(Route("default", "typo"))
    assert [listed.models[0].name for listed in roster.catalogs("default")] == ["other"]


async def test_a_model_may_turn_up_where_somebody_does_not_tell(mock_clock: MockClock) -> None:
    """404 is for a model that nobody has; official clients do not try that again."""
    world = World()
    route = Route("default", "m")
    assert not world.roster().is_unheard_of(route), "no node is known yet"
    world.hear("a", models=models("other"))
    roster = world.roster()
    assert roster.is_unheard_of(route)
    world.hear("unchecked", services={"default": False})
    roster.changed()
    assert not roster.is_unheard_of(route)
    world.hear("unchecked", services={"default": False}, models=models("m", total=3), seq=1)
    roster.changed()
    assert not roster.is_unheard_of(route)
    world.hear("unchecked", left=True, seq=2)
    roster.changed()
    assert roster.is_unheard_of(route)


async def test_news_of_models_are_heard(mock_clock: MockClock) -> None:
    world = World()
    world.hear("a", models=models("m"))
    roster = world.roster()
    assert having(roster, "m") == ["a"]
    world.hear("a", models=models("n"), seq=1)
    roster.changed()
    assert (having(roster, "m"), having(roster, "n")) == ([], ["a"])
    roster.penalize("a", 1.0)
    assert having(roster, "n") == []


async def test_asking_for_models_without_end_takes_no_memory_without_end(mock_clock: MockClock) -> None:
    world = World()
    world.hear("a", models=models("m"))
    roster = world.roster()
    for n in range(3 * MAX_LISTS):
        roster.eligible(Route("default", f"no-{n}"))
    assert len(roster._lists) <= MAX_LISTS + 2
    assert having(roster, "m") == ["a"]


async def test_what_cannot_be_read_has_no_models(mock_clock: MockClock) -> None:
    world = World()
    world.hear("a", models=b"\xff\xff")
    world.hear("b", models=models("m"))
    roster = world.roster()
    assert having(roster, "m") == ["b"]
    assert having(roster, "n") == ["a"]
    assert catalogs_of(b"\xff\xff") == {}


async def test_a_service_speaks_http_if_a_node_says_so_also_one_that_is_away(mock_clock: MockClock) -> None:
    world = World()
    roster = world.roster()
    assert not roster.speaks_http("default")
    world.hear("a", http=("default",), seq=1)
    roster.changed()
    assert roster.speaks_http("default")
    assert not roster.speaks_http("other")
    world.hear("a", http=("default",), linked=False, services={"default": False}, seq=2)
    roster.changed()
    mock_clock.jump(NODE_ONLINE_WINDOW.total_seconds() + 1)
    assert ids(roster) == []
    assert roster.speaks_http("default")
    world.hear("a", left=True, http=("default",), seq=3)
    mock_clock.jump(REFRESH_S)
    assert not roster.speaks_http("default")


async def test_the_own_backend_makes_its_service_http(mock_clock: MockClock) -> None:
    world = World(http=("llm",))
    roster = world.roster()
    assert roster.speaks_http("llm")
    asked = world.asked
    assert all(roster.speaks_http("llm") for _ in range(100))
    assert world.asked == asked, "each connection would cost a walk through all records"


async def test_a_request_that_wants_one_node_gets_it_whatever_it_announces(mock_clock: MockClock) -> None:
    world = World()
    world.hear("a", name="alice", models=pack({"default": catalog("vllm", [Model("m")])}))
    world.hear("b", name="bob")
    roster = world.roster()
    for target, found in (("alice", ["a"]), ("b", ["b"]), ("bob", ["b"]), ("nobody", []), ("ali", [])):
        assert [node.peer_id for node in roster.eligible(Route("default", "m", target))] == found
        assert roster.is_known(target) is bool(found)
    assert roster.is_known("own")
    world.hear("b", name="bob", left=True, seq=1)
    assert not roster.is_known("bob")


async def test_a_peer_that_lacks_a_model_is_asked_last_for_a_while(mock_clock: MockClock) -> None:
    models = pack({"default": catalog("vllm", [Model("m"), Model("n")])})
    world = World()
    world.hear("a", models=models)
    world.hear("b", models=models)
    roster = world.roster()

    def having(model: str) -> list[str]:
        return [node.peer_id for node in roster.eligible(Route("default", model))]

    roster.lacks(Route("default", "m"), "a")
    assert (having("m"), having("n")) == (["b"], ["a", "b"])
    roster.lacks(Route("default", "m"), "b")
    assert having("m") == ["a", "b"], "nobody else has it"
    mock_clock.jump(LACKS_S)
    assert having("m") == ["a", "b"]
    for n in range(3 * MAX_LACKING):
        roster.lacks(Route("default", f"m{n}"), "a")
    assert len(roster._lacking) <= MAX_LACKING


async def test_a_request_for_a_kind_of_server_goes_there_if_there_is_one(mock_clock: MockClock) -> None:
    world = World()
    world.hear("a", models=pack({"default": catalog("vllm", [Model("m")])}))
    world.hear("b", models=pack({"default": catalog("ollama", [Model("m")])}))
    world.hear("c")
    roster = world.roster()
    assert [node.peer_id for node in roster.eligible(Route("default", kind="ollama"))] == ["b"]
    assert [node.peer_id for node in roster.eligible(Route("default", kind="sglang"))] == ["a", "b", "c"]
    assert [node.peer_id for node in roster.eligible(Route("default", "m", kind="ollama"))] == ["a", "b"]


async def test_a_peer_that_is_left_alone_for_a_moment_stays_in_the_lists(mock_clock: MockClock) -> None:
    world = World()
    for name in ("a", "b"):
        world.hear(name, models=pack({"default": catalog("vllm", [Model(name)])}))
    roster = world.roster()
    roster.penalize("a", 1.0)
    assert [node.peer_id for node in roster.eligible(Route("default"))] == ["b"]
    assert sorted(listed.models[0].name for listed in roster.catalogs("default")) == ["a", "b"]
