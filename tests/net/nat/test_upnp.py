"""UPnP: the thread's work over a router that is made up; tests/integration/test_router.py has a real one."""

from __future__ import annotations

import threading

import pytest

from federation.net.nat import upnp
from federation.net.nat.mapping import MappingRefused
from federation.net.nat.upnp import TRIED_PORTS, Upnp


class Igd:
    """miniupnpc.UPnP, of a router with these forwardings: port -> (machine, port there)."""

    lanaddr = "192.168.1.7"
    discoverdelay = 0

    def __init__(self, *, is_there: bool = True, url: str | None = "http://192.168.1.1:5000/rootDesc.xml") -> None:
        self.is_there, self.url = is_there, url
        self.only_for_good = self.refuses = False
        self.forwardings: dict[int, tuple[str, int]] = {}
        self.leases: list[int] = []

    def discover(self) -> int:
        return int(self.is_there)

    def selectigd(self) -> str | None:
        if not self.is_there:
            raise Exception("No UPnP device discovered")
        return self.url

    def getspecificportmapping(self, port: int, _protocol: str) -> tuple[str, int] | None:
        return self.forwardings.get(port)

    def addportmapping(
        self, port: int, _protocol: str, host: str, internal: int, _name: str, _remote: str, lease: int
    ) -> None:
        if self.refuses or (self.only_for_good and lease):
            raise Exception("OnlyPermanentLeasesSupported")
        self.forwardings[port] = host, internal
        self.leases.append(lease)

    def deleteportmapping(self, port: int, _protocol: str) -> None:
        if port not in self.forwardings:
            raise Exception("NoSuchEntryInArray")
        del self.forwardings[port]


async def ask(
    igd: Igd, external: int = 4484, lifetime_s: int = 3600, gateway: str | None = "192.168.1.1"
) -> tuple[int, int]:
    return await Upnp(lambda: igd).map_port(gateway, 4484, external, lifetime_s)


async def test_a_port_is_given_and_taken_back() -> None:
    igd, found = Igd(), []

    def library() -> Igd:
        found.append(igd)
        return igd

    asker = Upnp(library)
    assert await asker.map_port("192.168.1.1", 4484, 4484, 3600) == (4484, 3600)
    assert igd.forwardings == {4484: ("192.168.1.7", 4484)}
    assert await asker.map_port("192.168.1.1", 4484, 4484, 0) == (4484, 0)
    assert (igd.forwardings, len(found)) == ({}, 1)


async def test_nothing_is_taken_back_that_was_not_given() -> None:
    igd = Igd()
    igd.forwardings = {4484: ("192.168.1.8", 4484)}
    assert await ask(igd, 4484, 0) == (4484, 0)
    assert igd.forwardings == {4484: ("192.168.1.8", 4484)}


async def test_ports_of_other_machines_are_left_to_them() -> None:
    igd = Igd()
    igd.forwardings = {4484: ("192.168.1.8", 4484), 4485: ("192.168.1.9", 80)}
    assert await ask(igd) == (4486, 3600)
    assert await ask(igd, 4486) == (4486, 3600)  # which is ours
    igd.forwardings = {4484 + n: ("192.168.1.8", 1) for n in range(TRIED_PORTS)}
    with pytest.raises(MappingRefused, match="other machines have these ports"):
        await ask(igd)


async def test_a_router_that_gives_ports_only_for_good() -> None:
    igd = Igd()
    igd.only_for_good = True
    assert await ask(igd) == (4484, 0)
    assert igd.leases == [0]


async def test_a_router_that_refuses() -> None:
    igd = Igd()
    igd.refuses = True
    with pytest.raises(MappingRefused, match="the router refuses"):
        await ask(igd)


@pytest.mark.parametrize(
    ("igd", "gateway", "why"),
    [
        (Igd(is_there=False), "192.168.1.1", "no router answers"),
        (Igd(url="http://192.168.1.66:5000/x"), "192.168.1.1", "192.168.1.66 answers, and the router is 192.168.1.1"),
    ],
    ids=["nobody", "another machine"],
)
async def test_only_the_router_counts(igd: Igd, gateway: str, why: str) -> None:
    with pytest.raises(MappingRefused, match=why):
        await ask(igd, gateway=gateway)
    assert igd.forwardings == {}


@pytest.mark.parametrize(
    ("igd", "gateway"), [(Igd(), None), (Igd(url=None), "192.168.1.1")], ids=["no gateway", "no address"]
)
async def test_where_nobody_knows_which_is_the_router(igd: Igd, gateway: str | None) -> None:
    assert await ask(igd, gateway=gateway) == (4484, 3600)


async def test_without_the_library() -> None:
    def library() -> Igd:
        raise ImportError("no module")

    with pytest.raises(MappingRefused, match="miniupnpc is not installed"):
        await Upnp(library).map_port(None, 1, 1, 60)


async def test_a_router_that_never_ends_its_answer_keeps_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upnp, "PATIENCE_S", 0.05)
    end, asked = threading.Event(), []

    def library() -> Igd:
        asked.append(threading.get_ident())
        end.wait(60)
        return Igd()

    asker = Upnp(library)
    for _ in range(2):
        with pytest.raises(MappingRefused, match="does not end its answer"):
            await asker.map_port(None, 1, 1, 60)
    assert len(asked) == 1
    end.set()
