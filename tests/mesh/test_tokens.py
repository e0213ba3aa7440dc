"""The token as text, its bounds, and what is derived from it.

The format and the derivation are pinned by values and by an independent implementation: a change to either would
split running networks.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import string
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.errors import TokenChecksumWrong, TokenError, TokenMalformed, TokenTooNew
from federation.mesh.tokens import MAX_ADDRESS_CHARS, MAX_ADDRESSES, MAX_NAME_CHARS, Token

SECRET = bytes(range(32))
ADDRESS = "/ip4/192.0.2.1/tcp/4484/p2p/12D3KooWA"
TOKEN = Token(SECRET, "lab", (ADDRESS,))
TEXT = "fed1_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh9sYWIKL2lwNC8xOTIuMC4yLjEvdGNwLzQ0ODQvcDJwLzEyRDNLb29XQWVPZZQ"
ALPHABET = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"  # in base64url's order

names = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=MAX_NAME_CHARS)
addresses = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=60)
tokens = st.builds(
    Token,
    st.binary(min_size=32, max_size=32),
    names,
    st.lists(addresses, max_size=MAX_ADDRESSES).map(tuple),
)


def sealed(payload: bytes, version: int = 1) -> str:
    """A token's text with the right checksum, whatever the payload."""
    prefix = f"fed{version}_"
    checksum = hashlib.sha256(prefix.encode() + payload).digest()[:4]
    return prefix + base64.urlsafe_b64encode(payload + checksum).decode().rstrip("=")


# Text


def test_the_format_is_pinned() -> None:
    assert TOKEN.encode() == TEXT
    assert Token.decode(TEXT) == TOKEN
    assert sealed(SECRET + b"lab\n" + ADDRESS.encode()) == TEXT


@given(tokens)
def test_round_trip(token: Token) -> None:
    assert Token.decode(token.encode()) == token


@given(tokens)
def test_text_is_url_safe(token: Token) -> None:
    assert set(token.encode()) <= set(ALPHABET)


def test_largest_token_round_trips() -> None:
    token = Token(SECRET, "\N{GRINNING FACE}" * MAX_NAME_CHARS, ("x" * MAX_ADDRESS_CHARS,) * MAX_ADDRESSES)
    assert Token.decode(token.encode()) == token


@pytest.mark.parametrize("text", [f"  {TEXT}\n", f"{TEXT[:40]}\n{TEXT[40:]}", f"{TEXT[:40]}\r\n    {TEXT[40:]}\r\n"])
def test_a_wrapped_line_is_read(text: str) -> None:
    assert Token.decode(text) == TOKEN


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "hello",
        "fed",
        "fed1",
        "fed1_",
        "fed0_" + TEXT[5:],
        "fed01_" + TEXT[5:],
        "fed\N{FULLWIDTH DIGIT ONE}_" + TEXT[5:],
        "FED1_" + TEXT[5:],
        "fed1-" + TEXT[5:],
        TEXT[5:],
        "x" + TEXT,
        TEXT + "=",
        TEXT + "!",
        TEXT.replace("A", "\N{LATIN SMALL LETTER E WITH ACUTE}", 1),
        "--token " + TEXT,
        "fed99999_" + TEXT[5:],
    ],
)
def test_malformed(text: str) -> None:
    with pytest.raises(TokenMalformed):
        Token.decode(text)


@pytest.mark.parametrize("text", ["fed4_" + TEXT[5:], "fed10_x", "fed9999_with.an+other=alphabet"])
def test_newer_version(text: str) -> None:
    with pytest.raises(TokenTooNew):
        Token.decode(text)


@given(st.integers(5, len(TEXT) - 1), st.sampled_from(ALPHABET))
def test_one_wrong_character_is_damage(position: int, character: str) -> None:
    damaged = TEXT[:position] + character + TEXT[position + 1 :]
    if damaged != TEXT:
        with pytest.raises(TokenChecksumWrong):
            Token.decode(damaged)


@pytest.mark.parametrize("length", range(6, len(TEXT)))
def test_cut_short_is_damage(length: int) -> None:
    with pytest.raises(TokenChecksumWrong):
        Token.decode(TEXT[:length])


