from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.mesh.tokens import Token
from federation.units import (
    ANY_ORIGIN,
    Endpoint,
    HostPort,
    UnixPath,
    decoded,
    machine_of,
    parse_duration,
    parse_lifetime,
    parse_origin,
    parse_rate,
    parse_size,
    pasted,
    visible,
    without_tokens,
)

hosts = st.one_of(
    st.ip_addresses().map(str),
    st.from_regex(r"[a-z][a-z0-9]{0,10}(\.[a-z][a-z0-9]{0,10}){0,2}", fullmatch=True),
)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8484", "127.0.0.1", 8484),
        (" localhost:0 ", "localhost", 0),
        ("[::1]:4484", "::1", 4484),
        ("[fe80::1%eth0]:1", "fe80::1%eth0", 1),
        ("box-1.lan:65535", "box-1.lan", 65535),
        ("my_container:80", "my_container", 80),
    ],
)
def test_host_and_port_are_read(text: str, host: str, port: int) -> None:
    assert HostPort.parse(text) == HostPort(host, port)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "host is missing"),
        (":8484", "host is missing"),
        ("127.0.0.1", "port is missing"),
        ("127.0.0.1:", "a port is"),
        ("127.0.0.1:65536", "a port is"),
        ("127.0.0.1:-1", "a port is"),
        ("127.0.0.1:٣", "a port is"),
        ("127.0.0.1:80:80", "needs brackets"),
        ("::1", "needs brackets"),
        ("[::1", r"\[ADDRESS\]:PORT"),
        ("[::1]8484", r"\[ADDRESS\]:PORT"),
        ("[127.0.0.1]:1", "only an IPv6"),
        ("[localhost]:1", "neither"),
        ("256.0.0.1:1", "neither"),
        ("1.2.3:1", "neither"),
        ("two words:1", "neither"),
        ("x\n:1", "neither"),
        ("-x:1", "neither"),
        ("http://127.0.0.1:11434", "without a scheme"),
    ],
)
def test_what_is_no_host_and_port_is_refused_in_plain_words(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        HostPort.parse(text)


def test_a_default_port_fills_in() -> None:
    assert HostPort.parse("localhost", default_port=80) == HostPort("localhost", 80)
    assert HostPort.parse("[::1]", default_port=80) == HostPort("::1", 80)
    assert HostPort.parse("localhost:81", default_port=80).port == 81


@given(hosts, st.integers(0, 65535))
def test_an_address_reads_back_as_it_was_written(host: str, port: int) -> None:
    address = HostPort(host, port)
    assert HostPort.parse(str(address)) == address


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    try:
        address = HostPort.parse(text)
    except ValueError:
        return
    assert HostPort.parse(str(address)) == address


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("LOCALHOST", True),
        ("localhost.", True),
        ("0.0.0.0", False),
        ("192.0.2.1", False),
        ("localhost.example", False),
        ("127.0.0.1.example", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert HostPort(host, 1).is_loopback is expected


@pytest.mark.parametrize(("host", "expected"), [("0.0.0.0", True), ("::", True), ("127.0.0.1", False), ("x", False)])
def test_wildcard(host: str, expected: bool) -> None:
    assert HostPort(host, 1).is_wildcard is expected


@pytest.mark.parametrize(
    ("host", "expected"), [("192.0.2.1", True), ("::1", True), ("localhost", False), ("1.2.3.4.nip.io", False)]
)
def test_addresses_and_names(host: str, expected: bool) -> None:
    assert HostPort(host, 1).is_ip is expected


def test_multiaddrs() -> None:
    assert HostPort("192.0.2.1", 1).multiaddr == "/ip4/192.0.2.1/tcp/1"
    assert HostPort("2001:db8::1", 2).multiaddr == "/ip6/2001:db8::1/tcp/2"
    assert HostPort("box.lan", 3).multiaddr == "/dns/box.lan/tcp/3"


def test_endpoints_have_a_service() -> None:
    assert Endpoint.parse("127.0.0.1:1") == Endpoint("default", HostPort("127.0.0.1", 1))
    assert Endpoint.parse("embed=[::1]:2") == Endpoint("embed", HostPort("::1", 2))
    assert Endpoint.parse(str(Endpoint.parse("a=b:3"))) == Endpoint.parse("a=b:3")


def test_a_backend_may_say_its_protocol() -> None:
    both = ("http", "tcp")
    web = Endpoint.parse("embed=HTTP://127.0.0.1:1/", protocols=both)
    assert web == Endpoint("embed", HostPort("127.0.0.1", 1), "http")
    assert str(web) == "embed=http://127.0.0.1:1"
    assert Endpoint.parse(str(web), protocols=both) == web
    assert Endpoint.parse("tcp://h:1", protocols=both) == Endpoint("default", HostPort("h", 1), "tcp")
    for text in ("http://h:1", "https://h:1", "http://h:1/v1", "http:h:1"):
        with pytest.raises(ValueError, match=r"HOST:PORT|port|IPv6"):
            Endpoint.parse(text, protocols=both if text != "http://h:1" else ())


@pytest.mark.parametrize("text", ["=127.0.0.1:1", "a b=127.0.0.1:1", "-a=127.0.0.1:1", f"{'x' * 65}=h:1", "a=b=h:1"])
def test_bad_service_names_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="service's name"):
        Endpoint.parse(text)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", 0),
        (8_000_000_000, 8_000_000_000),
        ("8000000000", 8_000_000_000),
        ("24GiB", 24 * 1024**3),
        ("24 gib", 24 * 1024**3),
        ("24GB", 24 * 10**9),
        ("1.5KiB", 1536),
        ("2MiB", 2 * 1024**2),
        ("1TiB", 1024**4),
        ("5B", 5),
    ],
)
def test_sizes(value: object, expected: int) -> None:
    assert parse_size(value) == expected


