"""What is kept of a client's bytes, without any I/O."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from federation.forward.replay_buffer import ReplayBuffer


def taken(buffer: ReplayBuffer, room: int = 1 << 30) -> bytes:
    return bytes(buffer.take(room))


def test_the_transcript_of_its_head() -> None:
    buffer = ReplayBuffer()
    buffer.add(b"one ")
    buffer.add(b"two ")
    buffer.rewind()
    assert taken(buffer, 6) == b"one tw"  # small chunks are one
    assert buffer.pending == 2
    buffer.rewind()
    assert taken(buffer) == b"one two "
    assert not buffer.pending
    buffer.rewind()
    buffer.commit()
    assert not buffer
    assert taken(buffer) == b"one two "
    buffer.rewind()
    assert taken(buffer) == b""


def test_nothing_is_pending_once_the_upstream_is_gone() -> None:
    buffer = ReplayBuffer()
    buffer.add(b"one")
    buffer.rewind()
    buffer.interrupt()
    assert not buffer.pending
    assert buffer
    assert buffer.whole() == b"one"


def test_the_next_request_starts_at_nothing() -> None:
    buffer = ReplayBuffer()
    buffer.add(b"one")
    buffer.clear()
    assert (buffer.size, buffer.whole()) == (0, b"")
    buffer.add(b"two")
    assert (buffer.size, buffer.whole()) == (3, b"two")


class AnyUse(RuleBasedStateMachine):
    """A client sends, upstreams come and go: each has had the beginning of what was sent, in order and once."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = ReplayBuffer()
        self.sent = b""
        self.had: bytes | None = None  # by the present upstream

    @rule(chunk=st.binary(max_size=20))
    def send(self, chunk: bytes) -> None:
        if self.buffer.pending:
            return  # the client is not read
        self.sent += chunk
        self.buffer.add(chunk)
        if self.had is not None:
            self.had += chunk  # straight on

    @rule()
    def connect(self) -> None:
        self.buffer.rewind()
        self.had = b""

    @rule(room=st.integers(1, 30))
    def flush(self, room: int) -> None:
        if self.had is not None:
            chunk = taken(self.buffer, room)
            assert len(chunk) <= room
            self.had += chunk

    @rule()
    def fail(self) -> None:
        self.buffer.interrupt()
        self.had = None

    @rule()
    def judge(self) -> None:
        assert self.buffer.whole() == self.sent

    @invariant()
    def the_upstream_has_the_beginning_and_the_rest_is_pending(self) -> None:
        assert self.buffer.size == len(self.sent)
        if self.had is not None:
            assert self.had == self.sent[: len(self.sent) - self.buffer.pending]


TestAnyUse = AnyUse.TestCase