def test_a_token_has_one_spelling() -> None:
    """Two bits of this text's last character are unused; base64 reads the same bytes whatever they are."""
    text = Token(SECRET, "xx").encode()
    twin = text[:-1] + ALPHABET[ALPHABET.index(text[-1]) + 1]
    assert base64.urlsafe_b64decode(twin[5:] + "=") == base64.urlsafe_b64decode(text[5:] + "=")
    with pytest.raises(TokenChecksumWrong):
        Token.decode(twin)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        SECRET[:31],
        SECRET + b"\xff",
        SECRET + b"\x1b[2J",
        SECRET + b"x" * (MAX_NAME_CHARS + 1),
        SECRET + b"lab\n",
        SECRET + b"lab\n\n/ip4/192.0.2.1/tcp/1",
        SECRET + b"lab\n/ip4/192.0.2.1 /tcp/1",
        SECRET + b"lab\n" + b"x" * (MAX_ADDRESS_CHARS + 1),
        SECRET + b"lab" + b"\n/ip4/192.0.2.1/tcp/1" * (MAX_ADDRESSES + 1),
    ],
)
def test_right_checksum_does_not_excuse_the_payload(payload: bytes) -> None:
    with pytest.raises(TokenMalformed):
        Token.decode(sealed(payload))


@given(st.binary(max_size=120))
def test_any_payload_is_read_or_refused(payload: bytes) -> None:
    try:
        token = Token.decode(sealed(payload))
    except TokenMalformed:
        return
    assert token.encode() == sealed(payload)


@given(st.text(max_size=80) | st.text(ALPHABET, max_size=80).map("fed1_".__add__))
def test_any_text_is_refused_by_our_errors(text: str) -> None:
    with pytest.raises((TokenMalformed, TokenChecksumWrong, TokenTooNew)):
        Token.decode(text)


# Bounds


def test_bounds_are_inclusive() -> None:
    token = Token.new("n" * 64, ["a" * 256] * 32)
    assert Token.decode(token.encode()) == token


@pytest.mark.parametrize("name", ["n" * 65, "two\nlines", "\x1b[2J", "\x9b2J", "tab\t", "\u2028", "\u2029", "\ud800"])
def test_bad_name(name: str) -> None:
    with pytest.raises(TokenError, match="name"):
        Token.new(name)


@pytest.mark.parametrize("address", ["", "a" * 257, "/dns4/a b/tcp/1", "/dns4/a\n/tcp/1", "/dns4/\N{SNOWMAN}/tcp/1"])
def test_bad_address(address: str) -> None:
    with pytest.raises(TokenError, match="address"):
        Token.new(addresses=[ADDRESS, address])
    with pytest.raises(TokenError, match="address"):
        TOKEN.with_addresses([ADDRESS, address])


def test_too_many_addresses() -> None:
    with pytest.raises(TokenError, match="at most 32 addresses"):
        TOKEN.with_addresses([ADDRESS] * 33)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_bad_secret(size: int) -> None:
    with pytest.raises(TokenError, match="32 bytes"):
        Token(b"x" * size)


# Making tokens


def test_new_networks_differ() -> None:
    one, two = Token.new("lab"), Token.new("lab")
    assert len(one.secret) == 32
    assert one.secret != two.secret
    assert one.network_id != two.network_id


def test_with_addresses_replaces_them_and_keeps_the_rest() -> None:
    other = TOKEN.with_addresses(address for address in ["/dns4/box.example/tcp/4484"])
    assert other == Token(SECRET, "lab", ("/dns4/box.example/tcp/4484",))
    assert TOKEN.addresses == (ADDRESS,)


def test_immutable() -> None:
    with pytest.raises(FrozenInstanceError):
        TOKEN.secret = bytes(32)  # type: ignore[misc]


# Derived values


