from __future__ import annotations

import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from federation.forward.web_pages import _PLAIN, MAX_HEAD, Heard, Refusal, Request, Rules, own_names, readable
from federation.units import parse_origin

LOCAL = Rules(origins=frozenset({"https://chat.example", "http://box.lan:3000"}), names=own_names("Athens.lan"))
LAN = Rules(names=own_names("athens"), on_loopback=False)


def head(*lines: str, line: str = "GET / HTTP/1.1") -> bytes:
    return "\r\n".join([line, *lines, "", ""]).encode("latin-1")


def status(rules: Rules, *lines: str, line: str = "GET / HTTP/1.1") -> int:
    """200: it goes on."""
    verdict = rules.judge(head(*lines, line=line))
    assert verdict is Heard.GO_ON or isinstance(verdict, Refusal | Request)
    return verdict.status if isinstance(verdict, Refusal) else 200


# Host


OURS = [
    *("localhost", "LOCALHOST:8484", "localhost.", "a.localhost:80", "127.0.0.1", "127.1:8484", "2130706433", "0x7f.1", "0"),
    *("[::1]", "[::1]:8484", "[fe80::1%eth0]:8484", "[fe80::1%25eth0]", "192.168.1.5:8484", "127.0.0.1.", "", ":8484"),
    *("athens", "athens.lan:8484", "ATHENS.LAN.", "athens.local", "host.docker.internal:8484", "host.containers.internal"),
    *("chat.example", "chat.example:8484", "box.lan", "ollama"),  # allowed by --allow-origin; without a dot
]
FOREIGN = [
    *("rebind.evil.example", "rebind.evil.example:8484", "REBIND.evil.example.", "127.0.0.1.evil.example", "1.2.3.4.nip.io"),
    *("localhost.evil.example", "evil-localhost.example", "localhost@evil.example", "bergen.local", "xathens.lan"),
    *("evil.athens.lan", "internal.example", "chat.example.evil.example", "evil.example, localhost", "m\xfcnchen.example"),
]


@pytest.mark.parametrize("host", OURS)
def test_names_and_addresses_of_this_machine(host: str) -> None:
    assert status(LOCAL, f"Host: {host}") == 200
    assert status(LOCAL, f"Host: {host}", "Sec-Fetch-Site: none") == 200  # not by the shortest way


@pytest.mark.parametrize("host", FOREIGN)
def test_a_name_that_is_not_this_machines(host: str) -> None:
    assert status(LOCAL, f"Host: {host}") == 403
    assert status(LOCAL, f"Host: {host}", f"Origin: http://{host}") == 403  # as the browser has it, one origin
    assert status(LAN, f"Host: {host}") == 200  # there it may be its name


@pytest.mark.parametrize(
    "lines",
    [
        ["Host: localhost", "Host: evil.example"],
        ["Host: evil.example", "Host: localhost"],
        ["hOsT : evil.example"],
        ["Host:evil.example"],
        ["Host:\t evil.example\t"],
        ["Host:", " evil.example"],
        ["X: y", "\tz", "Host: evil.example"],
    ],
)
def test_however_the_host_is_written(lines: list[str]) -> None:
    assert status(LOCAL, *lines) == 403
    assert isinstance(LOCAL.judge(head(*lines).replace(b"\r\n", b"\n")), Refusal)


def test_an_absolute_target_names_the_host_too() -> None:
    for target, expected in (
        ("http://evil.example/", 403),
        ("http://127.0.0.1:8484/x", 200),
        ("HTTP://u@evil.example?", 403),
    ):
        assert status(LOCAL, "Host: localhost", line=f"GET {target} HTTP/1.1") == expected
    assert status(LOCAL, "Host: localhost", line="GET /?next=http://evil.example/ HTTP/1.1") == 200
    assert status(LOCAL, "Host: localhost", line="OPTIONS * HTTP/1.1") == 200


def test_without_a_host() -> None:
    assert status(LOCAL, line="GET / HTTP/1.0") == status(LOCAL) == 200


# Origin


