"""What a channel sends, grants and holds: credit, the growth of windows, who goes first, and room; no loop, no socket."""

from __future__ import annotations

import pytest

from federation.errors import ProtocolViolation
from federation.net.link.channel import (
    CHANNEL_BUFFER,
    CONNECTION_BUFFER,
    GROWTH_BUDGET,
    INITIAL_WINDOW,
    LIGHT_BYTES,
    LIGHT_ROOM,
    MAX_WINDOW,
    Channel,
)
from federation.net.link.frames import (
    CREDIT,
    DATA,
    FIN,
    HEADER_BYTES,
    MAX_PAYLOAD,
    OPEN,
    RST,
    STREAM,
)
from federation.net.link.mux import (
    QUANTUM,
)
from federation.net.link.seal import MAX_PLAINTEXT
from tests.support.frames import credit, frame, frames
from tests.support.mux_sides import Side, granted, pair, pour, pump

KB = 1024


# Credit


def test_a_side_sends_no_more_than_was_granted_and_hears_when_more_is() -> None:
    a = Side()
    channel, end = a.opened()
    sent = 0
    while room := channel.writable():
        channel.send(bytes(room))
        sent += room
        a.records()
    assert sent == INITIAL_WINDOW
    a.mux.feed(frame(CREDIT, channel.id, credit(10)))
    assert end.heard == ["resume_writing"]
    assert channel.writable() == 10
    a.mux.feed(frame(CREDIT, channel.id, credit(10)))
    assert end.heard == ["resume_writing"]  # once for each time that it was told to wait
    assert channel.writable() == 20


