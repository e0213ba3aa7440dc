"""The handshake with the token's proof. Memory streams and a clock that jumps: no real waiting."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.io.exceptions import IOException
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.patterns import PatternXX

from federation.errors import (
    AnotherPeer,
    BannedByPeer,
    HandshakeFailed,
    PeerBanned,
    ProtocolViolation,
    TokenOutdated,
    TokenRefused,
    TokenRetired,
)
from federation.net.link.handshake import (
    AES_PROTOCOL_ID,
    HANDSHAKE_TIMEOUT_S,
    MAX_PROOFS,
    PROTOCOL_ID,
    REFUSED,
    SecureConn,
    TokenNoise,
    protocols,
)
from federation.net.link.seal import MAX_PLAINTEXT, TAG, Sealer, Unsealer
from tests.support.links import secure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

TOKEN, OTHER = b"t" * 32, b"o" * 32
KEY = b"k" * 32
IDENTITIES = [create_new_key_pair(bytes([n]) * 32) for n in (1, 2, 3)]
PEERS = [ID.from_pubkey(pair.public_key) for pair in IDENTITIES]


def transport(n: int, *keys: bytes) -> TokenNoise:
    return TokenNoise(IDENTITIES[n], lambda: keys or (TOKEN,))


@dataclass
class Tap(trio.abc.Stream):
    """A stream that records what was sent on it, and may change it on the way."""

    inner: trio.abc.Stream
    sent: list[bytes] = field(default_factory=list)
    change: Callable[[int, bytes], bytes] = lambda _n, data: data

    async def send_all(self, data: Any) -> None:
        self.sent.append(bytes(data))
        await self.inner.send_all(self.change(len(self.sent), bytes(data)))

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return bytes(await self.inner.receive_some(max_bytes))

    async def wait_send_all_might_not_block(self) -> None:
        await self.inner.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self.inner.aclose()


def taps() -> tuple[Tap, Tap]:
    a, b = trio.testing.memory_stream_pair()
    return Tap(a), Tap(b)


def raw(stream: Any, *, initiator: bool = False) -> RawConnection:
    return RawConnection(TrioTCPStream(stream), initiator)


@dataclass
class Outcome:
    conn: SecureConn | None = None
    error: BaseException | None = None
    took: float = 0.0


async def _settle(outcome: Outcome, shake: Callable[..., Any], stream: Any, *args: Any) -> None:
    started = trio.current_time()
    try:
        outcome.conn = await shake(raw(stream, initiator=bool(args)), *args)
    except HandshakeFailed as error:  # anything else ends the test
        outcome.error = error
        await stream.aclose()  # as the host does
    outcome.took = trio.current_time() - started


async def shake(
    a: TokenNoise, b: TokenNoise, streams: tuple[Any, Any] | None = None, *, expect: ID | None = None
) -> tuple[Outcome, Outcome]:
    """What `a`, who dialled, and `b` make of each other."""
    streams = streams or trio.testing.lockstep_stream_pair()
    outcomes = Outcome(), Outcome()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_settle, outcomes[0], a.secure_outbound, streams[0], expect)
        nursery.start_soon(_settle, outcomes[1], b.secure_inbound, streams[1])
    return outcomes


def both(outcomes: tuple[Outcome, Outcome]) -> tuple[SecureConn, SecureConn]:
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert outcomes[0].conn is not None
    assert outcomes[1].conn is not None
    return outcomes[0].conn, outcomes[1].conn


# The same token


async def test_with_the_same_token_both_sides_know_each_other_and_talk(autojump_clock: object) -> None:
    a, b = both(await shake(transport(0), transport(1), expect=PEERS[1]))
    assert a.get_remote_peer() == b.get_local_peer() == PEERS[1]
    assert b.get_remote_peer() == a.get_local_peer() == PEERS[0]
    assert a.is_initiator
    assert not b.is_initiator
    async with trio.open_nursery() as nursery:
        for here, there in ((a, b), (b, a)):
            nursery.start_soon(here.write, b"hello")
            assert await there.read() == b"hello"


async def test_whoever_answers_will_do_where_no_peer_is_expected(autojump_clock: object) -> None:
    a, _ = both(await shake(transport(0), transport(2), expect=None))
    assert a.get_remote_peer() == PEERS[2]


async def test_another_peer_than_the_expected_one_is_no_connection(autojump_clock: object) -> None:
    a, b = await shake(transport(0), transport(2), expect=PEERS[1])
    for outcome in (a, b):
        assert isinstance(outcome.error, HandshakeFailed)
        assert not isinstance(outcome.error, TokenRefused)
    assert isinstance(a.error, AnotherPeer)


async def test_bytes_after_the_handshake_are_split_into_records_and_read_in_parts(autojump_clock: object) -> None:
    a, b = both(await shake(transport(0), transport(1), taps()))
    data = bytes(n % 253 for n in range(2 * MAX_PLAINTEXT + 5))
    await a.write(data)
    got = [await b.read(10), await b.read(MAX_PLAINTEXT), await b.read(), await b.read()]
    assert [len(part) for part in got] == [10, MAX_PLAINTEXT - 10, MAX_PLAINTEXT, 5]
    assert b"".join(got) == data


async def test_the_end_of_the_connection_is_an_error_to_who_reads(autojump_clock: object) -> None:
    a, b = both(await shake(transport(0), transport(1), taps()))
    await a.write(b"last")
    await a.close()
    assert await b.read() == b"last"
    with pytest.raises(IOException):
        await b.read()


async def test_what_came_behind_the_proof_is_not_lost(autojump_clock: object) -> None:
    """The responder's proof and its first words in one read: the muxer's negotiation starts with them."""
    a, b = both(await shake(transport(0), transport(1), taps()))
    for word in (b"one", b"two", b"three"):
        await b.write(word)
    await a.read_records()
    assert list(a.pending) == [b"one", b"two", b"three"]
    assert a.unsealer.rest == b""


# Several keys: a token being changed


@pytest.mark.parametrize(
    ("ours", "theirs", "admitted"),
    [
        ([TOKEN], [OTHER, TOKEN], True),  # who answers still takes the old one
        ([OTHER, TOKEN], [OTHER], True),
        ([TOKEN, OTHER], [OTHER], True),  # who dials proves with each
        ([KEY, TOKEN], [OTHER, KEY], True),
        ([OTHER], [TOKEN], False),
    ],
)
async def test_one_key_that_both_hold_admits(
    autojump_clock: object, ours: Sequence[bytes], theirs: Sequence[bytes], admitted: bool
) -> None:
    a, b = await shake(transport(0, *ours), transport(1, *theirs))
    assert (a.error is None) == admitted
    assert (b.error is None) == admitted


async def test_the_keys_are_asked_for_at_each_handshake(autojump_clock: object) -> None:
    valid = [OTHER]
    changing = TokenNoise(IDENTITIES[1], lambda: tuple(valid))
    assert (await shake(transport(0), changing))[0].error is not None
    valid[:] = [TOKEN]
    both(await shake(transport(0), changing))


async def test_both_know_with_which_key_and_it_is_the_responders_first(autojump_clock: object) -> None:
    for conn in both(await shake(transport(0, TOKEN, OTHER), transport(1, KEY, OTHER, TOKEN))):
        assert conn.admission_key == OTHER


async def test_so_many_keys_are_offered_and_no_more(autojump_clock: object) -> None:
    keys = [bytes([n]) * 32 for n in range(MAX_PROOFS + 1)]
    both(await shake(transport(0, *keys), transport(1, keys[MAX_PROOFS - 1])))
    assert (await shake(transport(0, *keys), transport(1, keys[MAX_PROOFS])))[0].error is not None


# A token that was rotated, a peer that is banned


def rotated(n: int, *keys: bytes, retired: Sequence[bytes] = (), banned: Sequence[ID] = ()) -> TokenNoise:
    return TokenNoise(
        IDENTITIES[n],
        lambda: keys or (TOKEN,),
        retired_keys=lambda: retired,
        is_banned=lambda peer: peer in map(str, banned),
    )


async def test_who_missed_a_rotation_is_told_whoever_dialled(autojump_clock: object) -> None:
    old, new = transport(0, OTHER), rotated(1, TOKEN, retired=[KEY, OTHER])
    a, b = await shake(old, new)
    assert (type(a.error), type(b.error)) == (TokenRetired, TokenOutdated)
    b, a = await shake(new, old)
    assert type(a.error) is TokenRetired
    assert type(b.error) is TokenRefused  # it offers what it retired as such: nobody is admitted by it


async def test_a_key_of_which_one_side_says_that_it_is_retired_does_not_keep_out_who_has_the_new_one(
    autojump_clock: object,
) -> None:
    both(await shake(rotated(0, TOKEN, retired=[OTHER]), transport(1, OTHER, TOKEN)))


async def test_only_who_held_the_token_can_say_that_it_is_retired(autojump_clock: object) -> None:
    """A stranger sends back what it heard, and makes things up."""
    async with Stranger().meet(rotated(0, retired=[OTHER]), dials=False) as (conn, outcome):
        await conn.write((await conn.read())[32:])
    assert type(outcome.error) is TokenRefused
    async with Stranger().meet(rotated(0, retired=[OTHER]), dials=True) as (conn, outcome):
        await conn.write(b"retired".ljust(64))
        assert await conn.read(32) == REFUSED
    assert type(outcome.error) is TokenRefused


async def test_a_banned_peer_is_refused_whoever_dials(autojump_clock: object) -> None:
    a, b = await shake(transport(0), rotated(1, banned=[PEERS[0]]))
    assert (type(a.error), type(b.error)) == (BannedByPeer, PeerBanned)
    a, b = await shake(rotated(0, banned=[PEERS[1]]), transport(1))
    assert type(a.error) is PeerBanned
    assert isinstance(b.error, HandshakeFailed)
    both(await shake(transport(0), rotated(1, banned=[PEERS[2]])))


async def test_a_stranger_does_not_learn_who_is_banned(autojump_clock: object) -> None:
    a, b = await shake(transport(0, OTHER), rotated(1, banned=[PEERS[0]]))
    assert (type(a.error), type(b.error)) == (TokenRefused, TokenRefused)


# Another token


async def test_another_token_is_told_to_both_and_named_as_what_it_is(autojump_clock: object) -> None:
    a, b = await shake(transport(0), transport(1, OTHER))
    assert isinstance(a.error, TokenRefused)
    assert isinstance(b.error, TokenRefused)
    assert a.error.detail == f"peer {PEERS[1]}"
    assert b.error.detail == f"peer {PEERS[0]}"
    assert a.took == b.took == 0


async def test_the_responder_shows_no_proof_to_who_has_none(autojump_clock: object) -> None:
    """Only a refusal, the same for everybody: nothing to try tokens against."""
    streams = taps()
    await shake(transport(0), transport(1, OTHER), streams)
    assert len(streams[1].sent) == 2  # its handshake message, and the refusal
    assert len(streams[1].sent[1]) == 2 + 32 + TAG


async def test_no_secret_is_in_what_is_raised_or_sent(autojump_clock: object) -> None:
    streams = taps()
    a, b = await shake(transport(0), transport(1, OTHER), streams)
    for text in (str(a.error), repr(a.error), str(b.error), repr(b.error)):
        assert "tttt" not in text
        assert "oooo" not in text
    for stream in streams:
        assert not any(TOKEN in sent or OTHER in sent for sent in stream.sent)


# Somebody in the middle, without a token


class Stranger:
    """Speaks Noise as itself, without a token; says as its proof what it is told to."""

    def __init__(self, n: int = 2) -> None:
        self._pattern = PatternXX(PEERS[n], IDENTITIES[n].private_key, create_new_x25519_key_pair().private_key)

    @asynccontextmanager
    async def meet(self, member: TokenNoise, *, dials: bool) -> AsyncIterator[tuple[SecureConn, Outcome]]:
        """The stranger's sealed connection to a member, before any proof; and how the member's handshake ends."""
        ours, theirs = trio.testing.memory_stream_pair()
        outcome = Outcome()
        async with trio.open_nursery() as nursery:
            if dials:
                nursery.start_soon(_settle, outcome, member.secure_inbound, theirs)
                session: Any = await self._pattern.handshake_outbound(raw(ours), None)
            else:
                nursery.start_soon(_settle, outcome, member.secure_outbound, theirs, None)
                session = await self._pattern.handshake_inbound(raw(ours))
            noise = session.conn.noise_state.noise_protocol
            yield (
                SecureConn(
                    raw(ours),
                    session,
                    Sealer(noise.cipher_state_encrypt.k, noise.cipher_state_encrypt.n),
                    Unsealer(noise.cipher_state_decrypt.k, noise.cipher_state_decrypt.n),
                ),
                outcome,
            )


async def test_a_proof_heard_in_one_session_is_worth_nothing_in_another(autojump_clock: object) -> None:
    stranger = Stranger()
    async with stranger.meet(transport(0), dials=False) as (conn, outcome):
        proof = await conn.read(32)
        await conn.close()
    assert isinstance(outcome.error, HandshakeFailed)
    async with stranger.meet(transport(1), dials=True) as (conn, outcome):
        await conn.write(proof)
        assert await conn.read(32) == REFUSED
    assert isinstance(outcome.error, TokenRefused)


async def test_a_proof_passed_on_while_its_session_lasts_is_worth_nothing(autojump_clock: object) -> None:
    """The stranger stands between two members, and hands each the other's proof."""
    stranger = Stranger()
    async with (
        stranger.meet(transport(0), dials=False) as (to_a, a),
        stranger.meet(transport(1), dials=True) as (to_b, b),
    ):
        await to_b.write(await to_a.read(32))
        await to_a.write(await to_b.read(32))
    assert isinstance(a.error, TokenRefused)
    assert isinstance(b.error, TokenRefused)


