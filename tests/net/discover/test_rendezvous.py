"""When and under which keys members look for each other in a DHT. The look itself is in integration/test_paths.py."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import pytest
import trio
from structlog.testing import capture_logs

from federation.errors import FederationError
from federation.mesh.tokens import Token
from federation.net.dial.address import PeerAddress
from federation.net.discover import rendezvous as module
from federation.net.discover.rendezvous import ALONE_EVERY_S, EVERY_S, LOOK_TIMEOUT_S, Rendezvous, hours

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("time", "counting"),
    [("12:30:00", [12]), ("12:05:00", [12, 11]), ("12:55:00", [12, 13]), ("12:10:00", [12]), ("12:50:00", [12, 13])],
)
def test_near_the_turn_of_the_hour_both_keys_count(time: str, counting: list[int]) -> None:
    now = datetime.fromisoformat(f"1970-01-01T{time}").replace(tzinfo=timezone.utc)
    assert hours(now) == counting


def test_the_key_changes_with_the_hour_and_the_network() -> None:
    keys = {Token(secret * 32).dht_key(hour) for secret in (b"a", b"b") for hour in (1, 2)}
    assert len(keys) == 4
    assert all(key[:2] == b"\x12\x20" and len(key) == 34 for key in keys)
    assert Token(b"a" * 32).dht_key(1) == Token(b"a" * 32, "name").dht_key(1)


def rendezvous(look: Callable[[], Any], *, alone: bool = True) -> Rendezvous:
    made = Rendezvous([], key=lambda _hour: b"", addresses=lambda: [], is_alone=lambda: alone, on_found=lambda _found: None)

    async def _look(_counting: object) -> None:
        await look()

    made._look = _look  # type: ignore[method-assign]
    return made


@pytest.mark.parametrize(("alone", "every_s"), [(True, ALONE_EVERY_S), (False, EVERY_S)])
async def test_who_is_alone_looks_more_often(alone: bool, every_s: float, autojump_clock: trio.testing.MockClock) -> None:
    looks: list[float] = []

    async def look() -> None:
        looks.append(trio.current_time())

    with trio.move_on_after(every_s * 2.5):
        await rendezvous(look, alone=alone).run()
    assert looks == [0.0, every_s, 2 * every_s]


async def test_whatever_comes_of_a_look_the_next_one_is_made(autojump_clock: trio.testing.MockClock) -> None:
    """The same problem is said once."""
    outcomes: list[Any] = [OSError("no"), OSError("no"), None, BaseException, FederationError("x")]
    made: list[Any] = []

    async def look() -> None:
        made.append(outcomes.pop(0))
        if made[-1] is BaseException:
            await trio.sleep_forever()
        if made[-1] is not None:
            raise made[-1]
        outcomes or await trio.sleep_forever()

    with capture_logs() as logs, trio.move_on_after(5 * ALONE_EVERY_S + LOOK_TIMEOUT_S - 1):
        await rendezvous(look).run()
    assert len(made) == 5
    assert [entry["why"] for entry in logs] == ["no", f"the DHT did not answer within {LOOK_TIMEOUT_S:g} s", "x"]


NONSENSE: dict[str, object] = {"addresses": 5}
ANSWER = {"addresses": ["/ip4/192.0.2.1/tcp/4484"], "problem": ""}


@pytest.mark.parametrize(
    ("code", "answer", "problem"),
    [
        (0, ANSWER, ""),
        (0, {**ANSWER, "problem": "it did not keep this node's address"}, "it did not keep this node's address"),
        (-9, {}, "the look was given up (exit -9)"),
        (0, NONSENSE, "the look answered nonsense"),
    ],
    ids=["well", "half", "killed", "nonsense"],
)
async def test_a_look_is_made_by_a_process(
    code: int, answer: dict[str, object], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    async def run(command: list[str], said: bytes) -> tuple[int, bytes]:
        await trio.lowlevel.checkpoint()
        asked.append((command[1:], json.loads(said)))
        return code, json.dumps(answer).encode()

    monkeypatch.setattr(module, "_run", run)
    found: list[PeerAddress] = []
    ours = [PeerAddress("192.0.2.7", 1, "12D3KooW"), PeerAddress("127.0.0.1", 1)]
    made = Rendezvous(
        ["/ip4/192.0.2.2/tcp/1/p2p/x"], key=lambda hour: bytes([hour]), addresses=lambda: ours, is_alone=lambda: True,
        on_found=found.append,
    )  # fmt: skip
    if problem:
        with pytest.raises(FederationError) as said:
            await made._look([12, 11])
        assert said.value.detail == problem
    else:
        await made._look([12, 11])
    assert found == [PeerAddress("192.0.2.1", 4484)] * (code == 0 and answer is not NONSENSE)
    task = {
        "bootstraps": ["/ip4/192.0.2.2/tcp/1/p2p/x"],
        "keys": ["0c", "0b"],
        "provided": ["0c"],
        "ours": ["/ip4/192.0.2.7/tcp/1"],
    }
    assert asked == [(["-m", "federation.net.discover.look"], task)]


async def test_after_a_look_that_failed_the_next_one_is_soon(autojump_clock: trio.testing.MockClock) -> None:
    """Also where members are connected: the others find nobody until our address is there."""
    looks: list[float] = []

    async def look() -> None:
        looks.append(trio.current_time())
        if len(looks) == 1:
            raise OSError("no")

    with capture_logs(), trio.move_on_after(ALONE_EVERY_S + 1.5 * EVERY_S):
        await rendezvous(look, alone=False).run()
    assert looks == [0.0, ALONE_EVERY_S, ALONE_EVERY_S + EVERY_S]


async def test_a_process_is_heard_out() -> None:
    code = "import sys; print(sys.stdin.read(), end=''); sys.exit(3)"
    assert await module._run([sys.executable, "-c", code], b"said") == (3, b"said")


async def test_a_process_that_prints_without_end_is_killed() -> None:
    endless = "import os\nwhile True: os.write(1, bytes(65536))"
    with trio.fail_after(60):
        code, answer = await module._run([sys.executable, "-c", endless], b"")
    assert code != 0
    assert module.MAX_ANSWER_BYTES < len(answer) < module.MAX_ANSWER_BYTES + (1 << 20)


@pytest.mark.parametrize(
    "answer", [b"", b"no", b"[]", b'{"addresses": []}', b'{"addresses": 5, "problem": ""}', b"[" * 100_000, b"\xff"]
)
def test_what_no_look_says_is_nonsense(answer: bytes) -> None:
    with pytest.raises(FederationError, match="nonsense"):
        module._read(answer)


def test_a_look_names_so_many_addresses_at_most() -> None:
    many = json.dumps({"addresses": [*ANSWER["addresses"], 7] * 1000, "problem": ""}).encode()
    addresses, problem = module._read(many)
    assert (len(addresses), problem) == (module.MAX_FOUND // 2, "")
