"""What a node says of itself, over a node that does not run: its ledger, links and counters are set by hand."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trio

from federation.clock import Clock
from federation.forward.attempts import State
from federation.forward.counters import Answer, Busier, Decision, Ending, Failure, Flow
from federation.forward.http.usage import Tokens
from federation.forward.route import Route
from federation.forward.selection import Candidate, Policy, Selector
from federation.mesh.gpu import GpuReading
from federation.mesh.keyring import Keyring
from federation.mesh.records import NODE_ONLINE_WINDOW, Gpu, NodeData
from federation.mesh.tokens import Token
from federation.ops import status
from federation.ops.ownership import Wish
from tests.support.nodes import GIB, KEY, TOKEN, MakeNode, add, idle_node

if TYPE_CHECKING:
    from pathlib import Path

    from federation.node import Node


@pytest.fixture
def make(tmp_path: Path) -> MakeNode:
    return partial(idle_node, tmp_path / "s")


def row(node: Node, name: str) -> dict[str, Any]:
    (found,) = [row for row in node.operator.peers() if row["name"] == name]
    return found


class TestPeers:
    async def test_its_own_row_is_there_before_anything_was_announced(self, make: MakeNode) -> None:
        node = make()
        (me,) = node.operator.peers()
        assert me["self"] is True
        assert me["online"] is True
        assert me["path"] == "self"
        assert me["peer_id"] == node.parts.peer_id
        assert 0 <= me["last_seen_age_s"] < 1

    async def test_shape(self, make: MakeNode) -> None:
        node = make(capacity=3)
        node.facts.gpu = GpuReading((Gpu(name="x", total_vram=8 * GIB, available_vram=2 * GIB),), "nvml")
        peer_id = add(
            node, "bob", rtt_s=0.0012345, in_flight=4, capacity=9, available_vram=5, total_vram=6, version="1.2",
            draining=True, gpus=(Gpu(name="y", total_vram=6, available_vram=5),), addresses=("/ip4/192.0.2.9/tcp/1",),
        )  # fmt: skip
        bob = row(node, "bob")
        seen = datetime.fromisoformat(bob.pop("last_seen"))
        assert seen.utcoffset() == timedelta(0)
        assert bob.pop("last_seen_age_s") == pytest.approx(1.0, abs=0.1)
        assert bob == {
            "peer_id": peer_id, "name": "bob", "self": False, "online": True, "state": "draining", "available_vram": 5,
            "total_vram": 6, "gpus": [{"name": "y", "total_vram": 6, "available_vram": 5}], "in_flight": 4,
            "in_flight_here": 0, "served": 0, "capacity": 9, "services": {"default": True}, "draining": True,
            "path": "direct", "via": "", "rtt_ms": 1.234, "version": "1.2", "addresses": ["/ip4/192.0.2.9/tcp/1"],
        }  # fmt: skip
        me = row(node, "me")
        assert set(me) == {*bob, "last_seen", "last_seen_age_s"}
        assert (me["available_vram"], me["total_vram"], me["capacity"]) == (2 * GIB, 8 * GIB, 3)
        assert me["rtt_ms"] is None

    async def test_this_node_first_then_by_name(self, make: MakeNode) -> None:
        node = make(name="m")
        for name in ("z", "a", "n"):
            add(node, name)
        assert [row["name"] for row in node.operator.peers()] == ["m", "a", "n", "z"]
        assert [row["self"] for row in node.operator.peers()] == [True, False, False, False]

    @pytest.mark.parametrize(
        ("facts", "state", "online"),
        [
            ({}, "online", True),
            ({"services": {"a": False, "b": True}}, "online", True),
            ({"services": {"default": False}}, "backend down", True),
            ({"services": {}}, "no backend", True),
            ({"draining": True}, "draining", True),
            ({"draining": True, "services": {}}, "draining", True),
            ({"suspect": True, "draining": True}, "suspect", True),
            ({"linked": False, "draining": True}, "unreachable", False),
            ({"age_s": 39.0}, "online", True),
            ({"age_s": NODE_ONLINE_WINDOW.total_seconds()}, "offline", False),
            ({"age_s": 41.0, "linked": False}, "offline", False),
            ({"left": True, "age_s": 41.0, "linked": False}, "left", False),
            ({"left": True}, "left", False),
        ],
    )
    async def test_state_is_the_worst_that_is_so(
        self, make: MakeNode, facts: dict[str, Any], state: str, online: bool
    ) -> None:
        node = make()
        add(node, "bob", **facts)
        assert (row(node, "bob")["state"], row(node, "bob")["online"]) == (state, online)

    async def test_our_own_state(self, make: MakeNode) -> None:
        node = make(backends=("127.0.0.1:1",))
        assert row(node, "me")["state"] == "backend down"
        node.backends.all[0].healthy = True
        assert row(node, "me")["state"] == "online"
        node.facts.draining = True
        assert row(node, "me")["state"] == "draining"
        assert row(make(), "me")["state"] == "no backend"

    async def test_our_own_load_is_the_present_one(self, make: MakeNode) -> None:
        """What was announced is older; and a tombstone of ours in the ledger is not what we are."""
        node = make()
        node.ledger.merge(node.own_record(9).model_copy(update={"left": True}), now=node.clock.utc_now())
        node.backends.load.in_flight = 2
        (me,) = node.operator.peers()
        assert me["in_flight"] == 2
        assert me["state"] == "no backend"

    async def test_what_this_entry_sent_there(self, make: MakeNode) -> None:
        node = make()
        peer_id = add(node, "bob")
        node.selector.pick([node.ledger.get(peer_id).record], now=0.0)  # type: ignore[union-attr]
        assert (row(node, "bob")["in_flight_here"], row(node, "bob")["served"]) == (1, 1)
        node.selector.release(peer_id)
        assert (row(node, "bob")["in_flight_here"], row(node, "bob")["served"]) == (0, 1)


class TestStatus:
    async def test_online_means_within_reach(self, make: MakeNode) -> None:
        node = make()
        node.ledger.merge(node.own_record(), now=node.clock.utc_now())
        add(node, "linked")
        add(node, "far", linked=False)
        add(node, "old", age_s=60)
        network = node.operator.status()["network"]
        assert (network["peers_online"], network["peers_known"]) == (2, 4)
        assert network["paths"] == {"direct": 2}

    async def test_services_of_the_whole_network(self, make: MakeNode) -> None:
        node = make(backends=("chat=127.0.0.1:7",))
        add(node, "up", services={"default": True})
        add(node, "down", services={"default": False, "embed": True})
        add(node, "drains", services={"default": True}, draining=True)
        add(node, "silent", services={"embed": True}, suspect=True)
        add(node, "far", linked=False, services={"default": True})
        assert node.operator.status()["network"]["services"] == {
            "default": {"nodes": 3, "up": 1},
            "embed": {"nodes": 2, "up": 1},
            "chat": {"nodes": 1, "up": 0},
        }

    async def test_it_holds_no_secret(self, make: MakeNode) -> None:
        node = make()
        text = json.dumps([node.operator.status(), node.operator.peers(), node.operator.explain(5)])
        assert "fed1_" not in text
        assert TOKEN.secret.hex() not in text
        assert node.operator.status()["network"]["id"] == TOKEN.network_id

    async def test_counters(self, make: MakeNode) -> None:
        node = make()
        totals = node.frontend.counters.totals
        totals.started, totals.failed, totals.retried = 5, 2, 1
        assert node.operator.status()["connections"] == {
            "now": 0,
            "total": 5,
            "failed": 2,
            "retried": 1,
            "received": 0,
            "delivered": 0,
        }

    async def test_uptime(self, make: MakeNode, autojump_clock: trio.testing.MockClock) -> None:
        node = make()
        await trio.sleep(90)
        assert node.operator.status()["node"]["uptime_s"] == 90

    async def test_tasks_are_counted(self, make: MakeNode, nursery: trio.Nursery) -> None:
        node = make()
        before = node.operator.status()["node"]["tasks"]
        nursery.start_soon(trio.sleep_forever)
        nursery.start_soon(trio.sleep_forever)
        assert node.operator.status()["node"]["tasks"] == before + 2

    async def test_warnings(self, make: MakeNode) -> None:
        node = make(backends=("chat=127.0.0.1:7",))
        assert node.operator.status()["warnings"] == []  # not checked yet is no warning
        node.backends.all[0].healthy = False
        node.backends.all[0].why = "connection refused"
        for name in "abcdefg":
            add(node, name, linked=False)
        add(node, "gone", linked=False, age_s=60)
        add(node, "left", linked=False, left=True)
        node.host.rejected["other token"] = 3
        node.host.rejected["handshake"] = 9
        backend, reach, token = node.operator.status()["warnings"]
        assert all(word in backend for word in ("127.0.0.1:7", "chat", "connection refused"))
        assert reach.endswith(": a, b, c, d, e")
        assert token.startswith("3 ")

    async def test_a_target_that_several_are_named_is_a_warning(self, make: MakeNode) -> None:
        node = make(target="bob")
        bob = add(node, "bob")
        assert node.operator.status()["warnings"] == []
        other = add(node, "mob", name="bob")
        (warning,) = node.operator.status()["warnings"]
        assert warning.startswith("2 nodes are named 'bob'")
        assert warning.endswith(", ".join(sorted([bob, other])))

    async def test_nameless_peers_are_shown_by_id(self, make: MakeNode) -> None:
        node = make()
        peer_id = add(node, "x", name="", linked=False)
        assert peer_id in node.operator.status()["warnings"][0]


class TestExplain:
    async def test_the_last_decisions(
        self, make: MakeNode, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("federation.node.Clock", lambda: Clock(wall=lambda: 1.8e9 + trio.current_time()))
        node = make()
        bob = add(node, "bob")
        selector = Selector(Policy.LEAST_LOADED, entry_id="x", rng=None)  # type: ignore[arg-type]
        for n in range(3):
            await trio.sleep(10)
            pick = selector.pick([node.ledger.get(bob).record], now=trio.current_time())  # type: ignore[union-attr]
            assert pick is not None
            node.frontend.counters.decisions.append(Decision(trio.current_time(), Route("chat"), f"c{n}", pick, 1))
        await trio.sleep(5)
        first, second, third = node.operator.explain(10)
        assert [d["client"] for d in (first, second, third)] == ["c0", "c1", "c2"]
        assert [d["client"] for d in node.operator.explain(2)] == ["c1", "c2"]
        at = [datetime.fromisoformat(d["at"]) for d in (first, second, third)]
        assert (at[1] - at[0]).total_seconds() == pytest.approx(10)
        assert (node.clock.utc_now() - at[2]).total_seconds() == pytest.approx(5)
        assert third["chosen"] == bob
        assert third["name"] == "bob"
        assert third["service"] == "chat"
        assert third["tier"] == "only"
        assert first["candidates"][0]["last_used_age_s"] is None  # never used
        assert second["candidates"][0]["last_used_age_s"] == 10
        assert json.dumps(node.operator.explain(10), allow_nan=False)

    async def test_one_connection_with_its_failures_and_its_end(self, make: MakeNode) -> None:
        node = make()
        add(node, "bob")
        pick = node.selector.pick([r for r in node.ledger.records()], now=0.0)
        assert pick is not None
        frontend = node.frontend
        for connection, attempt in ((7, 1), (8, 1), (7, 2)):
            frontend.counters.decisions.append(Decision(0.0, Route("s"), "c", pick, attempt, Flow(connection)))
        frontend.counters.failures.append(Failure(Flow(7), 1, "bob", "it said no"))
        frontend.counters.endings.append(Ending(Flow(7), Route("s"), "c", "bob", 2, 0.0, 1.23456, 10, 20, "reset"))
        first, second = node.operator.explain(1, 7)
        assert [(d["id"], d["attempt"], d["failed"]) for d in (first, second)] == [(7, 1, "it said no"), (7, 2, None)]
        ended = {"peer_id": "bob", "seconds": 1.235, "received": 10, "delivered": 20, "error": "reset", "answer": None}
        assert first["ended"] == second["ended"] == ended
        (open_one,) = node.operator.explain(1, 8)
        assert (open_one["failed"], open_one["ended"]) == (None, None)
        assert node.operator.explain(1, 9) == []

    async def test_a_request_with_its_answer(self, make: MakeNode) -> None:
        node = make()
        bob = NodeData(peer_id="bob", last_seen=node.clock.utc_now())
        pick = node.selector.pick([bob], now=0.0, route=Route("s", "m"), cold={"bob"})
        assert pick is not None
        route = Route("s", "m\x1b")
        told = Answer(200, 0.5, 0.12345, is_stream=True, tokens=Tokens(9, 12, None))
        counters = node.frontend.counters
        counters.decisions.append(Decision(0.0, route, "c", pick, 1, Flow(7, 2)))
        counters.endings.append(Ending(Flow(7, 2), route, "c", "bob", 1, 0.0, 1.0, 10, 20, None, told))
        counters.endings.append(Ending(Flow(7, 3), route, "c", "", 0, 0.0, 1.0, 10, 20, "no", Answer(503)))
        (row,) = node.operator.explain(9)
        assert (row["model"], row["tier"], row["loads"]) == ("m?", "only", True)
        assert row["ended"]["answer"] == {
            "status": 200, "queued_s": 0.5, "first_s": 0.123, "is_stream": True,
            "tokens": {"taken": 9, "made": 12, "cached": None},
        }  # fmt: skip
        assert node.operator.turned_away(9)[0]["model"] == "m?"

    async def test_what_was_sent_back_and_what_failed_are_told_apart(self, make: MakeNode) -> None:
        node = make()
        add(node, "bob")
        pick = node.selector.pick([r for r in node.ledger.records()], now=0.0)
        assert pick is not None
        counters = node.frontend.counters
        for attempt, again in ((1, 0), (1, 1), (1, 2), (2, 2)):
            counters.decisions.append(Decision(0.0, Route("s"), "c", pick, attempt, Flow(7), again))
        for again, had in ((0, 3), (1, None)):
            counters.picked_again(Busier(Flow(7), 1, again, had, 2 + again))
        counters.picked_again(Busier(Flow(8), 2, 2, 9, 9))  # another connection's
        counters.failures.append(Failure(Flow(7), 1, "bob", "the peer is at its capacity"))
        told = [(d["attempt"], d["sent_back"], d["failed"]) for d in node.operator.explain(1, 7)]
        assert told == [
            (1, {"had": 3, "believed": 2}, None),
            (1, {"had": None, "believed": 3}, None),
            (1, None, "the peer is at its capacity"),
            (2, None, None),
        ]
        text, _ = node.operator.metrics_text("")
        assert b"federation_picks_again_total 3.0" in text

    async def test_requests_of_one_connection_are_told_apart(self, make: MakeNode) -> None:
        node = make()
        add(node, "bob")
        pick = node.selector.pick([r for r in node.ledger.records()], now=0.0)
        assert pick is not None
        counters = node.frontend.counters
        for request in (1, 2):
            counters.decisions.append(Decision(0.0, Route("s"), "c", pick, 1, Flow(7, request)))
        counters.failures.append(Failure(Flow(7, 2), 1, "bob", "it said no"))
        counters.endings.append(Ending(Flow(7, 1), Route("s"), "c", "bob", 1, 0.0, 1.0, 10, 20, None))
        first, second = node.operator.explain(1, 7)
        assert [(d["id"], d["request"], d["failed"]) for d in (first, second)] == [(7, 1, None), (7, 2, "it said no")]
        assert [d["ended"] is None for d in (first, second)] == [False, True]

    async def test_whom_nobody_had(self, make: MakeNode) -> None:
        node = make()
        at = trio.current_time()
        for number, peer_id, error in ((1, "", "no peer is available"), (2, "bob", "reset"), (3, "", None)):
            node.frontend.counters.endings.append(Ending(Flow(number), Route("s"), "c", peer_id, 0, at, 10.0, 0, 0, error))
        first, second = node.operator.turned_away(10)
        assert (first["id"], first["why"], first["seconds"]) == (1, "no peer is available", 10.0)
        assert (second["id"], "client went away" in second["why"]) == (3, True)
        assert abs(datetime.fromisoformat(first["at"]) - node.clock.utc_now()) < timedelta(seconds=1)
        assert [row["id"] for row in node.operator.turned_away(1)] == [3]
        assert [row["id"] for row in node.operator.turned_away(1, 1)] == [1]
        assert node.operator.turned_away(10, 2) == []

    async def test_of_a_peer_that_is_forgotten(self, make: MakeNode) -> None:
        node = make()
        gone = Candidate("gone", 1, -float("inf"), 2)
        selector = node.selector
        add(node, "bob")
        pick = selector.pick([r for r in node.ledger.records()], now=0.0)._replace(chosen=gone, candidates=(gone,))  # type: ignore[union-attr]
        node.frontend.counters.decisions.append(Decision(0.0, Route("s"), "c", pick, 1))
        (decision,) = node.operator.explain(1)
        assert decision["name"] == ""
        assert (decision["id"], decision["failed"], decision["ended"]) == (0, None, None)
        assert decision["candidates"] == [
            {
                "peer_id": "gone",
                "name": "",
                "in_flight": 1,
                "last_used_age_s": None,
                "available_vram": 2,
                "served": 0,
                "far": False,
                "path": "none",
                "rtt_ms": None,
            }
        ]


class FakeClient(SimpleNamespace):
    __hash__ = object.__hash__  # type: ignore[assignment]


class TestConnections:
    async def test_the_oldest_first_and_what_each_does(self, make: MakeNode) -> None:
        node = make()
        peer = add(node, "athens")

        def client(number: int, state: State, *, peer_id: str = "", count: int = 0) -> Any:
            return FakeClient(
                flow=Flow(number),
                route=Route("chat"),
                client_name=f"10.0.0.1:{number}",
                socket=SimpleNamespace(received=10 * number, delivered=number),
                moved=(10 * number, number),
                started_at=trio.current_time() - number,
                state=state,
                peer_id=peer_id,
                attempts_made=count,
            )

        waiting, opening = client(3, State.WAITING), client(2, State.OPENING, peer_id=peer, count=2)
        is_open, away = client(1, State.STREAMING, peer_id=peer, count=1), client(4, State.REJECTED)
        node.frontend.active = {away, waiting, opening, is_open}
        totals_of_ended = node.frontend.counters.totals
        totals_of_ended.received, totals_of_ended.delivered = 1000, 2000
        answer = node.operator.connections(10)
        assert answer["total"] == 4
        assert [row["state"] for row in answer["connections"]] == ["open", "opening", "waiting", "turned away"]
        first = answer["connections"][0]
        assert first.pop("since_s") == pytest.approx(1, abs=0.2)
        assert first == {
            "id": 1,
            "request": 1,
            "service": "chat",
            "model": "",
            "client": "10.0.0.1:1",
            "peer": peer,
            "name": "athens",
            "received": 10,
            "delivered": 1,
            "attempts": 1,
            "state": "open",
        }
        assert [row["id"] for row in node.operator.connections(2)["connections"]] == [1, 2]
        # What is open counts too: a stream of an hour is traffic now.
        counts = node.operator.status()["connections"]
        assert (counts["received"], counts["delivered"]) == (1100, 2010)

    async def test_rates(self, make: MakeNode, autojump_clock: trio.testing.MockClock) -> None:
        node = make()
        node.rates.sample(trio.current_time(), status.traffic(node.parts))
        await trio.sleep(4)
        totals = node.frontend.counters.totals
        totals.started, totals.received, totals.delivered = 8, 4000, 400
        rates = node.operator.status()["rates"]
        assert (rates["connections_per_s"], rates["failed_per_s"]) == (2, 0)
        assert (rates["received_per_s"], rates["delivered_per_s"], rates["bytes_per_s"]) == (1000, 100, 1100)


class TestMetrics:
    async def test_what_a_scrape_reads(self, make: MakeNode) -> None:
        node = make(backends=("chat=127.0.0.1:7",))
        busy = add(node, "busy")
        add(node, "silent", suspect=True)
        add(node, "gone", linked=False, age_s=60)
        node.selector.pick([node.ledger.records()[0]], now=0.0)
        node.frontend.counters.totals.received = 5
        node.facts.draining = True
        now = status.metrics(node.parts)
        assert {state: count for state, count in now.peers.items() if count} == {
            "draining": 1,
            "online": 1,
            "suspect": 1,
            "offline": 1,
        }
        assert (now.received, now.delivered, now.draining) == (5, 0, True)
        assert now.backends == {"chat": False}
        assert now.ledger_records == 3
        assert now.in_flight[node.parts.peer_id] == 0
        assert sum(now.in_flight.values()) == now.in_flight[busy] == 1
        text, _ = node.operator.metrics_text("")
        assert f'federation_connections_in_flight{{peer="{busy}"}} 1.0'.encode() in text


class TestTokens:
    async def test_a_rotation_is_shown_while_both_tokens_admit(self, make: MakeNode) -> None:
        node = make()
        network = node.operator.status()["network"]
        assert (network["rotations"], network["former_until"]) == (0, None)
        former = add(node, "former")
        node.state.save_owner_key(TOKEN.network_id, KEY.encode())
        answer = await node.operator.rotate(Wish(3600.0, ["former"]))
        assert answer["excepted"] == [{"peer_id": former, "name": "former"}]
        network = node.operator.status()["network"]
        assert network["rotations"] == 1
        assert network["id"] == TOKEN.network_id
        until = network["former_until"]
        assert until is not None
        assert timedelta(minutes=59) < datetime.fromisoformat(until) - node.clock.utc_now() < timedelta(minutes=61)
        (warning,) = node.operator.status()["warnings"]
        assert warning == f"still here with the former token, until {until}: former"
        assert node.rotation.left_out() == [former]

    async def test_a_token_that_is_no_longer_valid_is_said_and_what_to_do(self, make: MakeNode) -> None:
        node = make()
        node.host.token_retired_at = 1.0
        (warning,) = node.operator.status()["warnings"]
        assert "no longer valid" in warning
        assert "federation invite" in warning
        node.state.save_owner_key(TOKEN.network_id, KEY.encode())
        await node.operator.rotate(Wish(0.0))
        assert node.operator.status()["warnings"] == []

    async def test_without_an_owner_others_may_have_rotated_on_their_own(self, make: MakeNode) -> None:
        node = make()
        node.rotation.keyring = Keyring(Token(b"r" * 32))
        node.host.token_retired_at = 1.0
        (warning,) = node.operator.status()["warnings"]
        assert "nodes of this version stay with the present one" in warning

    async def test_where_the_owners_key_is(self, make: MakeNode) -> None:
        node = make()
        assert node.operator.status()["network"]["owner"] == TOKEN.owner.hex()
        assert (node.operator.status()["network"]["owner_here"], node.operator.status()["network"]["owner_at"]) == (
            False,
            [],
        )
        bob = add(node, "bob", owner=True)
        add(node, "carol")
        add(node, "dave", owner=True, left=True)
        assert node.operator.status()["network"]["owner_at"] == [f"bob ({bob})"]

    async def test_who_missed_a_rotation_is_counted(self, make: MakeNode) -> None:
        node = make()
        node.host.rejected["old token"] = 3
        assert node.operator.status()["warnings"] == [
            "3 connections from nodes with the token from before the rotation were refused"
        ]