async def test_a_member_s_own_proof_sent_back_to_it_is_refused(autojump_clock: object) -> None:
    """The proofs of the two roles differ."""
    async with Stranger().meet(transport(0), dials=False) as (conn, outcome):
        await conn.write(await conn.read(32))
    assert isinstance(outcome.error, TokenRefused)


@pytest.mark.parametrize("dials", [True, False], ids=["dials", "answers"])
@pytest.mark.parametrize("proof", [REFUSED, b"\xff" * 32, bytes(31) + b"\x01", b"/multistream/1.0.0\n" * 2], ids=repr)
async def test_no_made_up_proof_is_admitted(autojump_clock: object, dials: bool, proof: bytes) -> None:
    async with Stranger().meet(transport(0), dials=dials) as (conn, outcome):
        await conn.write(proof)
    assert isinstance(outcome.error, TokenRefused)


@pytest.mark.parametrize("dials", [True, False], ids=["dials", "answers"])
async def test_a_stranger_who_shows_no_proof_is_let_go_in_time(autojump_clock: object, dials: bool) -> None:
    """A stock libp2p host: it waits for us, or hangs up, or goes on in its own words."""
    async with Stranger().meet(transport(0), dials=dials) as (_, outcome):
        pass
    assert isinstance(outcome.error, HandshakeFailed)
    assert not isinstance(outcome.error, TokenRefused)
    assert outcome.took == pytest.approx(HANDSHAKE_TIMEOUT_S)
    async with Stranger().meet(transport(0), dials=dials) as (conn, outcome):
        await conn.close()
    assert isinstance(outcome.error, HandshakeFailed)
    assert outcome.took == 0