PAGES = [  # rules, origin, host, expected
    (LOCAL, "http://localhost:3000", "127.0.0.1:8484", 200),
    (LOCAL, "https://localhost", "localhost:8484", 200),
    (LOCAL, "http://app.localhost:5173", "localhost:8484", 200),
    (LOCAL, "http://127.0.0.1:3000", "localhost:8484", 200),
    (LOCAL, "http://127.9.9.9", "localhost:8484", 200),
    (LOCAL, "http://[::1]:3000", "localhost:8484", 200),
    (LOCAL, "http://0.0.0.0:3000", "localhost:8484", 200),
    (LOCAL, "http://athens:3000", "localhost:8484", 200),
    (LOCAL, "http://athens.local:3000", "localhost:8484", 200),
    (LOCAL, "https://chat.example", "localhost:8484", 200),
    (LOCAL, "HTTPS://Chat.Example", "localhost:8484", 200),
    (LOCAL, "https://chat.example", "chat.example", 200),
    (LOCAL, "http://host.docker.internal:3000", "host.docker.internal:8484", 200),
    (LOCAL, "chrome-extension://abcdef", "localhost:8484", 200),
    (LOCAL, "vscode-webview://1ab2", "localhost:8484", 200),
    (LOCAL, "tauri://localhost", "localhost:8484", 200),
    (LOCAL, "app://obsidian.md", "localhost:8484", 200),
    (LOCAL, "file://", "localhost:8484", 200),
    (LOCAL, "http://chat.example", "localhost:8484", 403),  # another scheme is another origin
    (LOCAL, "https://chat.example:8443", "localhost:8484", 403),
    (LOCAL, "https://evil.example", "localhost:8484", 403),
    (LOCAL, "http://192.168.1.9:3000", "localhost:8484", 403),
    (LOCAL, "http://wiki.internal", "localhost:8484", 403),
    (LOCAL, "http://bergen", "localhost:8484", 403),
    (LOCAL, "http://localhost.evil.example", "localhost:8484", 403),
    (LOCAL, "http://localhost@evil.example", "localhost:8484", 403),
    (LOCAL, "null", "localhost:8484", 403),
    (LOCAL, "", "localhost:8484", 403),
    (LOCAL, "localhost", "localhost:8484", 403),
    (LOCAL, "http://", "", 403),
    (LOCAL, "http://localhost https://evil.example", "localhost:8484", 403),
    (LOCAL, "https://evil.example, http://localhost", "localhost:8484", 403),
    (LAN, "http://192.168.1.5:3000", "192.168.1.5:8484", 200),  # another port of the machine that was asked
    (LAN, "http://gpu.lan", "gpu.lan:8484", 200),
    (LAN, "http://localhost:3000", "gpu.lan:8484", 200),
    (LAN, "http://192.168.1.9:3000", "192.168.1.5:8484", 403),
    (LAN, "https://evil.example", "gpu.lan:8484", 403),
]


@pytest.mark.parametrize(("rules", "origin", "host", "expected"), PAGES)
def test_pages(rules: Rules, origin: str, host: str, expected: int) -> None:
    assert status(rules, f"Host: {host}", f"Origin: {origin}", line="POST / HTTP/1.1") == expected
    assert status(rules, f"Host: {host}", f"oRIGIN:{origin}", "Sec-Fetch-Site: cross-site") == expected  # the Origin decides
    assert status(rules, f"Origin: {origin}", f"Host: {host}", line="OPTIONS /v1/chat HTTP/1.1") == expected


def test_each_of_several_origins_counts() -> None:
    for origins in (["http://localhost", "https://evil.example"], ["https://evil.example", "http://localhost"]):
        assert status(LOCAL, "Host: localhost", *(f"Origin: {origin}" for origin in origins)) == 403


@pytest.mark.parametrize(("site", "expected"), [("cross-site", 403), ("Cross-Site", 403), ("same-site", 200), ("none", 200)])
def test_where_no_origin_says_more(site: str, expected: int) -> None:
    assert status(LOCAL, "Host: localhost", f"Sec-Fetch-Site: {site}") == expected
    assert status(LAN, "Host: gpu.lan", f"sec-fetch-SITE:{site}", "Sec-Fetch-Mode: navigate") == expected


def test_only_headers_of_the_head_count() -> None:
    """Not the body, not what looks like a header elsewhere."""
    body = b"POST / HTTP/1.1\r\nHost: localhost\r\nX-Origin: https://evil.example\r\n\r\nOrigin: https://evil.example\r\n"
    assert LOCAL.judge(body) is Heard.GO_ON


