"""A forwarding that is asked for in several ways, kept, and given back."""

from __future__ import annotations

import pytest
import trio

from federation.net.nat.mapping import LIFETIME_S, RETRY_S, MappingRefused, PortMapping, Way


class Router:
    """Gives `port`, or refuses with `why`."""

    def __init__(self, name: str, port: int = 5000, why: str = "", lifetime_s: int | None = None) -> None:
        self.way = Way(name, self.ask)
        self.port, self.why, self.lifetime_s = port, why, lifetime_s
        self.asked: list[tuple[str | None, int, int, int]] = []

    async def ask(self, gateway: str | None, internal: int, external: int, lifetime_s: int) -> tuple[int, int]:
        await trio.lowlevel.checkpoint()
        self.asked.append((gateway, internal, external, lifetime_s))
        if self.why:
            raise MappingRefused(self.why)
        return self.port, lifetime_s if self.lifetime_s is None else self.lifetime_s


async def gateway() -> str:
    await trio.lowlevel.checkpoint()
    return "192.0.2.1"


async def test_it_is_kept_and_given_back(autojump_clock: trio.testing.MockClock) -> None:
    mapped: list[int | None] = []
    router = Router("NAT-PMP")
    mapping = PortMapping(4484, mapped.append, [router.way], gateway=gateway)
    with trio.move_on_after(LIFETIME_S * 0.75):
        await mapping.run()
    assert mapped == [5000]
    assert (mapping.way, mapping.problem) == ("NAT-PMP", "")
    renewed = ("192.0.2.1", 4484, 5000, LIFETIME_S)
    assert router.asked == [("192.0.2.1", 4484, 4484, LIFETIME_S), renewed, ("192.0.2.1", 4484, 5000, 0)]


async def test_the_way_that_worked_comes_first(autojump_clock: trio.testing.MockClock) -> None:
    mute, able = Router("NAT-PMP", why="it does not answer"), Router("UPnP", port=4484)
    mapping = PortMapping(4484, lambda _port: None, [mute.way, able.way], gateway=gateway)
    with trio.move_on_after(LIFETIME_S * 1.25):
        await mapping.run()
    assert (mapping.way, len(mute.asked), len(able.asked)) == ("UPnP", 1, 4)


async def test_none_works_and_then_one_does(autojump_clock: trio.testing.MockClock) -> None:
    mapped: list[int | None] = []
    routers = [Router("NAT-PMP", why="it does not answer"), Router("UPnP", why="no router answers")]
    mapping = PortMapping(4484, mapped.append, [router.way for router in routers], gateway=gateway)
    with trio.move_on_after(RETRY_S * 1.5):
        await mapping.run()
    assert (mapping.problem, mapped) == ("NAT-PMP: it does not answer; UPnP: no router answers", [])
    assert [len(router.asked) for router in routers] == [2, 2]
    routers[1].why = ""
    with trio.move_on_after(1):
        await mapping.run()
    assert mapped == [5000]


async def test_a_forwarding_that_the_router_no_longer_gives(autojump_clock: trio.testing.MockClock) -> None:
    mapped: list[int | None] = []
    router = Router("UPnP")
    mapping = PortMapping(4484, mapped.append, [router.way], gateway=gateway)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mapping.run)
        await trio.sleep(1)
        router.why = "it is full"
        await trio.sleep(LIFETIME_S)
        nursery.cancel_scope.cancel()
    assert mapped == [5000, None]
    assert router.asked[-1][3] == LIFETIME_S  # there is nothing to give back


@pytest.mark.parametrize(
    ("lifetime_s", "again_in_s"), [(600, 300), (2**32 - 1, LIFETIME_S / 2), (0, LIFETIME_S / 2), (1, 60)],
    ids=["as it should", "for ever", "for good", "for no time"],
)  # fmt: skip
async def test_what_a_router_says_is_kept_within_reason(lifetime_s: int, again_in_s: float) -> None:
    router = Router("UPnP", lifetime_s=lifetime_s)
    mapping = PortMapping(4484, lambda _port: None, [router.way])
    assert await mapping._renew() == again_in_s