@pytest.mark.parametrize("dials", [True, False], ids=["dials", "answers"])
async def test_a_proof_in_pieces_is_waited_for_but_not_for_ever(autojump_clock: object, dials: bool) -> None:
    async with Stranger().meet(transport(0), dials=dials) as (conn, outcome):
        with suppress(IOException):  # the member hangs up
            for _ in range(31):
                await trio.sleep(1)
                await conn.write(b"x")
    assert isinstance(outcome.error, HandshakeFailed)
    assert outcome.took == pytest.approx(HANDSHAKE_TIMEOUT_S)


# What a broken line or a stranger who does not speak it may do


def handshake_transcript() -> tuple[list[bytes], list[bytes]]:
    """What the two sides of a good handshake send."""

    async def run() -> tuple[list[bytes], list[bytes]]:
        streams = taps()
        both(await shake(transport(0), transport(1), streams))
        return streams[0].sent, streams[1].sent

    return trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


INITIATOR, RESPONDER = handshake_transcript()


def hear(said: bytes, *, dials: bool, then: str = "eof") -> Outcome:
    """How the handshake of a member ends to whom somebody says `said` and then hangs up or goes silent."""

    async def run() -> Outcome:
        ours, theirs = trio.testing.memory_stream_pair()
        outcome = Outcome()
        await ours.send_all(said)
        if then == "eof":
            await ours.send_eof()
        member = transport(0)
        if dials:
            await _settle(outcome, member.secure_outbound, theirs, None)
        else:
            await _settle(outcome, member.secure_inbound, theirs)
        return outcome

    return trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