def test_a_refusal_says_what_would_allow_it() -> None:
    def why(*lines: str) -> str:
        verdict = LOCAL.judge(head(*lines))
        assert isinstance(verdict, Refusal)
        return verdict.why

    for said in ("https://evil.example", "null"):
        flag = re.search(r"--allow-origin (\S+)$", why("Host: localhost", f"Origin: {said}"))
        assert flag is not None
        allowed = Rules(origins=frozenset({parse_origin(flag[1])}))
        assert status(allowed, "Host: localhost", f"Origin: {said}") == 200
    flag = re.search(r"--allow-origin (\S+)$", why("Host: gpu.example:8484"))
    assert flag is not None
    assert status(Rules(origins=frozenset({parse_origin(flag[1])})), "Host: gpu.example:8484") == 200
    assert why("Host: localhost", "Sec-Fetch-Site: cross-site").endswith("--no-browser-check")
    for odd in (
        "https://\x1b[31m",
        "https://x$(touch${ifs}x)",
        "https://x;reboot",
        "https://x`x`",
        "https://x&x",
        "https://" + "a" * 200,
        "https://a b",
        "http://\xe4",
    ):
        assert why("Host: localhost", f"Origin: {odd}").endswith("--allow-origin ORIGIN")
        assert odd not in why(f"Host: {odd[8:]}.example")


# What came so far


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"G", Heard.PERHAPS),
        (b"GET", Heard.PERHAPS),
        (b"OPTIONS ", Heard.PERHAPS),
        (b"GETS", Heard.GO_ON),
        (b"hello", Heard.GO_ON),
        (b"PING", Heard.GO_ON),
        (b"PING\r\n", Heard.GO_ON),
        (b"GET key", Heard.GO_ON),
        (b"GET key\r\n", Heard.GO_ON),
        (b"GET /", Heard.MORE),
        (b"brew /pot?" + b"x" * 9000, Heard.MORE),
        (b"GET /key\r\n", Heard.GO_ON),  # HTTP/0.9 is no browser's
        (b"GET / HTT", Heard.MORE),
        (b"GET / HTTP/1.1\r", Heard.MORE),
        (b"GET / HTTP/2", Heard.GO_ON),
        (b"GET / FTP", Heard.GO_ON),
        (b"GET / HTTP/1.1\r\nHost: local", Heard.MORE),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n", Heard.MORE),
        (b"GET / HTTP/1.1\nHost: localhost\n\n", Heard.GO_ON),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Heard.GO_ON),
        (b"\x16\x03\x01\x02\x00\x01\x00", Heard.GO_ON),
        (b"*1\r\n$4\r\nPING\r\n", Heard.GO_ON),
        (b"SSH-2.0-OpenSSH_9.2\r\n", Heard.GO_ON),
        (b"EHLO /box", Heard.MORE),  # until its line ends
        (b"EHLO /box\r\n", Heard.GO_ON),
        (b"x" * 64, Heard.GO_ON),
        (b"x" * 65, Heard.PERHAPS),  # a page's own method
        (b"x" * 65 + b" /", Heard.MORE),
        (b"x" * 70_000 + b"\r\n", Heard.GO_ON),
        (b"\0" * 70_000, Heard.GO_ON),
    ],
)
def test_first_bytes(data: bytes, expected: Heard) -> None:
    assert LOCAL.judge(data) is expected


@pytest.mark.parametrize("data", [b"GET /" + b"x" * MAX_HEAD, b"GET / HTTP/1.1\r\nX: " + b"y" * MAX_HEAD, b"x" * MAX_HEAD])
def test_a_head_without_end(data: bytes) -> None:
    for is_all in (False, True):
        verdict = LOCAL.judge(data, is_all=is_all)
        assert isinstance(verdict, Refusal)
        assert verdict.status == 431
        assert LOCAL.reply(data, "").startswith(b"HTTP/1.1 431 ")
    assert not isinstance(LOCAL.judge(data[: MAX_HEAD - 1]), Refusal)


def test_a_long_head_that_is_there_is_judged() -> None:
    long = f"X: {'y' * 2 * MAX_HEAD}"
    assert status(LOCAL, long, "Host: localhost") == 200
    assert status(LOCAL, long, "Host: evil.example") == 403


def test_a_client_that_ends_in_the_middle_of_its_head() -> None:
    """Some servers take the end for the empty line."""
    assert LOCAL.judge(b"GET / HTTP/1.1\r\nHost: localhost", is_all=True) is Heard.GO_ON
    assert isinstance(LOCAL.judge(b"GET / HTTP/1.1\r\nHost: evil.example", is_all=True), Refusal)
    assert LOCAL.judge(b"GET /", is_all=True) is Heard.GO_ON


@given(st.sampled_from([*OURS, *FOREIGN]), st.sampled_from([origin for _, origin, _, _ in PAGES]), st.data())
def test_pieces_are_judged_as_the_whole_is(host: str, origin: str, data: st.DataObject) -> None:
    """Whatever was held back until the head was there: no piece of it said more."""
    whole = head(f"Host: {host}", f"Origin: {origin}")
    verdict = LOCAL.judge(whole)
    for at in sorted(data.draw(st.sets(st.integers(1, len(whole) - 1)))):
        assert LOCAL.judge(whole[:at]) in {Heard.MORE, Heard.PERHAPS}
    assert LOCAL.judge(whole + b"body") == verdict