def hkdf_sha256(secret: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 with an empty salt, for up to one block."""
    pseudorandom_key = hmac.digest(bytes(32), secret, "sha256")
    return hmac.digest(pseudorandom_key, info + b"\x01", "sha256")[:length]


def derived(token: Token) -> dict[str, str]:
    return {
        "network id": token.network_id,
        "admission": token.admission_key().hex(),
        "topic": token.topic().removeprefix("/federation/1/records/"),
        "ledger": token.ledger_protocol().removeprefix("/federation/1/ledger/"),
        "rendezvous": token.rendezvous(),
    }


SIZES = {"network id": 8, "admission": 32, "topic": 16, "ledger": 16, "rendezvous": 16}


@pytest.mark.parametrize(("label", "size"), SIZES.items())
def test_each_use_has_its_own_label(label: str, size: int) -> None:
    assert derived(TOKEN)[label] == hkdf_sha256(SECRET, f"federation/1 {label}".encode(), size).hex()


def test_the_network_id_is_pinned() -> None:
    assert TOKEN.network_id == "bbe6d7d774323ba9"


def test_no_derived_value_reveals_another() -> None:
    starts = {value[:16] for value in derived(TOKEN).values()}
    assert len(starts) == len(SIZES)
    assert SECRET.hex()[:16] not in starts


def test_only_the_secret_makes_the_network() -> None:
    assert derived(replace(TOKEN, name="other", addresses=())) == derived(TOKEN)
    others = derived(replace(TOKEN, secret=bytes(32)))
    assert not set(others.values()) & set(derived(TOKEN).values())


# Rotation


def test_a_rotated_token_names_the_same_network_and_admits_by_another_key() -> None:
    once = TOKEN.rotated()
    twice = once.rotated()
    for token, rotations in ((once, 1), (twice, 2)):
        assert Token.decode(token.encode()) == token
        assert token.encode().startswith("fed2_")
        assert token.rotations == rotations
        assert (token.name, token.addresses) == (TOKEN.name, TOKEN.addresses)
        for label in ("network id", "topic", "ledger"):
            assert derived(token)[label] == derived(TOKEN)[label]
        assert token.rotation_protocol() == TOKEN.rotation_protocol()
    for label in ("admission", "rendezvous"):
        assert len({derived(token)[label] for token in (TOKEN, once, twice)}) == 3
    assert len({token.secret for token in (TOKEN, once, twice)}) == 3


def test_the_format_of_a_rotated_token_is_pinned() -> None:
    names = bytes.fromhex("".join(derived(TOKEN)[label] for label in ("network id", "topic", "ledger")))
    token = Token(b"n" * 32, "lab", (ADDRESS,), 258, origin=names)
    assert token.encode() == sealed(b"n" * 32 + b"\x00\x00\x01\x02" + names + b"lab\n" + ADDRESS.encode(), 2)


def test_which_of_two_tokens_is_the_newer() -> None:
    once = TOKEN.rotated()
    other = TOKEN.rotated()
    assert once.supersedes(TOKEN)
    assert not TOKEN.supersedes(once)
    assert not once.supersedes(replace(once, name="other", addresses=()))
    assert once.rotated().supersedes(once)
    assert once.rotated().supersedes(other)
    assert once.supersedes(other) != other.supersedes(once)  # two at once: everybody takes the same one
    assert not Token.new().rotated().supersedes(TOKEN)  # another network's


@pytest.mark.parametrize(
    "payload",
    [SECRET, SECRET + bytes(4) + bytes(40), SECRET + bytes(3) + b"\x01" + bytes(39), SECRET + b"lab"],
    ids=["nothing", "never rotated", "names cut short", "as if not rotated"],
)
def test_a_rotated_token_without_its_parts_is_none(payload: bytes) -> None:
    with pytest.raises(TokenMalformed):
        Token.decode(sealed(payload, 2))


@pytest.mark.parametrize(("rotations", "names"), [(0, bytes(40)), (1, b""), (1, bytes(39)), (-1, b""), (2**32, bytes(40))])
def test_names_go_with_rotations(rotations: int, names: bytes) -> None:
    with pytest.raises(TokenError, match=r"names|rotated"):
        Token(SECRET, rotations=rotations, origin=names)


# With an owner

OWNER = bytes(range(100, 132))
OWNED = replace(TOKEN, owner=OWNER)
NUMBER = bytes(4)


def owned_parts(secret: bytes, owner: bytes) -> dict[str, str]:
    """Derived anew from what tokens.py says."""

    def hkdf(key: bytes, label: str, length: int, salt: bytes = bytes(32)) -> bytes:
        pseudorandom = hmac.digest(salt, key, "sha256")
        first = hmac.digest(pseudorandom, f"federation/1 {label}".encode() + b"\x01", "sha256")
        second = hmac.digest(pseudorandom, first + f"federation/1 {label}".encode() + b"\x02", "sha256")
        return (first + second)[:length]

    names = hkdf(hkdf(secret, "root", 16), "names", 40, owner)
    return {
        "network id": names[:8].hex(),
        "topic": names[8:24].hex(),
        "ledger": names[24:].hex(),
        "admission": hkdf(secret, "admission", 32, names).hex(),
        "rendezvous": hkdf(secret, "rendezvous", 16, names).hex(),
    }


def test_the_format_with_an_owner_is_pinned() -> None:
    text = b"lab\n" + ADDRESS.encode()
    assert OWNED.encode() == sealed(SECRET + OWNER + NUMBER + text, 3)
    assert Token.decode(OWNED.encode()) == OWNED
    assert derived(OWNED) == owned_parts(SECRET, OWNER)
    root = bytes.fromhex("00" * 16)
    rotated = Token(b"n" * 32, "lab", (ADDRESS,), 258, OWNER, root)
    assert rotated.encode() == sealed(b"n" * 32 + OWNER + b"\x00\x00\x01\x02" + root + text, 3)
    assert Token.decode(rotated.encode()) == rotated


def test_a_rotated_token_keeps_the_networks_names_and_its_owner() -> None:
    once = OWNED.rotated()
    twice = once.rotated(b"t" * 32, 7)
    assert (once.rotations, twice.rotations, twice.secret) == (1, 7, b"t" * 32)
    for token in (once, twice):
        assert Token.decode(token.encode()) == token
        assert token.names_the_network_of(OWNED)
        assert token.supersedes(OWNED)
        assert (token.owner, token.topic()) == (OWNER, OWNED.topic())
        assert token.rotation_protocol() == OWNED.rotation_protocol()
    assert len({token.admission_key() for token in (OWNED, once, twice)}) == 3


@pytest.mark.parametrize("token", [OWNED, OWNED.rotated()], ids=["first", "rotated"])
def test_with_another_owner_or_none_it_is_another_network(token: Token) -> None:
    """Whoever holds the secret may write what it likes into a token; it then names and admits to something else."""
    exchanged = replace(token, owner=bytes(32))
    without = Token(token.secret, token.name)
    renamed = Token(token.secret, token.name, rotations=1, origin=token.names)
    for other in (exchanged, without, renamed):
        assert not other.names_the_network_of(token)
        assert not token.is_same_network(other.encode())
        assert not other.rotated().supersedes(token)
        assert other.admission_key() != token.admission_key()
    for label, value in derived(exchanged).items():
        assert value != derived(token)[label]


@given(tokens, st.binary(min_size=32, max_size=32), st.integers(0, 3))
def test_round_trip_with_an_owner(token: Token, owner: bytes, rotations: int) -> None:
    token = replace(token, owner=owner)
    for _ in range(rotations):
        token = token.rotated()
    assert Token.decode(token.encode()) == token
    assert token.encode().startswith("fed3_")


@given(st.binary(max_size=160), st.sampled_from([2, 3]))
def test_any_payload_of_the_later_formats_is_read_or_refused(payload: bytes, version: int) -> None:
    try:
        token = Token.decode(sealed(payload, version))
    except TokenMalformed:
        return
    assert token.encode() == sealed(payload, version)


@pytest.mark.parametrize(
    "payload",
    [SECRET, SECRET + OWNER, SECRET + OWNER + bytes(3), SECRET + OWNER[:31], SECRET + OWNER + b"\0\0\0\1" + bytes(15)],
    ids=["no owner", "no number", "half a number", "half an owner", "half a root"],
)
def test_an_owned_token_without_its_parts_is_none(payload: bytes) -> None:
    with pytest.raises(TokenMalformed):
        Token.decode(sealed(payload, 3))


@pytest.mark.parametrize(
    "fields", [{"owner": bytes(31)}, {"owner": OWNER, "origin": bytes(16)}, {"owner": OWNER, "rotations": 1}]
)
def test_an_owners_parts_go_together(fields: dict[str, bytes | int]) -> None:
    with pytest.raises(TokenError):
        Token(SECRET, **fields)  # type: ignore[arg-type]


# The secret stays inside


def test_repr_hides_the_secret() -> None:
    token = Token(b"S" * 32, "lab")
    for shown in (repr(token), str(token), f"{token}"):
        assert "lab" in shown
        assert "SSSS" not in shown
        assert token.encode()[5:40] not in shown


@pytest.mark.parametrize(
    "text", [TEXT[:-1], TEXT + "!", "fed2_" + TEXT[5:], TEXT[5:], sealed(SECRET + b"\x1b"), sealed(SECRET + b"\xff")]
)
def test_errors_do_not_repeat_the_token(text: str) -> None:
    with pytest.raises(TokenError) as caught:
        Token.decode(text)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert TEXT[5:15] not in str(caught.value)


def test_same_network_whatever_name_and_addresses() -> None:
    token = Token.decode(TEXT)
    assert token.is_same_network(token.rotated().encode())
    assert token.rotated().is_same_network(TEXT)
    assert token.is_same_network(Token(token.secret, "another name", ("/ip4/192.0.2.7/tcp/1",)).encode())
    assert not token.is_same_network(Token.new(token.name, token.addresses).encode())
    assert not token.is_same_network("")


def test_import_is_light() -> None:
    """`federation token` has to answer at once."""
    heavy = {"pydantic", "pydantic_core", "msgpack", "trio", "libp2p", "multiaddr", "structlog", "typer", "rich"}
    code = f"import sys, federation.mesh.tokens; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