def test_the_transcript_is_what_the_docstring_says() -> None:
    """Three messages of Noise XX, then one sealed proof each."""
    assert [len(sent) for sent in INITIATOR][0::2] == [2 + 32, 2 + 32 + TAG]
    assert len(INITIATOR) == 3
    assert len(RESPONDER) == 2
    assert len(RESPONDER[1]) == 2 + 32 + TAG


@given(st.binary(max_size=200), st.booleans(), st.sampled_from(["eof", "silence"]))
def test_garbage_is_a_failed_handshake_in_time(said: bytes, dials: bool, then: str) -> None:
    outcome = hear(said, dials=dials, then=then)
    assert isinstance(outcome.error, HandshakeFailed)
    assert outcome.took <= HANDSHAKE_TIMEOUT_S + 0.001


@given(st.binary(max_size=200), st.integers(0, 200))
def test_garbage_of_the_announced_length_is_a_failed_handshake(said: bytes, announced: int) -> None:
    for dials in (True, False):
        outcome = hear(len(said).to_bytes(2, "big") + said, dials=dials)
        assert isinstance(outcome.error, HandshakeFailed)
        outcome = hear(announced.to_bytes(2, "big") + said, dials=dials)
        assert isinstance(outcome.error, HandshakeFailed)


def test_a_message_of_every_length_is_a_failed_handshake() -> None:
    """Also those that are shorter than the key they should hold."""
    for dials, first in ((True, RESPONDER[0][2:]), (False, INITIATOR[0][2:])):
        for n in range(len(first)):
            outcome = hear(n.to_bytes(2, "big") + first[:n], dials=dials)
            assert isinstance(outcome.error, HandshakeFailed), n


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31), b"\xff" * 32], ids=["zero", "one", "ones"])
def test_weak_ephemeral_keys_are_a_failed_handshake(point: bytes) -> None:
    assert isinstance(hear(b"\x00\x20" + point, dials=False).error, HandshakeFailed)
    assert isinstance(hear(b"\x00\xa0" + point + bytes(128), dials=True).error, HandshakeFailed)


