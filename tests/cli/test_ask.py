from __future__ import annotations

import json
import os
import threading
from typing import Any

import pytest

from federation.cli import ask
from federation.errors import ControlUnreachable
from federation.mesh.tokens import Token
from federation.state import StateDir
from tests.support.cli import Api


def open_(in_flight: int, clients: int = 0) -> dict[str, Any]:
    return {"draining": True, "in_flight": in_flight, "clients": clients}


def test_drain_tells_what_is_open(api: Api, run: Any) -> None:
    api.answers["POST drain"] = [open_(2)]
    assert run("drain") == (0, "draining, nothing new is sent here; 2 connections are served here\n", "")
    assert run("drain", "--json") == (0, json.dumps(open_(2)) + "\n", "")


def test_drain_waits_until_twice_nothing_was_open(api: Api, run: Any) -> None:
    api.answers["POST drain"] = [open_(1), open_(0), open_(0, 1), open_(0), open_(0), open_(0)]
    code, out, _ = run("drain", "--wait")
    assert (code, out) == (0, "drained: nothing is open here; it is safe to reboot\n")
    assert api.asked.count("POST drain") >= 5


def test_drain_gives_up_when_told_to(api: Api, run: Any) -> None:
    api.answers["POST drain"] = [open_(1)]
    code, out, err = run("drain", "--wait", "--timeout", "10ms")
    assert (code, out) == (1, "")
    assert err == "federation: not drained within 10ms: 1 connection is served here\n"
    assert run("drain", "--wait", "--timeout", "soon")[0] == 2


def test_a_drain_that_only_idle_connections_hold_up_says_what_a_reboot_costs(api: Api, run: Any) -> None:
    idle = {**open_(1, 1), "entries": ["bergen"], "idle": 1, "idle_clients": 1}
    api.answers["POST drain"] = [idle]
    err = run("drain", "--wait", "--timeout", "10ms")[2]
    assert err.startswith("federation: not drained within 10ms: 1 connection is served here (by way of bergen), idle,")
    assert err.endswith("; a reboot costs an idle one its connection, and no answer\n")
    api.answers["POST drain"] = [{**idle, "idle": 0}]
    assert "reboot" not in run("drain", "--wait", "--timeout", "10ms")[2]


def test_undrain(api: Api, run: Any) -> None:
    api.answers["POST undrain"] = [{"draining": False, "in_flight": 0, "clients": 0}]
    assert run("undrain") == (0, "this node takes connections again\n", "")


def test_models(api: Api, run: Any) -> None:
    answer: dict[str, Any] = {"models": [], "incomplete": [], "silent": []}
    api.answers["GET models"] = [answer]
    assert run("models", "--json") == (0, json.dumps(answer) + "\n", "")
    assert run("models") == (0, "no models\n", "")


def test_place_asks_for_what_is_wanted_and_fails_where_nobody_has_room(api: Api, run: Any) -> None:
    best = {"name": "ada", "why": "has room", "total_vram": 0}
    found: dict[str, Any] = {"needed_vram": 1, "best": best, "nodes": [best]}
    none: dict[str, Any] = {**found, "best": None}
    api.answers["GET placement?vram=1073741824&among=a%2Cb&model=m%2Fn"] = [found]
    code, out, _ = run("place", "--vram", "1GiB", "--among", "a,b", "--model", "m/n")
    assert (code, out.splitlines()[0]) == (0, "ada: tells no VRAM, has room")
    api.answers["GET placement?vram=1"] = [none]
    assert run("place", "--vram", "1", "--json") == (1, json.dumps(none) + "\n", "")
    for wrong in ((), ("--vram", "much"), ("--among", "a")):
        assert run("place", *wrong)[0] == 2


def test_who_may_not_is_told(api: Api, run: Any) -> None:
    api.answers["POST drain"] = [open_(0)]
    api.refuses = True
    code, _, err = run("drain")
    assert code == 1
    assert "asks for its control key" in err
    assert err.endswith("no? key\n")


