"""Whole nodes in this process, on free ports: start, what they say, stop, and that nothing stays behind."""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import trio
from structlog.testing import capture_logs

from federation import node as node_module
from federation.api import door
from federation.cli import client
from federation.errors import ListenFailed
from federation.forward import model_watch
from federation.forward.models import finding
from federation.forward.models.servers import KINDS
from federation.mesh import connectivity
from federation.mesh.gpu import GpuProbe, GpuReading
from federation.mesh.tokens import Token
from federation.net.dial.address import PeerAddress
from federation.node import JOINS_AT_ONCE, LINKS_AT_ONCE, Node
from federation.ops import invitation
from federation.units import HostPort
from tests.support.links import until
from tests.support.model_servers import serving
from tests.support.nodes import GIB, TOKEN, MakeNode, client_of, echo_server, link, only, rows, running, states
from tests.support.sockets import open_descriptors

if TYPE_CHECKING:
    pass


if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup


def is_heard(node: Node) -> bool:
    """Its topic reaches its neighbours: knowing each other comes sooner, by sync."""
    mesh = node.gossip._topic._router.mesh
    return any(mesh.values())


class TestStart:
    async def test_it_says_what_it_is(self, make: MakeNode) -> None:
        async with echo_server() as backend, running(make(backends=(f"chat={backend}", backend), capacity=7)) as run:
            node = run.node
            status = node.operator.status()
            assert set(status) == {"node", "network", "connections", "rates", "warnings"}
            me = status["node"]
            assert me["peer_id"] == node.parts.peer_id
            assert me["name"] == "one"
            assert me["services"] == {"chat": True, "default": True}
            assert me["gpu"] == {"source": "fixed", "note": "", "total_vram": 8 * GIB, "available_vram": 8 * GIB}
            assert me["in_flight"] == 0
            assert me["draining"] is False
            assert me["pid"] == os.getpid()
            assert me["state_dir"] == str(node.state.path)
            assert me["uptime_s"] >= 0
            assert me["addresses"] == [f"/ip4/127.0.0.1/tcp/{node.facts.p2p.port}/p2p/{node.parts.peer_id}"]
            assert me["p2p"] == f"127.0.0.1:{node.facts.p2p.port}"
            assert node.facts.p2p.port
            assert run.client_address.port
            assert me["listens"] == {"default": str(run.client_address)}
            network = status["network"]
            assert (network["id"], network["name"]) == (TOKEN.network_id, "testnet")
            assert network["peers_online"] == network["peers_known"] == 1
            assert network["invite_addresses"] == me["addresses"]
            assert set(status["connections"].values()) == {0}
            assert status["warnings"] == []
            assert run.status["node"]["peer_id"] == node.parts.peer_id
            assert json.dumps(status, allow_nan=False)
            assert TOKEN.encode() not in json.dumps([status, node.operator.peers()])
            (row,) = node.operator.peers()
            assert row["capacity"] == 7

    async def test_the_command_line_finds_it(self, make: MakeNode) -> None:
        made = make(serve_control=door.serve_node)
        made.state.lock()
        async with running(made) as run:
            facts = run.node.state.load_daemon()
            assert facts == {
                "pid": os.getpid(), "control": str(run.node.facts.control), "listens": {"default": str(run.client_address)},
                "p2p": str(run.node.facts.p2p),
            }  # fmt: skip
            assert run.node.facts.control.port
            stream = await trio.open_tcp_stream(run.node.facts.control.host, run.node.facts.control.port)
            async with stream:
                head = f"GET /api/v1/peers HTTP/1.1\r\nHost: {run.node.facts.control}\r\nConnection: close\r\n\r\n"
                await stream.send_all(head.encode())
                answer = b""
                while chunk := await stream.receive_some():
                    answer += chunk
            assert answer.startswith(b"HTTP/1.1 200")
            assert run.node.parts.peer_id.encode() in answer
            own = partial(client.Daemon(run.node.state).ask, "/api/v1/drain", method="POST", owner=True)
            assert json.loads(await trio.to_thread.run_sync(own))["draining"] is True
        assert run.node.state.load_daemon() is None
        assert not (run.node.state.path / "control.sock").exists()
        made.state.unlock()

    @pytest.mark.parametrize("serves", ["p2p_listen", "listens", "control"])
    async def test_a_port_in_use(self, make: MakeNode, serves: str) -> None:
        flag = {"p2p_listen": "--p2p-listen", "listens": "--listen", "control": "--control"}[serves]
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            files = open_descriptors()
            node = make(serve_control=door.serve_node, **{serves: (address,) if serves == "listens" else address})
            ready: list[object] = []
            with pytest.raises((ListenFailed, ExceptionGroup)) as caught, trio.fail_after(20):
                await node.run(ready.append)
            error = only(caught.value)
            assert isinstance(error, ListenFailed)
            assert f"{address}: the port is in use" in str(error)
            assert flag in str(error)
            assert ready == []
            del node, caught, error
            gc.collect()
            assert open_descriptors() <= files

    async def test_several_services_have_a_port_each(self, make: MakeNode) -> None:
        async with running(make(listens=("chat=127.0.0.1:0", "127.0.0.1:0"))) as run:
            ports = {service: address.port for service, address in run.node.facts.listens.items()}
            assert set(ports) == {"chat", "default"}
            assert len(set(ports.values())) == 2

    async def test_a_backend_that_is_not_there_yet_is_a_warning(self, make: MakeNode) -> None:
        with socket.socket() as reserved:
            reserved.bind(("127.0.0.1", 0))
            port = reserved.getsockname()[1]
            async with running(make(backends=(f"127.0.0.1:{port}",))) as run:
                assert rows(run.node)["one"]["state"] == "backend down"
                (warning,) = run.node.operator.status()["warnings"]
                assert f"127.0.0.1:{port}" in warning
                reserved.listen()
                await until(lambda: rows(run.node)["one"]["state"] == "online")
                assert run.node.operator.status()["warnings"] == []

    async def test_a_server_that_starts_later_is_found_and_offered(
        self, make: MakeNode, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(node_module, "FIND_EVERY_S", 0.05)
        pages: dict[str, object] = {}
        with serving(pages) as port:
            monkeypatch.setattr(finding, "KINDS", (replace(KINDS[0], port=port),))
            monkeypatch.setattr(model_watch, "USUAL_PORTS", {port})
            async with running(make(detect=True)) as run:
                me = run.node.operator
                assert me.status()["node"]["services"] == {}
                pages |= {"/": "Ollama is running", "/api/tags": {"models": [{"name": "m"}]}}
                await until(lambda: me.status()["node"]["services"] == {"default": True})
                await until(lambda: [row["name"] for row in me.models()["models"]] == ["m"])
                assert run.node.parts.own_record(0).models

    async def test_its_own_ports_are_no_servers_that_start_later(
        self, make: MakeNode, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[set[int]] = []

        async def find(*, without: set[int]) -> list[finding.Found]:
            asked.append(without)
            return []

        monkeypatch.setattr(node_module, "FIND_EVERY_S", 0.01)
        monkeypatch.setattr(finding, "find", find)
        async with running(make(detect=True)) as run:
            await until(lambda: asked)
            facts = run.node.facts
            assert asked[0] == {facts.p2p.port, facts.control.port, *(at.port for at in facts.listens.values())}


class TestStop:
    async def test_leaves_no_task_no_socket_no_thread(self, make: MakeNode) -> None:
        async with echo_server() as backend:
            await trio.to_thread.run_sync(lambda: None)  # trio keeps its worker threads for a while
            tasks, files = trio.lowlevel.current_statistics().tasks_living, open_descriptors()
            threads = {t for t in threading.enumerate() if "trio" not in t.name.lower()}
            one = make("one", backends=(backend,), serve_control=door.serve_node)
            two = make("two", serve_control=door.serve_node)
            one.state.lock()
            two.state.lock()
            async with running(one) as a, running(two) as b:
                link(two, one)
                await until(lambda: set(rows(one)) == set(rows(two)) == {"one", "two"})
                async with await client_of(b) as client:
                    await client.send_all(b"hello")
                    assert await client.receive_some() == b"hello"
                await b.stopped()
                await a.stopped()
            one.state.unlock()
            two.state.unlock()
            await until(lambda: trio.lowlevel.current_statistics().tasks_living <= tasks)
            await until(lambda: open_descriptors() <= files)
            await until(lambda: {t for t in threading.enumerate() if "trio" not in t.name.lower()} <= threads)

    async def test_closes_the_clients_port_at_once(self, make: MakeNode) -> None:
        async with echo_server() as backend, running(make(backends=(backend,))) as run:
            async with await client_of(run) as client:
                await client.send_all(b"a")
                assert await client.receive_some() == b"a"
                run.node.stop()
                await until(lambda: run.node.facts.draining)
                await until(lambda: not run.node.frontend._listeners)
                with pytest.raises(OSError):  # noqa: PT011
                    await client_of(run)
                assert run.node.operator.status()["node"]["draining"] is True
                assert rows(run.node)["one"]["state"] == "draining"
                for _ in range(5):  # who is here goes on
                    await client.send_all(b"more")
                    assert await client.receive_some() == b"more"
                assert not run.ended.is_set()
            with trio.fail_after(20):
                await run.ended.wait()

    async def test_waits_for_connections_no_longer_than_told(self, make: MakeNode) -> None:
        async with (
            echo_server() as backend,
            running(make(backends=(backend,), drain_timeout_s=0.3)) as run,
            await client_of(run) as client,
        ):
            await client.send_all(b"a")
            assert await client.receive_some() == b"a"
            start = trio.current_time()
            await run.stopped()
            assert 0.3 <= trio.current_time() - start < 2
            with pytest.raises(trio.BrokenResourceError):
                await client.receive_some()

    async def test_waits_for_what_others_sent_here(self, make: MakeNode) -> None:
        async with echo_server() as backend:
            exit_, entry = make("exit", backends=(backend,)), make("entry")
            async with running(exit_) as a, running(entry) as b:
                link(entry, exit_)
                await until(lambda: states(entry).get("exit") == "online")
                async with await client_of(b) as client:
                    await client.send_all(b"a")
                    assert await client.receive_some() == b"a"
                    exit_.stop()
                    await until(lambda: states(entry)["exit"] == "left")
                    await client.send_all(b"b")
                    assert await client.receive_some() == b"b"
                    assert not a.ended.is_set()
                with trio.fail_after(20):
                    await a.ended.wait()
                assert states(entry) == {"entry": "no backend", "exit": "left"}

    async def test_waits_for_its_clients_elsewhere(self, make: MakeNode) -> None:
        async with echo_server() as backend:
            exit_, entry = make("exit", backends=(backend,)), make("entry")
            async with running(exit_), running(entry) as b:
                link(entry, exit_)
                await until(lambda: states(entry).get("exit") == "online")
                async with await client_of(b) as client:
                    await client.send_all(b"a")
                    assert await client.receive_some() == b"a"
                    entry.stop()
                    await until(lambda: states(exit_)["entry"] == "left")
                    await client.send_all(b"b")
                    assert await client.receive_some() == b"b"
                    assert not b.ended.is_set()
                with trio.fail_after(20):
                    await b.ended.wait()

    async def test_drains_while_load_changes_and_stays_left(self, make: MakeNode) -> None:
        """What it announces of its last connections must not bring it back."""
        async with echo_server() as backend:
            exit_, entry = make("exit", backends=(backend,)), make("entry")
            async with running(exit_) as a, running(entry) as b:
                link(entry, exit_)
                await until(lambda: states(entry).get("exit") == "online")
                clients = []
                for _ in range(3):
                    clients.append(await client_of(b))
                    await clients[-1].send_all(b"a")
                    assert await clients[-1].receive_some() == b"a"
                exit_.stop()
                await until(lambda: states(entry)["exit"] == "left")
                for client in clients:
                    await client.aclose()
                    exit_.gossip.stir()
                    await trio.sleep(0.3)  # long enough for an announcement, were there one
                with trio.fail_after(20):
                    await a.ended.wait()
                assert states(entry)["exit"] == "left"

    async def test_settings_read_again_change_what_can(self, make: MakeNode) -> None:
        node = make(hold_s=1.0, capacity=1)
        settings = node.facts.settings.model_copy(
            update={"hold_s": 2.5, "capacity": 7, "name": "another", "max_connections": 3}
        )
        with capture_logs() as lines:
            node.reload(settings)
        (line,) = lines
        assert set(line["changed"]) == {"hold", "capacity", "max_connections"}
        assert line["take_a_restart"] == ["name"]
        assert node.frontend.dispatcher.hold_s == 2.5
        assert node.own_record().capacity == 7
        assert node.facts.settings.name != "another"

    async def test_now_leaves_no_socket_either(self, make: MakeNode) -> None:
        """A second signal cancels it."""
        files = open_descriptors()
        made = make(serve_control=door.serve_node)
        made.state.lock()
        async with running(made) as run, await client_of(run):
            run.scope.cancel()
            with trio.fail_after(20):
                await run.ended.wait()
        assert run.node.state.load_daemon() is None
        made.state.unlock()
        del run, made
        gc.collect()
        await until(lambda: open_descriptors() <= files)


class TestTogether:
    async def test_two_nodes_show_each_other(self, make: MakeNode) -> None:
        async with echo_server() as backend:
            one, two = make("one", backends=(backend,)), make("two", vram_bytes=4 * GIB)
            async with running(one), running(two):
                link(two, one)
                await until(lambda: states(one) == states(two) == {"one": "online", "two": "no backend"}, seconds=2)
                assert [row["self"] for row in one.operator.peers()] == [True, False]  # this node first
                assert [row["name"] for row in two.operator.peers()] == ["two", "one"]
                row = rows(two)["one"]
                assert row["online"] is True
                assert row["path"] == "direct"
                assert row["available_vram"] == row["total_vram"] == 8 * GIB
                assert row["services"] == {"default": True}
                assert row["last_seen_age_s"] < 10
                assert rows(two)["two"]["path"] == "self"
                assert two.operator.status()["network"]["peers_online"] == 2
                assert set(two.operator.status()["network"]["invite_addresses"]) == {
                    f"/ip4/127.0.0.1/tcp/{node.facts.p2p.port}/p2p/{node.parts.peer_id}" for node in (one, two)
                }

    async def test_a_newcomer_knows_at_once_who_is_further_away(self, make: MakeNode) -> None:
        """And who has left: by ledger sync, for nobody announces anything now."""
        async with running(make("one", announce_interval_s=10)) as a:
            async with running(make("gone", announce_interval_s=10)) as gone:
                link(gone.node, a.node)
                await until(lambda: "gone" in rows(a.node))
                await until(partial(is_heard, gone.node))
            await until(lambda: states(a.node)["gone"] == "left")
            recent = a.node.gossip._topic._router.mcache.window  # py-libp2p hands newcomers the last messages
            await until(lambda: not recent(TOKEN.topic()))
            async with running(make("two", announce_interval_s=10)) as b:
                link(b.node, a.node)
                await until(lambda: set(rows(b.node)) == {"one", "gone", "two"}, seconds=2)
                assert states(b.node)["gone"] == "left"

    async def test_a_token_with_an_address_is_enough(self, make: MakeNode) -> None:
        one = make("one")
        async with running(one):
            two = make("two", token=TOKEN.with_addresses(invitation.addresses(one.parts)))
            async with running(two):
                await until(lambda: set(rows(one)) == set(rows(two)) == {"one", "two"}, seconds=2)

    async def test_another_token_is_shown_as_a_warning(self, make: MakeNode) -> None:
        one, two = make("one"), make("two", token=Token(b"x" * 32))
        async with running(one), running(two):
            link(two, one)
            await until(lambda: one.operator.status()["warnings"])
            assert "another token" in one.operator.status()["warnings"][0]
            assert set(rows(one)) == {"one"}
            assert set(rows(two)) == {"two"}

    async def test_a_restart_is_the_same_row(self, make: MakeNode) -> None:
        one = make("one")
        async with running(one):
            lives = []
            for _ in range(2):
                two = make("two")
                async with running(two):
                    link(two, one)
                    await until(lambda: states(one).get("two") == "no backend", seconds=2)
                    await until(partial(is_heard, two))
                    lives.append(one.ledger.get(two.parts.peer_id).record)  # type: ignore[union-attr]
                await until(lambda: states(one)["two"] == "left")
            assert lives[0].peer_id == lives[1].peer_id
            assert lives[0].incarnation < lives[1].incarnation
            assert len(one.operator.peers()) == 2

    async def test_a_restart_finds_the_network_by_itself(self, make: MakeNode) -> None:
        one = make("one")
        async with running(one):
            two = make("two")
            async with running(two):
                link(two, one)
                await until(lambda: "one" in rows(two))
            async with running(make("two")) as again:
                await until(lambda: "one" in rows(again.node), seconds=2)

    async def test_a_peer_that_vanishes(self, make: MakeNode) -> None:
        one, two = make("one"), make("two")
        async with running(one), running(two) as b:
            link(two, one)
            await until(lambda: "two" in rows(one))
            b.scope.cancel()
            await until(lambda: states(one)["two"] == "unreachable", seconds=1)
            assert rows(one)["two"]["online"] is False
            assert one.operator.status()["network"]["peers_online"] == 1
            assert any("two" in warning for warning in one.operator.status()["warnings"])

    async def test_whose_link_and_record_are_there_counts_as_seen_at_once(
        self, make: MakeNode, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A notice of its death does not take a look at it before: it may die within a second of its coming."""
        one, two = make("one"), make("two")
        met: dict[Node, list[bool]] = {one: [], two: []}
        for node in (one, two):
            monkeypatch.setattr(
                node.notices, "met",
                lambda peer, node=node: met[node].append(node.ledger.get(peer) is not None and peer in node.host.links),
            )  # fmt: skip
        async with running(one), running(two):
            link(two, one)
            await until(lambda: all(any(of) for of in met.values()))

    async def test_load_and_service_are_told_at_once(self, make: MakeNode) -> None:
        async with echo_server() as backend:
            exit_, entry = make("exit", backends=(backend,)), make("entry")
            async with running(exit_), running(entry) as b:
                link(entry, exit_)
                await until(lambda: states(entry).get("exit") == "online")
                async with await client_of(b) as client:
                    await client.send_all(b"a")
                    assert await client.receive_some() == b"a"
                    await until(lambda: rows(entry)["exit"]["in_flight"] == 1, seconds=2)
                    assert rows(entry)["exit"]["in_flight_here"] == 1
                await until(lambda: rows(entry)["exit"]["in_flight"] == 0, seconds=2)
                assert rows(entry)["exit"]["served"] == 1
                (decision,) = entry.operator.explain(10)
                assert decision["name"] == "exit"


class TestWallClock:
    async def test_a_network_does_not_step_with_it(self, make: MakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
        """The libraries below use the wall clock, too."""
        real = time.time
        one, two = make("one"), make("two")
        async with running(one), running(two):
            link(two, one)
            await until(lambda: "two" in rows(one))
            for step in (3600.0, -7200.0):
                monkeypatch.setattr(time, "time", lambda step=step: real() + step)
                seen = one.ledger.get(two.parts.peer_id).version  # type: ignore[union-attr]
                two.facts.gpu = GpuReading((), "none", str(step)) if two.facts.gpu.gpus else await two_gpus()
                two.gossip.stir()
                await until(lambda seen=seen: one.ledger.get(two.parts.peer_id).version > seen, seconds=2)  # type: ignore[union-attr]
                assert rows(one)["two"]["online"] is True
                assert rows(one)["two"]["last_seen_age_s"] < 10
            await until(lambda: set(states(one).values()) == {"no backend"})


async def two_gpus() -> GpuReading:
    return await GpuProbe(fixed_bytes=GIB).read()


class TestRecord:
    async def test_fits_its_bounds_with_every_field_in_use(self, make: MakeNode) -> None:
        from federation.mesh.records import encode

        node = make(
            "n" * 64,
            backends=tuple(f"{'s' * 60}{n:02}=127.0.0.1:{n + 1}" for n in range(32)),
            announce=tuple(f"{'h' * 60}.{'h' * 60}.example:{n + 1}" for n in range(16)),
        )
        node.connectivity.read()
        assert len(node.own_record().addresses) == 16
        encode(node.own_record(in_flight=2**40))

    async def test_announces_the_load_that_lasts(self, make: MakeNode) -> None:
        node = make()
        node.backends.load.in_flight = 3
        node.backends._least = 1
        assert node._describe().in_flight == 1
        assert node.gossip._stir.is_set()  # and looks again soon
        node.gossip._stir = trio.Event()
        assert node._describe().in_flight == 3
        assert not node.gossip._stir.is_set()

    async def test_addresses_that_change_are_told(self, make: MakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
        node = make()
        node.connectivity.listens(HostPort("127.0.0.1", 1))
        assert not node.connectivity.read()
        monkeypatch.setattr(connectivity, "local_addresses", lambda *_: ["/ip4/192.0.2.7/tcp/1"])
        assert node.connectivity.read()
        assert node.own_record().addresses == ("/ip4/192.0.2.7/tcp/1",)

    async def test_nonsense_among_others_addresses_is_passed_over(self, make: MakeNode) -> None:
        node = make()
        record = node.own_record().model_copy(
            update={
                "peer_id": "12D3KooW" + "A" * 44,
                "addresses": ("nonsense", "/ip4/11.22.33.44/tcp/7", "/ip4/1/tcp/1/p2p/x"),
            }
        )
        change = node.ledger.merge(record, now=node.clock.utc_now())
        node._ledger_changed(change)
        assert [str(a) for a in node.book.addresses(record.peer_id)] == [f"/ip4/11.22.33.44/tcp/7/p2p/{record.peer_id}"]

    async def test_others_are_in_an_invitation_by_where_they_are_known_to_be(self, make: MakeNode) -> None:
        """Who joins with it takes all of it for a person's word."""
        node = make()
        peer = "12D3KooW" + "A" * 44
        said, seen = (f"/ip4/{host}/tcp/7/p2p/{peer}" for host in ("9.9.9.9", "11.22.33.44"))
        update = {"peer_id": peer, "addresses": (said, seen)}
        node._ledger_changed(node.ledger.merge(node.own_record().model_copy(update=update), now=node.clock.utc_now()))
        node.host.links[peer] = SimpleNamespace(remote_address=("11.22.33.44", 50000))
        assert invitation.addresses(node.parts) == [seen]
        node.host.links[peer] = SimpleNamespace(remote_address=None)  # by way of a relay
        assert invitation.addresses(node.parts) == []
        node.book.succeeded(PeerAddress.parse(said), peer, 1.0)
        assert invitation.addresses(node.parts) == [said]
        node.host.links.clear()

    async def test_who_comes_and_goes_without_end_fills_no_log(self, make: MakeNode) -> None:
        node = make()
        with capture_logs() as logs:
            for n in range(300):
                record = node.own_record().model_copy(update={"peer_id": f"12D3KooW{n:044}", "seq": 1})
                for version in (record, record.model_copy(update={"seq": 2, "left": True})):
                    node._ledger_changed(node.ledger.merge(version, now=node.clock.utc_now()))
                node.peer_down(record.peer_id, "it went")
        said = Counter(log["event"].split()[1] for log in logs if log["log_level"] == "info")
        assert said["joined"] + said["left"] <= JOINS_AT_ONCE + 5
        assert 256 <= said["disconnected"] <= LINKS_AT_ONCE + 5
        assert len(logs) == 900  # the rest is for those who debug