@pytest.mark.parametrize("dials", [True, False], ids=["dials", "answers"])
def test_a_recorded_handshake_played_again_fails(dials: bool) -> None:
    """All that one side had said, said again in one go to the other: its own keys are new."""
    said = b"".join(RESPONDER if dials else INITIATOR)
    outcome = hear(said, dials=dials)
    assert isinstance(outcome.error, HandshakeFailed)
    assert outcome.took == 0


@pytest.mark.parametrize("dials", [True, False], ids=["dials", "answers"])
def test_silence_is_a_failed_handshake_in_time(dials: bool) -> None:
    outcome = hear(b"", dials=dials, then="silence")
    assert isinstance(outcome.error, HandshakeFailed)
    assert outcome.took == pytest.approx(HANDSHAKE_TIMEOUT_S)
    assert f"{HANDSHAKE_TIMEOUT_S:g} s" in str(outcome.error)


async def test_the_line_may_break_anywhere(autojump_clock: object) -> None:
    """Each message cut at some byte, the rest never comes: both hear of it at once."""
    for side, messages in enumerate((INITIATOR, RESPONDER)):
        for number, message in enumerate(messages, 1):
            for cut in {0, 1, 2, 3, len(message) // 2, len(message) - 1}:
                streams = taps()

                def change(n: int, data: bytes, *, number: int = number, cut: int = cut) -> bytes:
                    return data[:cut] if n == number else data

                streams[side].change = change
                outcomes = Outcome(), Outcome()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_settle, outcomes[0], transport(0).secure_outbound, streams[0], None)
                    nursery.start_soon(_settle, outcomes[1], transport(1).secure_inbound, streams[1])
                deaf = outcomes[1 - side]
                assert isinstance(deaf.error, HandshakeFailed), (side, number, cut)
                assert deaf.took <= HANDSHAKE_TIMEOUT_S + 0.001


