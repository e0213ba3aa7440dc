"""What an operator does with a running node: ban, drain, leave. test_status.py reads, test_ownership.py rotates."""

from __future__ import annotations

import importlib.util
import inspect
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from federation.errors import NotFound, UsageError
from federation.forward.route import Route
from federation.ops.operator import Operator
from tests.support.control import FakeNode
from tests.support.links import until
from tests.support.nodes import TOKEN, MakeNode, client_of, echo_server, link, running, states


class TestBan:
    async def test_a_banned_peer_is_gone_at_once_stays_out_over_restarts_and_may_come_back(self, make: MakeNode) -> None:
        async with echo_server() as backend, AsyncExitStack() as stack:
            one, two = make("one"), make("two", backends=(backend,))
            first = await stack.enter_async_context(running(one))
            await stack.enter_async_context(running(two))
            link(two, one)
            await until(lambda: states(one).get("two") == "online")
            one.operator.ban("two")
            assert states(one)["two"] == "banned"
            assert one.host.links == {}
            assert one.roster.eligible(Route("default")) == []
            assert [row["name"] for row in one.operator.banned()["banned"]] == ["two"]
            assert one.operator.status()["warnings"] == []
            await until(lambda: two.host.links == {})
            await first.stopped()
            again = make("one")
            await stack.enter_async_context(running(again))
            link(two, again)
            link(again, two)
            await until(lambda: again.host.rejected["banned"])
            assert again.host.links == {}
            assert states(again).get("two") in (None, "banned")
            again.operator.unban("two")
            await until(lambda: states(again).get("two") == "online")

    async def test_whom_it_cannot_be(self, make: MakeNode) -> None:
        async with running(make()) as run:
            with pytest.raises(UsageError, match="node itself"):
                run.node.operator.ban(run.node.parts.peer_id)
            with pytest.raises(NotFound):
                run.node.operator.ban("nobody")
            with pytest.raises(NotFound):
                run.node.operator.unban("nobody")
            with pytest.raises(NotFound, match="not banned here"):
                run.node.operator.unban(run.node.parts.peer_id)


class TestDrainAndLeave:
    async def test_drain_and_undrain_are_told_at_once_and_cut_nobody(self, make: MakeNode) -> None:
        async with echo_server() as backend:
            exit_, entry = make("exit", backends=(backend,)), make("entry", hold_s=5.0)
            async with running(exit_), running(entry) as b:
                link(entry, exit_)
                await until(lambda: states(entry).get("exit") == "online")
                async with await client_of(b) as client:
                    await client.send_all(b"a")
                    assert await client.receive_some() == b"a"
                    exit_.operator.drain()
                    exit_.operator.drain()
                    await until(lambda: states(entry)["exit"] == "draining", seconds=1)
                    await client.send_all(b"b")
                    assert await client.receive_some() == b"b"
                    async with await client_of(b) as waits:
                        await waits.send_all(b"c")
                        exit_.operator.undrain()  # who waits is let in
                        assert await waits.receive_some() == b"c"
                    assert states(entry)["exit"] == "online"

    async def test_leave_forgets_the_network(self, make: MakeNode) -> None:
        member, leaver = make("member"), make("leaver")
        leaver.state.save_token(TOKEN.encode())
        async with running(member), running(leaver) as run:
            link(leaver, member)
            await until(lambda: states(member).get("leaver") is not None)
            leaver.operator.leave()
            with trio.fail_after(20):
                await run.ended.wait()
            await until(lambda: states(member)["leaver"] == "left", seconds=1)
        assert leaver.state.load_token() is None
        assert leaver.state.load_peers() == {}
        assert leaver.state.load_daemon() is None


def _double(name: str) -> type:
    if name == "FakeNode":
        return FakeNode
    path = Path(__file__).parents[1] / "browser/fake_network.py"
    spec = importlib.util.spec_from_file_location("fake_network", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    double: type = module.FakeNetwork
    return double


@pytest.mark.parametrize("name", ["FakeNode", "FakeNetwork"])
def test_doubles_of_it_answer_in_the_way_that_it_does(name: str) -> None:
    """The dashboard's tests take a Chromium, which CI has not: nobody would see that a method has become async."""
    double = _double(name)
    methods = [method for method in vars(double) if not method.startswith("_") and hasattr(Operator, method)]
    assert len(methods) > 15
    are_async = [
        {method: inspect.iscoroutinefunction(getattr(of, method)) for method in methods} for of in (double, Operator)
    ]
    assert are_async[0] == are_async[1]
