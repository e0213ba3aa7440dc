"""This machine's interfaces, as `ifaddr` might find them."""

from __future__ import annotations

import errno
import sys

import ifaddr
import pytest

from federation.errors import UsageError
from federation.net.dial.address import PeerAddress
from federation.net.dial.book import MAX_ADDRESSES
from federation.net.discover.interfaces import (
    MAX_MULTICAST,
    interface_ips,
    lasting_ips,
    local_addresses,
    multicast_interfaces,
)


def adapter(name: str, index: int, *ips: str, prefix: int = 24) -> ifaddr.Adapter:
    entries = [ifaddr.IP((ip, 0, 0) if ":" in ip else ip, prefix, name) for ip in ips]  # type: ignore[arg-type]
    return ifaddr.Adapter(name, name, entries, index=index)


LOOPBACK = adapter("lo", 1, "127.0.0.1", "::1")
LAN = adapter("eth0", 2, "2600::5", "fd00::5", "fe80::5", "192.168.1.5", "169.254.7.7", "11.22.33.44")
DOCKER = adapter("docker0", 3, "172.17.0.1", "fe80::6")
VPN = adapter("tailscale0", 4, "100.64.0.9", prefix=32)
MACHINE = [LOOPBACK, DOCKER, LAN, VPN]


class TestLocalAddresses:
    @pytest.mark.parametrize("listen_host", ["0.0.0.0", "::", ""])
    def test_of_a_wildcard_listener_lan_first_no_bridges(self, listen_host: str) -> None:
        assert local_addresses(listen_host, 4484, adapters=lambda: MACHINE) == [
            "/ip4/192.168.1.5/tcp/4484",
            "/ip4/11.22.33.44/tcp/4484",
            "/ip6/fd00::5/tcp/4484",
            "/ip6/2600::5/tcp/4484",
            "/ip4/100.64.0.9/tcp/4484",
        ]

    @pytest.mark.parametrize(
        "crowd",
        [
            adapter("kube-ipvs0", 9, *(f"10.43.0.{n}" for n in range(1, 40)), prefix=32),
            adapter("vip0", 9, *(f"10.43.0.{n}" for n in range(1, 40)), prefix=32),
            adapter("br-0123456789ab", 9, *(f"172.{n}.0.1" for n in range(18, 58))),  # some of them public
        ],
        ids=lambda crowd: crowd.name,
    )
    def test_a_crowd_of_addresses_pushes_no_real_one_out(self, crowd: ifaddr.Adapter) -> None:
        found = local_addresses("0.0.0.0", 4484, adapters=lambda: [crowd, LOOPBACK, LAN])
        assert found[:2] == ["/ip4/192.168.1.5/tcp/4484", "/ip4/11.22.33.44/tcp/4484"]
        assert found[2:4] == ["/ip6/fd00::5/tcp/4484", "/ip6/2600::5/tcp/4484"]
        assert not any(text.startswith("/ip4/172") for text in found)

    def test_what_wsl_puts_on_lo_is_nobody_elses(self) -> None:
        wsl = adapter("lo", 1, "127.0.0.1", "10.255.255.254", "::1")
        eth = adapter("eth0", 2, "172.29.160.5")
        assert local_addresses("0.0.0.0", 1, adapters=lambda: [wsl, eth]) == ["/ip4/172.29.160.5/tcp/1"]
        assert local_addresses("0.0.0.0", 1, adapters=lambda: [wsl]) == ["/ip4/10.255.255.254/tcp/1"]

    def test_a_public_address_on_lo_is_reached_by_routes(self) -> None:
        anycast = adapter("lo", 1, "127.0.0.1", "11.0.0.1")
        assert local_addresses("0.0.0.0", 1, adapters=lambda: [anycast, LAN])[-1] == "/ip4/11.0.0.1/tcp/1"

    @pytest.mark.parametrize(
        ("name", "counts"), [("br-lan", True), ("bridge0", True), ("vmbr0", True), ("bridge100", False)]
    )
    def test_some_bridges_are_the_lan(self, name: str, counts: bool) -> None:
        found = local_addresses("0.0.0.0", 1, adapters=lambda: [adapter(name, 7, "10.1.1.1"), LAN])
        assert ("/ip4/10.1.1.1/tcp/1" in found) == counts

    def test_of_a_concrete_listener_not_when_it_is_gone(self) -> None:
        assert local_addresses("192.168.9.9", 4484, adapters=lambda: MACHINE) == []
        assert local_addresses("127.0.0.2", 4484, adapters=lambda: MACHINE) == ["/ip4/127.0.0.2/tcp/4484"]

    @pytest.mark.parametrize(
        ("listen_host", "expected"),
        [
            ("127.0.0.1", "/ip4/127.0.0.1/tcp/4484"),
            ("192.168.1.5", "/ip4/192.168.1.5/tcp/4484"),
            ("fd00::5", "/ip6/fd00::5/tcp/4484"),
            ("gpu-box.lan", "/dns/gpu-box.lan/tcp/4484"),
        ],
    )
    def test_of_a_concrete_listener_itself_alone(self, listen_host: str, expected: str) -> None:
        assert local_addresses(listen_host, 4484, adapters=lambda: MACHINE) == [expected]

    def test_loopback_when_there_is_nothing_else(self) -> None:
        link_local_only = adapter("eth0", 2, "fe80::5", "169.254.7.7")
        expected = ["/ip4/127.0.0.1/tcp/4484", "/ip6/::1/tcp/4484"]
        assert local_addresses("0.0.0.0", 4484, adapters=lambda: [LOOPBACK, link_local_only]) == expected
        assert local_addresses("0.0.0.0", 4484, adapters=list) == []

    def test_are_bounded_and_distinct(self) -> None:
        crowd = adapter("eth0", 2, "10.0.0.1", *(f"10.0.0.{n}" for n in range(1, 40)))
        found = local_addresses("0.0.0.0", 4484, adapters=lambda: [crowd])
        assert found == [f"/ip4/10.0.0.{n}/tcp/4484" for n in range(1, MAX_ADDRESSES + 1)]

    def test_with_a_zone_is_refused(self) -> None:
        with pytest.raises(UsageError, match="zone"):
            local_addresses("fe80::5%eth0", 4484)

    def test_of_this_machine_can_be_parsed(self) -> None:
        found = local_addresses("0.0.0.0", 4484)
        assert found
        assert [str(PeerAddress.parse(text)) for text in found] == found


