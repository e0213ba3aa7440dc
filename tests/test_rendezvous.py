"""When and under which keys members look for each other in a DHT. The look itself is in integration/test_paths.py."""

from __future__ import annotations

from datetime import datetime, timezone
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trio
from structlog.testing import capture_logs

from federation.errors import FederationError
from federation.net.addresses import PeerAddress
from federation.net.rendezvous import ALONE_EVERY_S, EVERY_S, LOOK_TIMEOUT_S, PROVIDED_LOOKS, Rendezvous, _provide, hours
from federation.tokens import Token

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
    outcomes: list[Any] = [OSError("no"), OSError("no"), None, BaseException, ValueError("x")]
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


def test_what_cannot_be_dialled_is_passed_over() -> None:
    found: list[PeerAddress] = []
    made = Rendezvous([], key=lambda _: b"", addresses=lambda: [], is_alone=lambda: True, on_found=found.append)
    own, other = (SimpleNamespace(to_base58=lambda text=text: text) for text in ("own", "other"))
    words = [
        "/ip4/192.0.2.1/tcp/4484/p2p/x",
        "/ip4/192.0.2.1/udp/1",
        "nonsense",
        "/ip6/2001:db8::1/tcp/2",
        "/ip4/192.0.2.9/tcp/1",
    ]
    made._take(SimpleNamespace(peer_id=own, addrs=words), "own")  # type: ignore[arg-type]
    assert found == []
    made._take(SimpleNamespace(peer_id=other, addrs=words), "own")  # type: ignore[arg-type]
    assert found == [PeerAddress("192.0.2.1", 4484), PeerAddress("2001:db8::1", 2)]


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


@pytest.mark.parametrize("kept_after", [0, 2, PROVIDED_LOOKS])
async def test_what_was_left_is_looked_for(kept_after: int, autojump_clock: trio.testing.MockClock) -> None:
    """A DHT acknowledges nothing; what we noted down ourselves is no proof."""
    looks: list[int] = []

    class Store:
        local_peer_id = "us"

        def __init__(self) -> None:
            self.providers: dict[bytes, Any] = {}

        async def provide(self, key: bytes) -> None:
            self.providers[key] = "noted"

        async def find_providers(self, key: bytes, _count: int) -> list[Any]:
            looks.append(len(looks))
            found = ["other", "us"] if key in self.providers or len(looks) > kept_after else ["other"]
            return [SimpleNamespace(peer_id=peer) for peer in found]

    dht: Any = SimpleNamespace(provider_store=Store())
    if kept_after < PROVIDED_LOOKS:
        await _provide(dht, b"key")
        assert len(looks) == kept_after + 1
    else:
        with pytest.raises(FederationError, match="did not keep"):
            await _provide(dht, b"key")
        assert len(looks) == PROVIDED_LOOKS