@pytest.mark.parametrize("value", ["", "24G", "-1", "1e9", "GiB", "nan", "1,5GiB", "٣", True, 1.5, None, [], "1" * 40])
def test_what_is_no_size_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="GiB"):
        parse_size(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("10", 10.0),
        (10, 10.0),
        (0.5, 0.5),
        ("0.25", 0.25),
        ("10s", 10.0),
        ("500ms", 0.5),
        ("1m", 60.0),
        ("1.5 h", 5400.0),
    ],
)
def test_durations(value: object, expected: float) -> None:
    assert parse_duration(value) == expected


@pytest.mark.parametrize("value", ["", "ten", "-1", "1d", "1m30s", "nan", "inf", float("inf"), True, None, "s"])
def test_what_is_no_duration_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="500ms"):
        parse_duration(value)


@given(st.text(max_size=20), st.text(max_size=20))
def test_tokens_are_cut_out_of_texts(before: str, after: str) -> None:
    token = Token.new("net").encode()
    assert token[5:] not in without_tokens(f"{before} {token} {after}")


def test_what_is_no_token_stays() -> None:
    assert without_tokens("fed up with /fed1/x and fed1_") == "fed up with /fed1/x and fed1_"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("athens", "athens"),
        ("nørd 東京 🦙", "nørd 東京 🦙"),
        ("a\u202egnp.exe", "a?gnp.exe"),
        ("\u2066a\u2069\u200b", "?a??"),
        ("a\x1b[2J\n\x9b\u2028\u00a0b", "a?[2J????b"),
    ],
)
def test_what_turns_or_hides_text_shows(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://Chat.Example", "https://chat.example"),
        ("https://chat.example/", "https://chat.example"),
        ("https://chat.example:443", "https://chat.example"),
        ("http://box:80", "http://box"),
        ("https://box:80", "https://box:80"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("chrome-extension://abc", "chrome-extension://abc"),
        (" * ", ANY_ORIGIN),
        ("null", "null"),
    ],
)
def test_origins(text: str, origin: str) -> None:
    assert parse_origin(text) == origin


@pytest.mark.parametrize("text", ["chat.example", "https://", "https://a/b", "//a", "https://a b", "", "https://*"])
def test_what_is_no_origin(text: str) -> None:
    with pytest.raises(ValueError, match="write an origin"):
        parse_origin(text)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("relay Q", "relay Q", True),
    ],
)
def test_what_counts_as_one_machine(one: str, other: str, same: bool) -> None:
    assert (machine_of(one) == machine_of(other)) is same