def test_explain_asks_for_enough(api: Api, run: Any) -> None:
    nothing: dict[str, Any] = {"decisions": [], "turned_away": []}
    api.answers["GET explain?last=256"] = [nothing]
    api.answers["GET explain?id=7"] = [nothing]
    assert run("explain", "--json") == (0, json.dumps(nothing) + "\n", "")
    assert run("explain", "--last", "3")[1] == "no connection yet: nothing to explain\n"
    code, out, err = run("explain", "--id", "7")
    assert (code, out) == (1, "")
    assert err.startswith("federation: no connection #7 among the last 256 decisions")
    for wrong in (("--last", "0"), ("--id", "x"), ("--last", "1", "--id", "1")):
        assert run("explain", *wrong)[0] == 2


STATUS = {
    "node": {"name": "alpha", "in_flight": 1, "pid": os.getpid()},
    "network": {"id": "5f3a", "name": "lab"},
    "connections": {"now": 0},
}


def test_leave_waits_for_the_end(api: Api, run: Any, state: StateDir) -> None:
    api.answers["POST leave"] = [open_(1)]
    api.answers["GET status"] = [STATUS, STATUS, {}]
    api.answers["GET status"][-1:] = []
    gone = api.answers["GET status"]

    def ends() -> None:
        while ("POST leave", None) not in api.seen:
            pass
        gone.clear()
        state.unlock()

    thread = threading.Thread(target=ends)
    thread.start()
    code, out, _ = run("leave")
    thread.join()
    assert (code, out) == (0, "left the network lab, token forgotten\n")
    assert api.asked.count("POST leave") == 1


def test_leave_does_not_wait_for_another_machines_process(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked by --control: the process that has that daemon's number here is another one, and may run for ever."""
    asked = iter([json.dumps(STATUS), "{}"])

    def ask_there(*_: object, **__: object) -> str:
        answer = next(asked, None)
        if answer is None:
            raise ControlUnreachable("it has ended")
        return answer

    monkeypatch.setattr(ask.client.Daemon, "ask", ask_there)
    assert run("leave", "--control", "127.0.0.1:9")[:2] == (0, "left the network lab, token forgotten\n")


def test_leave_without_a_daemon_forgets_the_token(state: StateDir, run: Any) -> None:
    token = Token.new("lab")
    state.save_token(token.encode())
    code, out, _ = run("leave", "--json")
    assert (code, json.loads(out)) == (0, {"left": token.network_id})
    assert state.load_token() is None
    code, _, err = run("leave")
    assert code == 2
    assert "no token is saved" in err


def test_leave_says_that_the_owner_key_stays(api: Api, state: StateDir, run: Any) -> None:
    network, node = {**STATUS["network"], "owner_here": True}, {**STATUS["node"], "state_dir": "/its/directory"}
    state.unlock()  # the node has ended when the command comes to look
    api.answers["POST leave"] = [open_(0)]
    api.answers["GET status"] = [{**STATUS, "network": network, "node": node}]
    api.ends_with_leave = True
    assert "owner key stays in /its/directory" in run("leave")[1]


def test_leave_without_a_daemon_says_it_too(state: StateDir, run: Any) -> None:
    token = Token.new("lab")
    state.save_token(token.encode())
    path = state.save_owner_key(token.network_id, "its key")
    assert f"owner key stays in {state.path}" in run("leave")[1]
    assert path.exists()


def test_leave_asks_back(api: Api, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(ask, "confirm", lambda question: asked.append(question))
    api.answers["GET status"] = [STATUS]
    code, _, err = run("leave")
    assert (code, err) == (1, "federation: nothing was done: you said no\n")
    assert "lab" in asked[0]
    assert "POST leave" not in api.asked


def test_watch_goes_on_until_interrupted_and_waits_for_a_restart(
    api: Api, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.answers["GET status"] = [STATUS]
    api.answers["GET peers"] = [{"peers": []}]
    naps = iter(range(3))

    def nap(_seconds: float) -> None:
        if next(naps) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(ask.time, "sleep", nap)
    code, out, _ = run("status", "--watch")
    assert (code, out.count("alpha")) == (130, 3)
    naps = iter(range(2, 3))
    assert json.loads(run("status", "--watch", "--json")[1]) == STATUS