def test_who_receives_grants_again_in_halves_of_the_window_what_left_its_buffers() -> None:
    b = Side(initiator=False, takes=False)
    b.mux.feed(frame(OPEN, 1))
    channel = b.tunnels[0][0]
    b.said()
    for n in (40 * KB, 24 * KB):
        b.mux.feed(frame(DATA, 1, bytes(n)))
    assert b.said() == []  # it lies here
    channel.acknowledge(INITIAL_WINDOW // 2 - 1)
    assert b.said() == []
    channel.acknowledge(1)
    assert b.said() == [("CREDIT", 1, credit(INITIAL_WINDOW // 2))]
    assert channel.granted == INITIAL_WINDOW // 2


def test_data_that_was_not_granted_is_a_violation() -> None:
    b = Side(initiator=False, takes=False)
    b.mux.feed(frame(OPEN, 1))
    b.mux.feed(frame(DATA, 1, bytes(MAX_PAYLOAD)))
    b.mux.feed(frame(DATA, 1, bytes(INITIAL_WINDOW - MAX_PAYLOAD)))  # the last byte of it
    with pytest.raises(ProtocolViolation, match="granted"):
        b.mux.feed(frame(DATA, 1, b"x"))
    assert len(b.tunnels[0][0].other.data) == INITIAL_WINDOW


def test_empty_data_is_a_violation() -> None:
    """It costs no credit, so that a reader that waits would pile it up without a bound; and b"" read is EOF to many."""
    b = Side(initiator=False, takes=False)
    b.mux.feed(frame(OPEN, 1))
    with pytest.raises(ProtocolViolation):
        b.mux.feed(frame(DATA, 1))
    assert b.tunnels[0][0].other.heard == []


def test_empty_data_is_never_sent() -> None:
    a = Side()
    channel, _ = a.opened()
    channel.send(b"")
    assert a.said() == []


def test_a_slow_reader_stops_its_own_sender_only() -> None:
    a, b = pair(takes=False)
    slow, _ = a.open()
    fast, _ = a.open()
    pump(a, b)
    b.tunnels[1][0].other.credit = True
    assert pour(slow, bytes(1_000_000)) == INITIAL_WINDOW
    pump(a, b)
    assert slow.writable() == 0
    left = 1_000_000
    while left:
        went = pour(fast, bytes(left))
        assert went
        left -= went
        pump(a, b)
    assert len(b.tunnels[1][0].other.data) == 1_000_000


def test_more_credit_than_a_window_holds_is_a_violation() -> None:
    a = Side()
    channel, _ = a.opened()
    a.mux.feed(frame(CREDIT, channel.id, credit(2 * MAX_WINDOW - INITIAL_WINDOW)))
    with pytest.raises(ProtocolViolation, match="CREDIT"):
        a.mux.feed(frame(CREDIT, channel.id, credit(1)))


def test_what_is_queued_is_paid_for() -> None:
    """Credit is spent when bytes are queued: a remote cannot tell queued ones from sent ones, and must not be overdrawn."""
    a = Side()
    channel, _ = a.opened()
    pour(channel, bytes(INITIAL_WINDOW))
    assert channel.credit == 0
    a.mux.feed(frame(CREDIT, channel.id, credit(100)))
    assert channel.writable() == 100


def test_no_credit_is_wasted_on_who_has_finished() -> None:
    b = Side(initiator=False, takes=False)
    b.mux.feed(frame(OPEN, 1) + frame(DATA, 1, bytes(INITIAL_WINDOW // 2)) + frame(FIN, 1))
    b.said()
    b.tunnels[0][0].acknowledge(INITIAL_WINDOW // 2)
    assert b.said() == []


# Window growth


def _stream_in(b: Side, channel: Channel, total: int, *, chunk: int) -> None:
    """The remote sends `total` bytes in frames of `chunk` and stays within what it was granted."""
    while total:
        n = min(chunk, total, channel.granted)
        assert n, "out of credit although the reader takes all"
        b.mux.feed(frame(DATA, channel.id, bytes(n)))
        total -= n


@pytest.mark.parametrize("chunk", [1000, QUANTUM, MAX_PAYLOAD], ids=["small", "quantum", "large"])
def test_the_window_of_a_reader_that_keeps_up_grows_to_the_most(chunk: int) -> None:
    b = Side(initiator=False)
    b.mux.feed(frame(OPEN, 1))
    channel = b.tunnels[0][0]
    _stream_in(b, channel, INITIAL_WINDOW // 2 - 1, chunk=1000)
    assert channel.window == INITIAL_WINDOW  # a small exchange grows nothing
    _stream_in(b, channel, 4 * MAX_WINDOW, chunk=chunk)
    assert channel.window == MAX_WINDOW
    assert b.mux.window_growth == MAX_WINDOW - INITIAL_WINDOW
    b.check()


def test_the_window_of_a_reader_that_lags_does_not_grow() -> None:
    """It always holds what it was sent but for the half that it has just taken."""
    b = Side(initiator=False, takes=False)
    b.mux.feed(frame(OPEN, 1))
    channel = b.tunnels[0][0]
    for _ in range(100):
        while n := min(channel.granted, MAX_PAYLOAD):
            b.mux.feed(frame(DATA, 1, bytes(n)))
        channel.acknowledge(INITIAL_WINDOW // 2)
    assert channel.window == INITIAL_WINDOW


def test_growth_is_credit_that_the_remote_gets_and_may_use() -> None:
    a, b = pair()
    ours, _ = a.open()
    pump(a, b)
    for _ in range(20):
        pour(ours, bytes(CHANNEL_BUFFER))
        pump(a, b)
    theirs = b.tunnels[0][0]
    assert theirs.window == MAX_WINDOW
    assert ours.credit == theirs.granted == MAX_WINDOW - theirs.unacknowledged > MAX_WINDOW // 2


def test_growth_ends_with_the_connections_budget_and_comes_back_with_the_channels() -> None:
    b = Side(initiator=False)
    each = MAX_WINDOW - INITIAL_WINDOW
    many = GROWTH_BUDGET // each + 4  # after those that fit whole, two get what is left of it
    for n in range(many):
        b.mux.feed(frame(OPEN, 2 * n + 1))
        _stream_in(b, b.tunnels[n][0], 4 * MAX_WINDOW, chunk=QUANTUM)
        b.records()
        b.check()
    windows = [channel.window for channel, _ in b.tunnels]
    assert windows[: many - 4] == [MAX_WINDOW] * (many - 4)
    assert windows[-1] == INITIAL_WINDOW
    assert GROWTH_BUDGET - INITIAL_WINDOW < b.mux.window_growth <= GROWTH_BUDGET
    for channel, _ in b.tunnels[:-1]:
        channel.abort("done")
    assert b.mux.window_growth == 0
    _stream_in(b, b.tunnels[-1][0], 4 * MAX_WINDOW, chunk=QUANTUM)
    assert b.tunnels[-1][0].window == MAX_WINDOW


# Light and bulk channels


def _busy(downloads: int) -> tuple[Side, Channel, list[Channel]]:
    """A side with downloads under way, whose sources fill all room that there is; and one more channel."""
    a = Side()
    ((one, _),) = granted(a, 1)
    busy = granted(a, downloads)
    for channel, end in busy:
        end.resume_writing = lambda channel=channel: pour(channel, bytes(MAX_WINDOW))  # type: ignore[method-assign]
        pour(channel, bytes(MAX_WINDOW))
    for _ in range(100):
        a.mux.next_record()
    assert a.mux.out_size >= CONNECTION_BUFFER // 2
    return a, one, [channel for channel, _ in busy]


def test_a_new_stream_beside_two_hundred_downloads_goes_with_the_next_record() -> None:
    """It waited until the room of all had been emptied and filled 25 times: 16 MB, for 0.3 to 0.5 s."""
    a, token, _ = _busy(200)
    assert token.writable()
    token.send(b"token")
    record = a.mux.next_record()
    assert record is not None
    assert frames(record)[0] == ("DATA", token.id, b"token")


def test_a_light_channel_stays_before_the_bulk_ones_for_as_long_as_it_sends_little() -> None:
    a, token, downloads = _busy(20)
    for number in range(500):
        if number % 25 == 0:  # of 100 tokens a second
            a.mux.tick()
        assert token.writable() >= 200, number
        token.send(bytes(200))
        record = a.mux.next_record()
        assert record is not None
        assert frames(record)[0][:2] == ("DATA", token.id), number
        for channel in downloads:
            channel.credit = MAX_WINDOW  # their readers keep up


def test_a_bulk_channel_gains_nothing_by_running_empty_between_its_turns() -> None:
    """One that sends just a turn's worth again and again is soon behind the others, and gets its share."""
    a, greedy, others = _busy(10)
    sent = dict.fromkeys([greedy.id, *(channel.id for channel in others)], 0)
    for _ in range(200):
        if not greedy.out_size and greedy.writable() >= QUANTUM:
            greedy.send(bytes(QUANTUM))
        record = a.mux.next_record()
        assert record is not None
        for kind, channel_id, payload in frames(record):
            if kind == "DATA":
                sent[channel_id] += len(payload)
        for channel in (greedy, *others):
            channel.credit = MAX_WINDOW  # their readers keep up
    assert sent[greedy.id] <= LIGHT_BYTES + 2 * max(sent[channel.id] for channel in others)


# Budgets


def test_a_channel_holds_no_more_than_its_buffer_and_resumes_its_source() -> None:
    a = Side()
    ((channel, end),) = granted(a, 1)
    assert pour(channel, bytes(MAX_WINDOW)) == CHANNEL_BUFFER
    assert channel.writable() == 0
    a.mux.next_record()
    assert end.heard == ["resume_writing"]
    assert channel.writable() == MAX_PLAINTEXT - HEADER_BYTES


def test_all_channels_together_hold_no_more_than_the_connections_buffer() -> None:
    a = Side()
    channels = granted(a, 40)
    for channel, _ in channels:
        pour(channel, bytes(CHANNEL_BUFFER))
    most = CONNECTION_BUFFER + CHANNEL_BUFFER + len(channels) * LIGHT_ROOM
    assert CONNECTION_BUFFER <= a.mux.out_size < most
    waiting = [end for channel, end in channels if channel.waiting]
    assert len(waiting) >= 30
    records = 0
    while a.mux.out_size >= CONNECTION_BUFFER // 2:
        a.mux.next_record()
        records += 1
        assert records < 20
    a.records()
    assert all("resume_writing" in end.heard for end in waiting)


def test_crowded_channels_all_get_through() -> None:
    """Forty sources that want to send a megabyte each, over a link that takes a record at a time."""
    a, b = pair()
    channels = [a.open() for _ in range(40)]
    pump(a, b)
    total, sent = 1_000_000, dict.fromkeys(range(40), 0)

    def push() -> None:
        for n, (channel, _) in enumerate(channels):
            sent[n] += pour(channel, bytes(total - sent[n]))

    push()
    while (record := a.mux.next_record()) is not None:
        b.mux.feed(record)
        for answer in b.records():
            a.mux.feed(answer)
        for n, (channel, end) in enumerate(channels):
            if "resume_writing" in end.heard:
                end.heard.clear()
                sent[n] += pour(channel, bytes(total - sent[n]))
    assert set(sent.values()) == {total}
    assert {len(channel.other.data) for channel, _ in b.tunnels} == {total}


def test_the_crowd_goes_on_when_those_who_crowded_are_reset() -> None:
    """Nothing is left to send then: no record goes out that would wake them."""
    a = Side()
    full = granted(a, CONNECTION_BUFFER // CHANNEL_BUFFER)
    ((waits, end),) = granted(a, 1)
    for channel, _ in full:
        pour(channel, bytes(CHANNEL_BUFFER))
    assert pour(waits, bytes(CHANNEL_BUFFER)) == LIGHT_ROOM
    for channel, _ in full:
        a.mux.feed(frame(RST, channel.id))
    assert a.mux.out_size == LIGHT_ROOM
    a.records()
    assert end.heard == ["resume_writing"]
    assert waits.writable() == CHANNEL_BUFFER


def test_nothing_piles_up_while_the_remote_grants_and_does_not_read() -> None:
    """CREDIT of a byte wakes a source that is told to wait again: it stands in the queue once, however often."""
    a = Side()
    full = granted(a, CONNECTION_BUFFER // CHANNEL_BUFFER)
    ((waits, _),) = granted(a, 1)
    for channel, _ in full:
        pour(channel, bytes(CHANNEL_BUFFER))
    pour(waits, bytes(LIGHT_ROOM))
    for _ in range(1000):
        assert waits.writable() == 0
        a.mux.feed(frame(CREDIT, waits.id, credit(1)))
    assert len(a.mux.starved) == 1


def test_nothing_piles_up_while_the_remote_opens_and_resets_and_does_not_read() -> None:
    b = Side(initiator=False, takes=False)
    full = granted(b, CONNECTION_BUFFER // CHANNEL_BUFFER)
    for channel, _ in full:
        pour(channel, bytes(CHANNEL_BUFFER - 100))
    for n in range(5000):
        b.mux.tick()  # slowly
        b.mux.feed(frame(STREAM, 2 * n + 1))
        channel = b.streams.pop()
        pour(channel, b"/multistream/1.0.0\n")
        assert channel.writable() >= 0
        b.mux.feed(frame(RST, channel.id))
    assert len(b.mux.light_queue) + len(b.mux.send_queue) + len(b.mux.starved) < 200
    assert sum(len(p) for _, _, p in b.said()) == len(full) * (CHANNEL_BUFFER - 100)  # nobody lost a turn
    b.check()