@pytest.mark.parametrize(
    ("text", "expected"), [("30d", 2592000), ("2w", 1209600), ("0.5 D", 43200), ("12h", 43200), ("5", 5)]
)
def test_lifetimes(text: str, expected: float) -> None:
    assert parse_lifetime(text) == expected


@pytest.mark.parametrize("text", ["", "d", "1d12h", "-1d", "1y", "soon"])
def test_what_is_no_lifetime_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="30d"):
        parse_lifetime(text)


@pytest.mark.parametrize(
    ("text", "expected"), [("60/m", (60, 60)), ("5/s", (5, 1)), ("1000 / H", (1000, 3600)), ("1/d", (1, 86400))]
)
def test_rates(text: str, expected: tuple[int, int]) -> None:
    assert parse_rate(text) == expected


@pytest.mark.parametrize("text", ["", "60", "0/m", "-1/m", "1.5/s", "60/y", "60/", "/m", "12345678/s"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="60/m"):
        parse_rate(text)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("\ufeff127.0.0.1:80", "127.0.0.1:80"),
        ("127.0.0.1\u200b:80\u2060", "127.0.0.1:80"),
        ("\u00a0a\u3000", "a"),
        ('"a"', "a"),
        ("'a'", "a"),
        ("`a`", "a"),
        ("\u201ca\u201d", "a"),
        ("\u201ea\u201c", "a"),
        ("\ufeff ' a ' ", "a"),
        ('"', '"'),
        ("it's", "it's"),
        ("''", ""),
        ("k\u00f6ln", "k\u00f6ln"),
    ],
)
def test_what_was_pasted_is_what_was_meant(text: str, meant: str) -> None:
    assert pasted(text) == meant


@given(st.text())
def test_any_text_can_be_pasted(text: str) -> None:
    assert len(pasted(text)) <= len(text)


def test_values_are_read_as_they_are_pasted() -> None:
    assert HostPort.parse('\ufeff"127.0.0.1:80"') == HostPort("127.0.0.1", 80)
    assert str(Endpoint.parse("\u201cchat=127.0.0.1:80\u200b\u201d")) == "chat=127.0.0.1:80"
    assert (parse_size("'24GiB'"), parse_duration("\u00a010s\u200b")) == (24 * 1024**3, 10.0)
    assert parse_origin("\u200bhttps://chat.example") == "https://chat.example"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_is_read_however_it_was_saved(encoding: str) -> None:
    assert decoded("k\u00f6ln\n".encode(encoding)) == "k\u00f6ln\n"


@pytest.mark.parametrize("data", [b"\xff", b"\xff\xfe\x00", b"\xc3"])
def test_what_is_no_text_is_an_error(data: bytes) -> None:
    with pytest.raises(UnicodeDecodeError):
        decoded(data)


# Unix sockets


@pytest.mark.parametrize("text", ["unix:/run/llama.sock", "unix:///run/llama.sock", "Unix:/run/llama.sock"])
def test_a_unix_socket_is_written_by_its_path(text: str) -> None:
    endpoint = Endpoint.parse(f"chat=http://{text}", protocols=("http",))
    assert endpoint == Endpoint("chat", UnixPath("/run/llama.sock"), "http")
    assert str(endpoint) == "chat=http://unix:/run/llama.sock"
    assert Endpoint.parse(str(endpoint), protocols=("http",)) == endpoint
    assert endpoint.address.authority == "localhost"
    assert endpoint.address.is_loopback


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("/run/llama.sock", "as unix:/path"),
        ("unix:llama.sock", "the whole path"),
        ("unix:", "the whole path"),
        ("unix:/" + "x" * 100, "100 bytes at most"),
        ("unix:/a\nb", "printable"),
    ],
)
def test_other_paths_are_refused_in_plain_words(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Endpoint.parse(text)


def test_a_zone_stays_out_of_a_host_header() -> None:
    assert HostPort.parse("[fe80::1%eth0]:8080").authority == "[fe80::1]:8080"
    assert HostPort.parse("box:8080").authority == "box:8080"


def test_localhost_is_both_families() -> None:
    assert HostPort.parse("localhost:1").hosts == ("127.0.0.1", "::1")
    assert HostPort.parse("127.0.0.1:1").hosts == ("127.0.0.1",)
