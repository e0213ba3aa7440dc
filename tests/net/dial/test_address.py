"""Addresses as values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.errors import UsageError
from federation.net.dial.address import PeerAddress, ip_address

ME, ALICE, BOB = (f"12D3KooW{letter * 44}" for letter in "MAB")


class TestPeerAddress:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("/ip4/192.0.2.1/tcp/4484", PeerAddress("192.0.2.1", 4484)),
            (f"/ip4/192.0.2.1/tcp/4484/p2p/{ALICE}", PeerAddress("192.0.2.1", 4484, ALICE)),
            ("/ip6/2001:DB8:0::1/tcp/1", PeerAddress("2001:db8::1", 1)),
            ("/dns/Node-1.Example./tcp/65535", PeerAddress("node-1.example", 65535)),
            ("/dns4/node.example/tcp/80", PeerAddress("node.example", 80)),
            ("/dns6/node.example/tcp/80", PeerAddress("node.example", 80)),
            ("192.0.2.1:4484", PeerAddress("192.0.2.1", 4484)),
            ("[2001:db8::1]:4484", PeerAddress("2001:db8::1", 4484)),
            ("gpu_box:4484", PeerAddress("gpu_box", 4484)),
            ("localhost:4484", PeerAddress("localhost", 4484)),
        ],
    )
    def test_parses(self, text: str, expected: PeerAddress) -> None:
        assert PeerAddress.parse(text) == expected

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("", "port is missing"),
            ("192.0.2.1", "port is missing"),
            ("192.0.2.1:0", "1 to 65535"),
            ("192.0.2.1:65536", "1 to 65535"),
            ("192.0.2.1:٤٤٨٤", "1 to 65535"),
            ("192.0.2.1:+80", "1 to 65535"),
            ("/ip4/192.0.2.1/tcp/", "1 to 65535"),
            ("2001:db8::1:4484", "brackets"),
            ("[192.0.2.1]:4484", "192.0.2.1"),
            ("300.0.2.1:4484", "300"),
            ("1.2.3:4484", "1.2.3"),
            ("/dns/192.0.2.1/tcp/80", "not a host name"),
            ("-x.example:80", "not a host name"),
            ("a..example:80", "not a host name"),
            ("nœud.example:80", "not a host name"),
            ("/ip4/0.0.0.0/tcp/4484", "no one machine"),
            ("[::]:4484", "no one machine"),
            ("224.0.0.251:5353", "no one machine"),
            ("/ip6/fe80::1%eth0/tcp/4484", "zone"),
            ("/ip4/192.0.2.1/udp/4484/quic-v1", "TCP"),
            (f"/ip4/192.0.2.1/tcp/4484/p2p/{ALICE}/p2p-circuit", "TCP"),
            ("/ip4/192.0.2.1/tcp/4484/", "TCP"),
            ("/ip4/192.0.2.1/tcp/4484/p2p/0OIl", "peer id"),
            (f"/onion/{'a' * 16}/tcp/80", "onion"),
            (f"{'a.' * 140}example:80", "longer"),
        ],
    )
    def test_refuses_in_plain_words(self, text: str, why: str) -> None:
        with pytest.raises(UsageError) as refusal:
            PeerAddress.parse(text)
        assert why in refusal.value.detail
        assert len(str(refusal.value)) < 320
        assert "\n" not in str(refusal.value)

    @given(
        st.one_of(
            st.ip_addresses().map(str),
            st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z])?(\.[a-z]{2,9}){0,3}", fullmatch=True),
        ),
        st.integers(1, 65535),
        st.sampled_from([None, ALICE, BOB]),
    )
    def test_round_trip(self, host: str, port: int, peer_id: str | None) -> None:
        address = PeerAddress(host, port, peer_id)
        if address.ip is not None and (address.ip.is_unspecified or address.ip.is_multicast):
            return
        assert PeerAddress.parse(str(address)) == address

    @given(st.one_of(st.text(), st.text(alphabet="/:.[]%ip4dnstcp2019", max_size=40).map(lambda text: f"/ip4{text}")))
    def test_any_text_is_an_address_or_refused(self, text: str) -> None:
        try:
            address = PeerAddress.parse(text)
        except UsageError:
            return
        assert PeerAddress.parse(str(address)) == address

    @pytest.mark.parametrize(
        ("host", "expected"),
        [
            ("127.0.0.1", True),
            ("127.9.9.9", True),
            ("::1", True),
            ("localhost", True),
            ("192.0.2.1", False),
            ("a.b", False),
        ],
    )
    def test_loopback(self, host: str, expected: bool) -> None:
        assert PeerAddress(host, 1).is_loopback is expected


@pytest.mark.parametrize(
    ("host", "port", "address"),
    [
        ("198.51.100.7", 1, PeerAddress("198.51.100.7", 1)),
        ("2001:DB8::1", 2, PeerAddress("2001:db8::1", 2)),
        *(("box", 1, None), ("1::1%eth0", 1, None), ("1::1]:1/[", 1, None), ("198.51.100.7", 65536, None)),
        *(("0.0.0.0", 1, None), ("", 1, None)),
    ],
)
def test_an_address_in_a_remotes_words(host: str, port: int, address: PeerAddress | None) -> None:
    assert ip_address(host, port) == address