names = st.from_regex(r"[a-z]{1,8}(\.[a-z]{2,8}){1,3}", fullmatch=True)
tokens = st.from_regex(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,20}", fullmatch=True)


@given(
    tokens, names, st.lists(st.tuples(st.from_regex(r"[A-Z][a-z-]{3,9}", fullmatch=True), st.text("ab: /\t", max_size=9)))
)
@example("GET", "evil.example", [("Host", "localhost")])
def test_whatever_a_page_puts_into_its_request(method: str, name: str, more: list[tuple[str, str]]) -> None:
    """Method, path and other headers are the page's; not what the browser writes."""
    lines = [f"{key}: {value}" for key, value in more]
    for marks in ([f"Origin: https://{name}.evil"], ["Sec-Fetch-Site: cross-site"], [f"Host: {name}.evil"]):
        mine = [line for line in lines if not line.startswith("Origin: ")]
        assert status(LOCAL, *mine, *marks, *mine, line=f"{method} /{name} HTTP/1.1") == 403


LINES = st.sampled_from(
    [
        *("Host: 127.0.0.1:8484", "host:localhost", "Host : localhost", "HOST: evil.example", "Host: [::1]:1", "Hostess: a"),
        *("Origin: null", "origin : https://evil.example", "Original: yes", "Sec-Fetch-Site: cross-site", "Sec-Fetch: a"),
        *(
            "User-Agent: curl/8.5.0",
            "User-Agent: Mozilla/5.0",
            "user-agent : a mozilla/5",
            "Accept: */*",
            " folded",
            "\tfolded",
        ),
        *(
            "Content-Length: 5",
            "Transfer-Encoding: chunked",
            "X: Host: evil.example",
            "X: a\nOrigin: null",
            "X: a\rOrigin: null",
        ),
    ]
)


@given(
    lines=st.lists(LINES, max_size=5),
    line=st.sampled_from(["GET / HTTP/1.1", "get /a HTTP/1.0", "GET http://evil.example/ HTTP/1.1"]),
    end=st.sampled_from(["\r\n", "\n"]),
)
def test_a_plain_head_has_nothing_to_judge(lines: list[str], line: str, end: str) -> None:
    """The short way through `judge` is taken only by what the long way lets pass."""
    for host in ("Host: 127.0.0.1:8484", "host:localhost", "Host: rebind.evil.example"):
        data = end.join([line, host, *lines, "", "hello"]).encode()
        for rules in (LOCAL, LAN):
            if _PLAIN[rules.on_loopback].match(data):
                assert rules._judge(data, is_all=False) is Heard.GO_ON


def test_what_curl_writes_is_plain() -> None:
    data = head(
        "Host: localhost:8484", "User-Agent: curl/8.5.0", "Accept: */*", "Content-Length: 5", line="POST /v1/x HTTP/1.1"
    )
    assert _PLAIN[True].match(data + b"Hello")
    assert _PLAIN[False].match(data.replace(b"localhost", b"box.lan"))
    assert not _PLAIN[True].match(data.replace(b"localhost", b"box.lan"))


@given(st.binary(max_size=300) | st.text("GETPOST /HTTP1.\r\n:ahostrigin", max_size=300).map(str.encode), st.booleans())
def test_any_bytes(data: bytes, is_all: bool) -> None:
    verdict = LOCAL.judge(data, is_all=is_all)
    assert not is_all or verdict is Heard.GO_ON or isinstance(verdict, Refusal | Request)
    LOCAL.reply(data, "no")


# Where a browser's next request begins


@pytest.mark.parametrize(
    ("lines", "body"),
    [
        (["Sec-Fetch-Site: same-origin"], 0),
        (["Origin: http://localhost", "Content-Length: 12"], 12),
        (["User-Agent: Mozilla/5.0 (X11; Linux x86_64)", "content-length:7"], 7),
        (["user-agent: Mozilla/5.0", "Content-Length: 7", "Content-Length: 7"], 7),
    ],
)
def test_a_browsers_request_ends(lines: list[str], body: int) -> None:
    data = head("Host: localhost", *lines, line="POST / HTTP/1.1")
    assert LOCAL.judge(data) == LOCAL.judge(data + b"x" * body) == Request(len(data) + body)