async def test_any_flipped_bit_of_the_handshake_is_found(autojump_clock: object) -> None:
    """By one side at least; the other may have finished before the flipped message went out."""
    for side, messages in enumerate((INITIATOR, RESPONDER)):
        for number, message in enumerate(messages, 1):
            for at in {2, 20, 33, len(message) // 2, len(message) - 1} - set(range(len(message), 64)):
                streams = taps()

                def change(n: int, data: bytes, *, number: int = number, at: int = at) -> bytes:
                    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] if n == number else data

                streams[side].change = change
                outcomes = await shake(transport(0), transport(1), streams)
                assert isinstance(outcomes[1 - side].error, HandshakeFailed), (side, number, at)


async def test_a_cancelled_handshake_is_cancelled(autojump_clock: object) -> None:
    _, silent = trio.testing.memory_stream_pair()
    with trio.move_on_after(1) as scope:
        await transport(0).secure_inbound(raw(silent))
    assert scope.cancelled_caught


# Records


@pytest.mark.parametrize("aes_is_fast", [True, False])
def test_aes_is_offered_first_where_it_is_fast_and_else_not_at_all(
    monkeypatch: pytest.MonkeyPatch, aes_is_fast: bool
) -> None:
    monkeypatch.setattr(
        "federation.net.link.handshake._seconds", lambda aead: 1.0 if (aead is AESGCM) == aes_is_fast else 5.0
    )
    spoken = list(protocols().items())
    assert spoken[-1] == (PROTOCOL_ID, ChaCha20Poly1305)
    assert spoken[:-1] == ([(AES_PROTOCOL_ID, AESGCM)] if aes_is_fast else [])


async def test_no_record_with_nothing_in_it_is_ever_sent(autojump_clock: object) -> None:
    """Nor by versions before: they have the same writers (the mux's records are tested in test_mux.py)."""
    outcomes = await shake(transport(0), transport(1), taps())
    ours, _ = both(outcomes)
    before = ours.sealer._n
    await ours.write(b"")
    assert ours.sealer._n == before


async def test_a_forged_record_raises_where_it_is_read(autojump_clock: object) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    conn = secure(raw(theirs), initiator=True)
    await ours.send_all(b"\x00\x20" + bytes(32))
    with pytest.raises(ProtocolViolation):
        await conn.read()