def test_without_descriptors_the_interfaces_are_those_of_the_last_look(monkeypatch: pytest.MonkeyPatch) -> None:
    before = interface_ips()

    def no_descriptor() -> list[ifaddr.Adapter]:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(ifaddr, "get_adapters", no_descriptor)
    assert interface_ips() == before != set()


class TestMulticastInterfaces:
    def test_all_of_them_loopback_included(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "platform", "linux")
        found = multicast_interfaces([PeerAddress("192.168.1.5", 4484)], adapters=lambda: MACHINE)
        ipv4 = ["100.64.0.9", "127.0.0.1", "169.254.7.7", "192.168.1.5", "11.22.33.44"]
        assert set(found) == {*ipv4, LAN.index}

    def test_loopback_is_its_own_address_not_what_wsl_adds(self) -> None:
        wsl = adapter("lo", 1, "10.255.255.254", "127.0.0.1")
        assert set(multicast_interfaces([PeerAddress("192.168.1.5", 1)], adapters=lambda: [wsl, VPN])) == {
            "100.64.0.9",
            "127.0.0.1",
        }

    def test_containers_change_nothing(self) -> None:
        addresses = [PeerAddress("192.168.1.5", 4484)]
        guests = [adapter(f"veth{n}", 20 + n, "fe80::9") for n in range(9)] + [adapter("br-0123456789ab", 9, "172.18.0.1")]
        with_them, without = [*MACHINE, *guests], [LOOPBACK, LAN, VPN]
        for look in (multicast_interfaces(addresses, adapters=lambda: with_them), lasting_ips(adapters=lambda: with_them)):
            assert look in (multicast_interfaces(addresses, adapters=lambda: without), lasting_ips(adapters=lambda: without))
        assert "192.168.1.5" in lasting_ips(adapters=lambda: MACHINE)

    def test_many_networks_fit_a_socket_and_the_lan_is_among_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "platform", "linux")
        crowd = [adapter(f"tun{n}", 20 + n, f"10.0.{n}.1", prefix=32) for n in range(40)]
        found = multicast_interfaces([PeerAddress("192.168.1.5", 4484)], adapters=lambda: [*crowd, *MACHINE])
        assert {"192.168.1.5", "11.22.33.44", "127.0.0.1"} <= set(found)
        assert len([one for one in found if isinstance(one, str)]) == MAX_MULTICAST

    def test_ipv4_only_where_one_socket_cannot_hear_both(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "platform", "darwin")
        found = multicast_interfaces([PeerAddress("192.168.1.5", 4484)], adapters=lambda: [LOOPBACK, LAN])
        assert set(found) == {"127.0.0.1", "169.254.7.7", "192.168.1.5", "11.22.33.44"}

    @pytest.mark.parametrize("hosts", [["127.0.0.1"], ["localhost"], ["127.0.0.1", "::1"], []])
    def test_a_listener_on_loopback_stays_there(self, hosts: list[str]) -> None:
        assert multicast_interfaces([PeerAddress(host, 4484) for host in hosts]) == ["127.0.0.1"]

    def test_are_the_same_as_long_as_the_machine_is(self) -> None:
        addresses = [PeerAddress("192.168.1.5", 4484)]
        reordered = [LAN, VPN, DOCKER, LOOPBACK]
        assert multicast_interfaces(addresses, adapters=lambda: MACHINE) == multicast_interfaces(
            addresses, adapters=lambda: reordered
        )