@pytest.mark.parametrize(
    "lines",
    [
        ["User-Agent: curl/8.5.0", "Content-Length: 12"],
        ["Referer: http://mozilla/5"],
        ["Origin: http://localhost", "Transfer-Encoding: chunked"],
        ["Origin: http://localhost", "Connection: Upgrade", "Upgrade: websocket"],
        ["Origin: http://localhost", "Content-Length: -1"],
        ["Origin: http://localhost", "Content-Length: " + "9" * 5000],
    ],
)
def test_others_requests_are_not_followed(lines: list[str]) -> None:
    assert LOCAL.judge(head("Host: localhost", *lines)) is Heard.GO_ON


# Turned away


def test_what_a_client_reads_that_nobody_can_serve() -> None:
    top, _, body = LOCAL.reply(head("Host: localhost"), "no peer").partition(b"\r\n\r\n")
    assert top.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"Retry-After: 5" in top.split(b"\r\n")
    assert f"Content-Length: {len(body)}".encode() in top.split(b"\r\n")
    assert b"Access-Control" not in top
    assert json.loads(body)["error"] == {"message": "federation: no peer", "type": "service_unavailable", "code": 503}
    assert LOCAL.reply(head("Host: localhost", line="HEAD / HTTP/1.1"), "no peer") == top + b"\r\n\r\n"
    assert LOCAL.reply(b"EHLO box\r\n", "no peer") == b""


def test_what_a_page_reads_that_may_ask() -> None:
    lines = ["Host: localhost", "Origin: https://chat.example"]
    top = LOCAL.reply(head(*lines), "no peer").partition(b"\r\n\r\n")[0].split(b"\r\n")
    cors = {
        b"Access-Control-Allow-Origin: https://chat.example",
        b"Vary: Origin",
        b"Access-Control-Expose-Headers: Retry-After",
    }
    assert cors < set(top)
    asks = ["Access-Control-Request-Method: PUT", "Access-Control-Request-Headers: content-type,x-a"]
    preflight = LOCAL.reply(head(*lines, *asks, line="OPTIONS / HTTP/1.1"), "no peer").split(b"\r\n")
    assert preflight[0] == b"HTTP/1.1 204 No Content"
    assert {b"Access-Control-Allow-Methods: PUT", b"Access-Control-Allow-Headers: content-type,x-a"} < set(preflight)


def test_what_a_page_reads_that_may_not() -> None:
    for line in ("GET / HTTP/1.1", "OPTIONS / HTTP/1.1"):
        asks = ["Host: localhost", "Origin: https://evil.example", "Access-Control-Request-Method: PUT"]
        top, _, body = LOCAL.reply(head(*asks, line=line), "no peer").partition(b"\r\n\r\n")
        assert top.startswith(b"HTTP/1.1 403 Forbidden\r\n")
        assert b"Access-Control" not in top
        assert b"--allow-origin https://evil.example" in body
        assert json.loads(body)["error"]["code"] == 403


def test_where_everybody_may_ask() -> None:
    rules = Rules(is_on=False)
    assert b"Allow-Origin: https://evil.example" in rules.reply(head("Origin: https://evil.example"), "no peer")


def test_own_names() -> None:
    assert own_names("Athens.example.com.") == {"athens.example.com", "athens", "athens.local"}
    assert own_names("") == set()


# Pages that may read an answer


@pytest.mark.parametrize(
    ("origin", "rules", "may_read"),
    [
        ("https://chat.example", Rules(frozenset({"https://chat.example"})), True),
        ("https://CHAT.example", Rules(frozenset({"https://chat.example"})), True),
        ("http://localhost:3000", Rules(), True),
        ("http://127.0.0.1:1", Rules(), True),
        ("https://evil.example", Rules(), False),
        ("null", Rules(), False),
        ("null", Rules(frozenset({"null"})), True),
        ("chrome-extension://abc", Rules(), False),  # may ask, and a backend decides what it reads
        ("chrome-extension://abc", Rules(frozenset({"chrome-extension://abc"})), True),
        ("https://any.example", Rules(frozenset({"*"}), is_on=False), True),
        ("http://localhost:3000", Rules(is_on=False), False),  # --no-browser-check: the backends' affair
        ("http://a\\b", Rules(frozenset({"*"}), is_on=False), False),
    ],
)
def test_which_pages_may_read_an_answer(origin: str, rules: Rules, may_read: bool) -> None:
    head = f"GET / HTTP/1.1\r\nHost: localhost\r\nOrigin: {origin}\r\n\r\n".encode()
    assert rules.readable_by(head) == (origin.lower() if may_read else "")


def test_two_origins_are_nobodys() -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\nOrigin: http://localhost\r\nOrigin: http://localhost\r\n\r\n"
    assert Rules().readable_by(head) == ""
    assert readable("") == b""
