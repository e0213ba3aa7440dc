"""The frame rules of the mux, one transcript each; no loop, no socket."""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from federation.errors import PeerUnavailable, ProtocolViolation
from federation.net.link.channel import (
    INITIAL_WINDOW,
    MAX_WINDOW,
    TELLING_COSTS,
    Channel,
)
from federation.net.link.frames import (
    ANY_LOAD,
    BUSIER,
    CREDIT,
    DATA,
    FIN,
    FIRST_OPTIONAL,
    FULL,
    HEADER,
    HEADER_BYTES,
    KEEP,
    LOAD,
    LOOK,
    MAX_PAYLOAD,
    MAX_REASON,
    OPEN,
    OPENED,
    PING,
    PONG,
    REFUSED,
    REQUEST,
    RST,
    STREAM,
    WATCH,
)
from federation.net.link.mux import (
    ABUSE_BUDGET,
    ABUSE_REFILL,
    LEAST_CREDIT,
    MAX_CHANNELS,
    MAX_CONTROL,
    MAX_STREAMS,
    QUANTUM,
    STRAY_COSTS,
    STREAM_COSTS,
    Load,
)
from federation.net.link.seal import MAX_PLAINTEXT
from tests.support.duplex import End
from tests.support.frames import credit, frame, frames, load
from tests.support.mux_sides import Side, keeping_pair, loaded_pair, pair, pour, pump

KB = 1024


# Opening


def test_open_goes_before_the_first_bytes_and_both_in_one_record() -> None:
    a = Side()
    channel, _ = a.open("chat")
    channel.send(b"hello")
    (record,) = a.records()
    assert frames(record) == [("OPEN", 1, b"chat"), ("DATA", 1, b"hello")]


def test_the_dialler_opens_odd_channels_the_other_even_ones_each_upwards() -> None:
    a, b = pair()
    assert [a.open()[0].id, a.mux.open_stream().id, a.open()[0].id] == [1, 3, 5]
    assert [b.open()[0].id, b.mux.open_stream().id, b.open()[0].id] == [2, 4, 6]
    pump(a, b)  # at once, and nobody objects
    assert [c.id for c, _ in b.tunnels] == [1, 5]
    assert [c.id for c, _ in a.tunnels] == [2, 6]
    assert [c.id for c in a.streams + b.streams] == [4, 3]


def test_a_tunnel_from_open_to_the_end() -> None:
    a, b = pair()
    ours, end = a.open()
    ours.send(b"request")
    ours.send_eof()
    assert pump(a, b) == [
        ("a", "OPEN", 1, b"default"),
        ("a", "DATA", 1, b"request"),
        ("a", "FIN", 1, b""),
        ("b", "OPENED", 1, b""),
    ]
    (theirs, service), far = b.tunnels[0], b.tunnels[0][0].other
    assert service == "default"
    assert far.heard == [b"request", "EOF"]
    assert end.heard == ["OPENED"]
    theirs.send(b"reply")
    theirs.send_eof()
    assert pump(a, b) == [("b", "DATA", 1, b"reply"), ("b", "FIN", 1, b"")]
    assert end.heard == ["OPENED", b"reply", "EOF"]
    assert ours.closed
    assert theirs.closed
    for side in (a, b):
        assert not side.mux.channels
        assert side.mux.tunnels == 0


def test_a_refusal_reaches_the_opener_alone_and_ends_the_channel_on_both_sides() -> None:
    a, b = pair(accepts=False)
    ours, end = a.open()
    ours.send(b"early")
    pump(a, b)
    b.tunnels[0][0].refuse("backend down")
    assert pump(a, b) == [("b", "REFUSED", 1, b"backend down")]
    assert end.heard == ["REFUSED backend down"]  # and no abort beside it
    assert ours.closed
    assert not a.mux.channels
    assert not b.mux.channels
    ours.send(b"late")
    ours.send_eof()
    ours.abort("late")
    assert pump(a, b) == []


def test_bytes_that_cross_a_refusal_are_dropped_silently() -> None:
    a, b = pair(accepts=False)
    ours, end = a.open()
    pump(a, b)
    ours.send(b"on the way")
    ours.send_eof()
    b.tunnels[0][0].refuse("no")
    assert pump(a, b)
    assert end.heard == ["REFUSED no"]
    assert b.tunnels[0][0].other.heard == []


def test_an_answer_to_a_tunnel_given_up_is_ignored() -> None:
    for answer in (OPENED, REFUSED, BUSIER):
        a = Side(load=Load())
        ours, end = a.open()
        ours.abort("too slow")
        assert a.said() == [("OPEN", 1, credit(ANY_LOAD) + b"default"), ("RST", 1, b"too slow")]
        a.mux.feed(frame(answer, 1))
        assert end.heard == []


def test_a_stream_is_not_a_tunnel() -> None:
    a, b = pair()
    ours = a.mux.open_stream()
    ours.other = End()
    assert pump(a, b) == [("a", "STREAM", 1, b"")]
    assert b.streams[0].id == 1
    assert a.mux.tunnels == b.mux.tunnels == 0
    b.open()
    pump(a, b)
    assert a.mux.tunnels == b.mux.tunnels == 1


def test_an_open_for_which_there_is_no_channel_left_is_refused_and_costs_the_others_nothing() -> None:
    b = Side(initiator=False, accepts=False)
    b.mux.feed(b"".join(frame(OPEN, 2 * n + 1) for n in range(MAX_CHANNELS + 1)))
    last = 2 * MAX_CHANNELS + 1
    assert b.said() == [("REFUSED", last, b"too many at once")]
    assert len(b.tunnels) == len(b.mux.channels) == MAX_CHANNELS
    b.mux.feed(frame(DATA, last, b"x") + frame(DATA, 1, b"y"))  # the refused one's early bytes
    assert b.tunnels[0][0].other.data == b"y"
    b.tunnels[7][0].refuse("done")
    b.mux.feed(frame(OPEN, last + 2))
    assert len(b.tunnels) == MAX_CHANNELS + 1
    b.check()


def test_what_comes_for_a_channel_that_is_gone_costs_little_of_the_abuse_budget() -> None:
    """It was on its way when we closed it: a crowd of clients that leaves is none the worse for it."""
    b = Side(initiator=False)
    for n in range(2 * ABUSE_BUDGET):
        b.mux.feed(frame(OPEN, 2 * n + 1))
        b.tunnels.pop()[0].abort("the backend is gone")
        b.mux.feed(frame(DATA, 2 * n + 1, b"x") + frame(CREDIT, 2 * n + 1, credit(INITIAL_WINDOW)) + frame(FIN, 2 * n + 1))
        b.mux.next_record()


def test_credit_for_nothing_is_a_violation() -> None:
    """Nobody of ours ever granted less than half a window."""
    a = Side()
    channel, end = a.opened()
    with pytest.raises(ProtocolViolation, match="nothing"):
        a.mux.feed(frame(CREDIT, channel.id, credit(0)))
    assert end.heard == []


def test_what_we_grant_is_never_little() -> None:
    b = Side(initiator=False, takes=False)
    b.mux.feed(frame(OPEN, 1))
    channel = b.tunnels[0][0]
    for _ in range(1000):
        b.mux.feed(frame(DATA, 1, bytes(100)))
        channel.acknowledge(100)
    grants = [struct.unpack(">I", payload)[0] for kind, _, payload in b.said() if kind == "CREDIT"]
    assert grants
    assert min(grants) >= INITIAL_WINDOW // 2 >= LEAST_CREDIT


def test_an_answer_to_our_ping_costs_the_peer_nothing() -> None:
    a = Side()
    for _ in range(2 * ABUSE_BUDGET):
        a.mux.ping(bytes(8))
        a.mux.next_record()
        a.mux.feed(frame(PONG, 0, bytes(8)))
    assert a.mux._abuse_left == ABUSE_BUDGET


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 100_000)), max_size=30), st.integers(1, 4))
def test_what_we_send_is_never_in_more_frames_than_it_needs(writes: list[tuple[int, int]], records: int) -> None:
    """Whatever is queued, in whatever order, and taken out in between."""
    a, b = Side(), Side(initiator=False)
    channels = [a.opened()[0] for _ in range(5)]
    for channel in channels:
        b.mux.feed(frame(OPEN, channel.id))
    a.records()
    for which, size in writes:
        channel = channels[which]
        if n := min(size, channel.writable()):
            channel.send(bytes(n))
        for record in a.records()[:records] if size % 2 else []:
            b.mux.feed(record)
    for record in a.records():
        b.mux.feed(record)
    assert b.mux._abuse_left == ABUSE_BUDGET


def test_bytes_in_more_frames_than_they_need_are_priced() -> None:
    b = Side(initiator=False)
    b.mux.feed(frame(OPEN, 1))
    channel = b.tunnels[0][0]
    crumbs = frame(DATA, 1, b"x") * 1001
    for n in range(1, ABUSE_BUDGET // 1000 + 1):
        b.mux.feed(crumbs)
        channel.acknowledge(1001)
        b.mux.next_record()
        assert b.mux._abuse_left == ABUSE_BUDGET - n * 1000
    with pytest.raises(ProtocolViolation, match="floods"):
        b.mux.feed(crumbs)


LAVISH = {
    "pongs": (lambda n: frame(PONG, 0, bytes(8)), 1.0),
    "grants of a byte": (lambda n: frame(CREDIT, 1, credit(1)), 1.0),
    "frames for what is gone": (lambda n: frame(FIN, 3), STRAY_COSTS),
}


@pytest.mark.parametrize(("flood", "price"), LAVISH.values(), ids=list(LAVISH))
def test_what_costs_us_more_than_the_peer_is_priced(flood: Any, price: float) -> None:
    a = Side()
    a.opened()
    a.opened()[0].abort("gone")
    allowed = int(ABUSE_BUDGET / price)
    for n in range(allowed):
        a.mux.feed(flood(n))
        a.mux.next_record()
    with pytest.raises(ProtocolViolation, match="floods"):
        a.mux.feed(flood(allowed))


FLOODS = {
    "opens taken back": lambda n: frame(OPEN, 2 * n + 1) + frame(RST, 2 * n + 1),
    "pings": lambda n: frame(PING, 0, bytes(8)),
    "streams": lambda n: frame(STREAM, 2 * n + 1) + frame(RST, 2 * n + 1),
    "opens that are refused": lambda n: frame(OPEN, 2 * n + 1, b"no such service"),
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=list(FLOODS))
def test_a_flood_costs_the_flooder_its_connection(flood: Any) -> None:
    b = Side(initiator=False, accepts=False)
    allowed = ABUSE_BUDGET // STREAM_COSTS if flood is FLOODS["streams"] else ABUSE_BUDGET

    def feed(n: int) -> None:
        b.mux.feed(flood(n))
        if b.tunnels and not b.tunnels[-1][0].closed:
            b.tunnels.pop()[0].refuse("not here")
        b.mux.next_record()

    for n in range(allowed):
        feed(n)
    with pytest.raises(ProtocolViolation, match="floods"):
        for n in range(allowed, allowed + 3):
            feed(n)


def test_the_abuse_budget_comes_back_with_time_and_use_costs_none() -> None:
    b = Side(initiator=False)
    for n in range(3 * ABUSE_BUDGET):
        if n % ABUSE_REFILL == 0:
            b.mux.tick()
        b.mux.feed(frame(PING, 0, bytes(8)))
        b.mux.next_record()
    for n in range(ABUSE_BUDGET + 10):  # and now without a tick: tunnels that are opened and then reset
        b.mux.feed(frame(OPEN, 2 * n + 1))
        b.mux.feed(frame(RST, 2 * n + 1))
        b.mux.next_record()
    b.mux.feed(frame(PING, 0, bytes(8)))
    assert not b.mux.channels


def test_a_stream_too_many_is_reset_and_tunnels_go_on() -> None:
    b = Side(initiator=False)
    b.mux.feed(b"".join(frame(STREAM, 2 * n + 1) for n in range(MAX_STREAMS + 1)))
    last = 2 * MAX_STREAMS + 1
    assert b.said() == [("RST", last, b"too many at once")]
    b.mux.feed(frame(OPEN, last + 2, b"s"))
    assert [service for _, service in b.tunnels] == ["s"]
    b.mux.feed(frame(RST, 1))
    b.mux.feed(frame(STREAM, last + 4))
    assert len(b.streams) == MAX_STREAMS + 1
    b.check()


def test_our_own_channels_are_not_counted_against_the_remote() -> None:
    b = Side(initiator=False)
    for _ in range(MAX_STREAMS + 1):
        b.mux.open_stream().other = End()
    b.records()
    b.mux.feed(frame(STREAM, 1))
    assert len(b.streams) == 1
    b.check()


def test_nothing_opens_on_a_closed_connection() -> None:
    a = Side()
    a.mux.abort("gone")
    with pytest.raises(PeerUnavailable):
        a.open()
    with pytest.raises(PeerUnavailable):
        a.mux.open_stream()


def test_channel_numbers_run_out_in_order() -> None:
    """At 3000 tunnels a second that is after eight days."""
    a = Side()
    a.mux._next_id = 2**32 - 1
    channel, _ = a.open()
    with pytest.raises(PeerUnavailable):
        a.open()
    assert a.said() == [("OPEN", 2**32 - 1, b"default")]
    assert list(a.mux.channels) == [channel.id]
    assert a.mux.tunnels == 1
    assert a.mux.used_up


def test_the_remotes_words_are_fit_for_a_log_line() -> None:
    a, b = pair()
    b.mux.feed(frame(OPEN, 1, b"ol\xffl\x1b[31mam\na" + b"x" * 1000))
    service = b.tunnels[0][1]
    assert service.startswith("ol\ufffdl?[31mam?a")
    assert len(service) == MAX_REASON
    ours, end = a.open()
    a.mux.feed(frame(RST, ours.id, b"a\r\nb\xc3"))
    assert end.heard == ["RST a??b\ufffd"]


def test_our_reasons_are_cut_to_what_the_remote_reads() -> None:
    a, b = pair(accepts=False)
    a.open()
    a.open()
    pump(a, b)
    b.tunnels[0][0].refuse("é" * 1000)
    b.tunnels[1][0].abort("é" * 1000)
    assert [len(reason) for _, _, _, reason in pump(a, b)] == [MAX_REASON] * 2


def test_wake_is_called_when_there_is_something_to_take_out() -> None:
    a = Side()
    channel, _ = a.opened()
    told = a.wakes
    for act in (lambda: channel.send(b"x"), channel.send_eof, lambda: a.mux.ping(bytes(8)), lambda: channel.abort("")):
        act()
        assert a.wakes > told
        assert a.said()
        told = a.wakes
    assert a.mux.is_empty
    assert a.mux.next_record() is None
    assert a.wakes == told


def test_the_fin_that_ends_a_channel_in_order_is_nothing_to_wake_anybody_for() -> None:
    a = Side()
    late: list[Channel] = []
    a.mux.wake_late = lambda: late.append(ours)
    ours, _ = a.opened()
    other, _ = a.opened()
    a.mux.feed(frame(FIN, ours.id))
    told = a.wakes
    ours.send_eof()
    assert (a.wakes, len(late)) == (told, 1)
    other.send_eof()  # the remote may wait for this one
    assert (a.wakes, len(late)) == (told + 1, 1)
    assert sorted(a.said()) == [("FIN", ours.id, b""), ("FIN", other.id, b"")]
    assert ours.closed


# FIN


def test_fin_follows_the_data_and_is_sent_once() -> None:
    a = Side()
    channel, _ = a.opened()
    channel.send_eof()
    channel.send_eof()
    assert a.said() == [("FIN", 1, b"")]
    channel.send_eof()
    assert a.said() == []

    channel, _ = a.opened()
    pour(channel, bytes(INITIAL_WINDOW))
    channel.send_eof()
    said = a.said()
    assert [kind for kind, _, _ in said] == ["DATA"] * (len(said) - 1) + ["FIN"]


def test_fin_leaves_the_other_direction_open_whichever_side_was_first() -> None:
    for first in (0, 1):
        a, b = pair()
        ours, end = a.open()
        pump(a, b)
        theirs = b.tunnels[0][0]
        ends = [(ours, theirs, theirs.other), (theirs, ours, end)]
        done, going, _ = ends[first]
        done.send_eof()
        pump(a, b)
        assert not done.closed
        assert not going.closed
        going.send(b"still")
        pump(a, b)
        going.send(b" here")
        going.send_eof()
        pump(a, b)
        assert ends[1 - first][2].data == b"still here"
        assert done.closed
        assert going.closed


def test_fin_waits_for_a_record_with_room() -> None:
    """DATA fills the record but for 1 to 6 bytes, or to the last."""
    for spare in range(HEADER_BYTES + 1):
        a, b = pair()
        ours, _ = a.open()
        pump(a, b)
        data = bytes(MAX_PAYLOAD - spare)
        ours.send(data)
        ours.send_eof()
        records = a.records()
        assert len(records) == (1 if spare == HEADER_BYTES else 2), spare
        for record in records:
            b.mux.feed(record)
        assert b.tunnels[0][0].other.heard == [data, "EOF"]


def test_data_or_fin_after_fin_is_a_violation() -> None:
    for late in (frame(DATA, 1, b"x"), frame(FIN, 1)):
        b = Side(initiator=False)
        b.mux.feed(frame(OPEN, 1) + frame(FIN, 1))
        with pytest.raises(ProtocolViolation):
            b.mux.feed(late)
        assert b.tunnels[0][0].other.heard == ["EOF"]


def test_frames_of_any_kind_may_cross_the_end_of_a_channel() -> None:
    crossing = [
        frame(DATA, 1, b"x"), frame(FIN, 1), frame(RST, 1, b"x"), frame(CREDIT, 1, credit(1)), frame(OPENED, 1),
        frame(REFUSED, 1), frame(BUSIER, 1, credit(1)),
    ]  # fmt: skip
    for late in crossing:
        for ours in (True, False):
            side = Side(initiator=ours, load=Load())
            if ours:
                channel, end = side.opened()
            else:
                side.mux.feed(frame(OPEN, 1, credit(ANY_LOAD)))
                channel, end = side.tunnels[0][0], side.tunnels[0][0].other
            channel.abort("enough")
            end.heard.clear()
            side.mux.feed(late)
            assert end.heard == []


# OPENED and REFUSED


@pytest.mark.parametrize("early", [frame(DATA, 1, b"x"), frame(FIN, 1)], ids=["DATA", "FIN"])
def test_nothing_comes_through_a_tunnel_before_its_answer(early: bytes) -> None:
    """The entry may give it to another peer still: bytes of this one must not reach the client."""
    a = Side()
    _, end = a.open()
    with pytest.raises(ProtocolViolation):
        a.mux.feed(early)
    assert end.heard == []


@pytest.mark.parametrize("second", [OPENED, REFUSED, BUSIER])
def test_a_tunnel_is_answered_once(second: int) -> None:
    a = Side(load=Load())
    channel, _ = a.opened()
    with pytest.raises(ProtocolViolation):
        a.mux.feed(frame(second, channel.id))


@pytest.mark.parametrize("answer", [OPENED, REFUSED])
def test_who_did_not_ask_is_not_answered(answer: int) -> None:
    a = Side()
    stream = a.mux.open_stream()
    stream.other = End()
    with pytest.raises(ProtocolViolation):
        a.mux.feed(frame(answer, stream.id))
    a.mux.feed(frame(OPEN, 2))
    with pytest.raises(ProtocolViolation):
        a.mux.feed(frame(answer, 2))


# RST


def test_rst_reaches_the_peer_and_frees_what_was_queued() -> None:
    a, b = pair(takes=False)
    ours, end = a.open()
    pump(a, b)
    end.heard.clear()
    pour(ours, bytes(INITIAL_WINDOW))
    b.tunnels[0][0].abort("backend reset")
    b.mux.feed(b"")
    for record in b.records():
        a.mux.feed(record)
    assert end.heard == ["RST backend reset"]
    assert a.mux.out_size == 0
    assert not ours._out
    assert a.said() == []
    assert not a.mux.channels
    ours.abort("again")
    assert a.said() == []


def test_rst_overtakes_the_data_of_its_channel() -> None:
    a = Side()
    channel, _ = a.opened()
    other, _ = a.opened()
    pour(channel, bytes(INITIAL_WINDOW))
    other.send(b"other")
    channel.send_eof()
    channel.abort("client gone")
    assert a.said() == [("RST", 1, b"client gone"), ("DATA", 3, b"other")]


def test_open_and_rst_keep_their_order() -> None:
    """An exit that wakes up late sees that the entry gave up."""
    a, b = pair(accepts=False)
    ours, _ = a.open()
    ours.send(b"request")
    ours.abort("no answer")
    (record,) = a.records()
    assert frames(record) == [("OPEN", 1, b"default"), ("RST", 1, b"no answer")]
    b.mux.feed(record)
    assert b.tunnels[0][0].other.heard == ["RST no answer"]
    b.tunnels[0][0].accept()
    b.tunnels[0][0].refuse("late")
    assert b.said() == []


def test_an_aborted_connection_tells_every_channel_once_and_says_no_more() -> None:
    a, b = pair()
    ends = [a.open()[1] for _ in range(3)]
    pump(a, b)
    stream = a.mux.open_stream()
    stream.other = End()
    for end in ends:
        end.heard.clear()
        pour(end.other, b"unsent")
    a.mux.abort("the cable")
    a.mux.abort("again")
    for end in [*ends, stream.other]:
        assert end.heard == ["RST the cable"]
        end_channel = stream if end is stream.other else end.other
        assert end_channel.writable() == 0
        end_channel.send(b"x")
        end_channel.send_eof()
        end_channel.acknowledge(1_000_000)
        end_channel.abort("x")
    assert not a.mux.starved
    assert a.said() == []
    assert a.mux.is_empty


def test_a_frame_after_the_connections_end_opens_nothing() -> None:
    """The rest of a record, when a frame before it ended the connection."""
    b = Side(initiator=False)
    b.mux.abort("gone")
    b.mux.feed(frame(OPEN, 1, b"s") + frame(STREAM, 3) + frame(PING, 0, bytes(8)) + frame(DATA, 1, b"x"))
    assert b.tunnels == []
    assert b.streams == []
    assert not b.mux.channels


# Turns


def test_a_small_channel_waits_for_one_quantum_of_a_bulk_one() -> None:
    a = Side()
    bulk, _ = a.opened()
    small, _ = a.opened()
    pour(bulk, bytes(INITIAL_WINDOW))
    small.send(b"token")
    said = a.said()
    assert said[:2] == [("DATA", bulk.id, bytes(QUANTUM)), ("DATA", small.id, b"token")]
    assert sum(len(p) for _, c, p in said if c == bulk.id) == INITIAL_WINDOW


def test_a_bulk_channel_alone_fills_the_record() -> None:
    a = Side()
    bulk, _ = a.opened()
    pour(bulk, bytes(INITIAL_WINDOW))
    assert [len(p) for _, _, p in a.said()] == [MAX_PAYLOAD, INITIAL_WINDOW - MAX_PAYLOAD]


def test_bulk_channels_take_turns() -> None:
    a = Side()
    channels = [a.opened()[0] for _ in range(5)]
    for channel in channels:
        pour(channel, bytes(INITIAL_WINDOW))
    sent = dict.fromkeys((c.id for c in channels), 0)
    while (record := a.mux.next_record()) is not None:
        for _, channel_id, payload in frames(record):
            sent[channel_id] += len(payload)
        behind = min(sent.values())
        assert max(sent.values()) - behind <= 2 * QUANTUM
    assert set(sent.values()) == {INITIAL_WINDOW}


def test_a_channel_that_goes_on_sending_keeps_its_place_and_gets_no_second_one() -> None:
    a = Side()
    one, _ = a.opened()
    two, _ = a.opened()
    for n in range(10):
        one.send(b"%d" % n)
        two.send(b"%d" % n)
    assert a.said() == [("DATA", one.id, b"0123456789"), ("DATA", two.id, b"0123456789")]


def test_control_frames_go_first() -> None:
    a = Side()
    bulk, _ = a.opened()
    pour(bulk, bytes(INITIAL_WINDOW))
    a.records()
    a.mux.feed(frame(CREDIT, 1, credit(INITIAL_WINDOW)))
    pour(bulk, bytes(INITIAL_WINDOW))
    a.mux.ping(b"12345678")
    a.open("late")
    said = a.said()
    assert said[:2] == [("PING", 0, b"12345678"), ("OPEN", 3, b"late")]
    assert said[2][0] == "DATA"


def test_no_data_overtakes_an_open_that_did_not_fit_the_record() -> None:
    a = Side()
    many = 2 * MAX_PLAINTEXT // (HEADER_BYTES + len("default"))
    for n in range(many):
        channel, _ = a.open()
        channel.send(b"%d" % n)
    known = set()
    records = a.records()
    for record in records:
        for kind, channel_id, _ in frames(record):
            if kind == "OPEN":
                known.add(channel_id)
            else:
                assert channel_id in known
    assert len(known) == many


def test_a_record_that_is_all_but_full_ends_there() -> None:
    """Room for a header and 2 bytes down to none: no DATA of nothing, and the rest in the next one."""
    for spare in range(HEADER_BYTES + 3):
        a, b = pair()
        channels = [a.open()[0] for _ in range(5)]
        pump(a, b)
        left = MAX_PLAINTEXT - spare
        for channel in channels[:4]:
            n = min(QUANTUM, left - HEADER_BYTES)
            channel.send(bytes(n))
            left -= HEADER_BYTES + n
        assert left == 0
        channels[4].send(b"last")
        pump(a, b)
        first = max(0, spare - HEADER_BYTES)
        assert b.tunnels[4][0].other.heard == [part for part in (b"last"[:first], b"last"[first:]) if part]


def test_chunks_are_joined_and_split_without_loss() -> None:
    a, b = pair()
    ours, _ = a.open()
    pump(a, b)
    data = bytes(n % 251 for n in range(INITIAL_WINDOW))
    for at in range(0, len(data), 777):
        ours.send(memoryview(data)[at : at + 777])
    pump(a, b)
    assert b.tunnels[0][0].other.data == data


def test_a_memoryview_is_copied_before_its_owner_reuses_it() -> None:
    a = Side()
    channel, _ = a.opened()
    scratch = bytearray(b"mine")
    channel.send(memoryview(scratch))
    scratch[:] = b"next"
    assert a.said() == [("DATA", 1, b"mine")]


# PING and PONG


def test_ping_is_answered_by_pong_with_the_same_bytes() -> None:
    a, b = pair()
    a.mux.ping(b"12345678")
    assert pump(a, b) == [("a", "PING", 0, b"12345678"), ("b", "PONG", 0, b"12345678")]
    assert a.pongs == [b"12345678"]
    assert b.pongs == []


def test_a_remote_that_makes_us_answer_and_does_not_read_is_found() -> None:
    b = Side(initiator=False)
    ping = frame(PING, 0, bytes(8))
    b.mux.feed(ping * MAX_CONTROL)
    assert not b.mux.overrun
    with pytest.raises(ProtocolViolation, match="does not read"):
        b.mux.feed(ping)
    assert b.mux.overrun
    assert len(b.said()) == MAX_CONTROL


# Load


def test_a_change_of_load_rides_with_whatever_goes_once() -> None:
    a = Side(load=Load())
    channel, _ = a.opened()
    rides = {
        "PING": lambda: a.mux.ping(bytes(8)),
        "DATA": lambda: channel.send(b"x"),
        "OPEN": a.open,
        "CREDIT": lambda: channel.acknowledge(INITIAL_WINDOW),
        "FIN": channel.send_eof,
        "RST": lambda: channel.abort("enough"),
    }
    for n, (kind, act) in enumerate(rides.items(), 1):
        a.load.in_flight = n
        assert a.said() == []  # nothing goes for its sake
        act()
        (record,) = a.records()
        assert frames(record)[0] == ("LOAD", 0, load(n)), kind
        assert [name for name, _, _ in frames(record)] == ["LOAD", kind]
        a.mux.ping(bytes(8))
        assert [name for name, _, _ in a.said()] == ["PING"]


def test_a_load_that_is_what_the_remote_takes_it_for_is_not_told() -> None:
    a = Side(load=Load())
    a.mux.ping(bytes(8))  # nothing was told yet: then it is 0
    assert a.said() == [("PING", 0, bytes(8))]
    assert not a.mux.tell_load()
    a.load.in_flight = 1
    a.load.in_flight = 0
    assert not a.mux.tell_load()
    assert a.said() == []
    assert a.wakes == 1


def test_a_load_is_told_for_its_own_sake_once_and_as_it_is_when_it_goes() -> None:
    a, b = loaded_pair()
    a.load.in_flight = 1
    assert a.mux.tell_load()
    assert a.wakes == 1
    assert not a.mux.is_empty
    assert not a.mux.tell_load()  # it is about to go
    a.load.in_flight = 2
    assert pump(a, b) == [("a", "LOAD", 0, load(2))]
    assert b.told == [2]
    assert a.mux.is_empty
    assert not a.mux.tell_load()
    assert a.wakes == 1


def test_a_load_that_rode_along_is_not_told_again() -> None:
    a = Side(load=Load())
    a.load.in_flight = 1
    a.mux.tell_load()
    a.mux.ping(bytes(8))
    assert a.said() == [("LOAD", 0, load(1)), ("PING", 0, bytes(8))]
    a.load.in_flight = 2
    a.mux.tell_load()
    a.load.in_flight = 1  # as it was told
    assert a.said() == []
    assert a.mux.is_empty


def test_a_load_is_told_again_to_who_asks() -> None:
    a, b = loaded_pair()
    assert a.mux.tell_load(again=True)
    assert pump(a, b) == [("a", "LOAD", 0, load(0))]
    a.load.in_flight = 3
    a.mux.tell_load()
    assert not a.mux.tell_load(again=True)  # it is about to go anyway
    assert pump(a, b) == [("a", "LOAD", 0, load(3))]
    assert b.told == [0, 3]


def test_who_speaks_the_former_version_is_told_nothing() -> None:
    a, b = pair()
    assert not a.mux.tells_load
    assert not a.mux.tell_load()
    assert not a.mux.tell_load(again=True)
    channel, _ = a.request(3)
    assert pump(a, b) == [("a", "OPEN", 1, b"default"), ("b", "OPENED", 1, b"")]
    channel.abort("enough")
    assert pump(a, b) == [("a", "RST", 1, b"enough")]
    assert b.believed == [ANY_LOAD]


def test_a_closed_connection_tells_no_load() -> None:
    a = Side(load=Load())
    a.load.in_flight = 1
    a.mux.tell_load()
    a.mux.abort("gone")
    assert a.mux.is_empty
    a.load.in_flight = 2
    assert not a.mux.tell_load()
    assert not a.mux.tell_load(again=True)
    a.mux.watch(30)
    assert a.said() == []
    assert a.mux.is_empty


def test_watch_asks_for_so_many_seconds_or_for_no_more() -> None:
    a, b = loaded_pair()
    for seconds in (30, 255, 0):
        a.mux.watch(seconds)
    assert pump(a, b) == [("a", "WATCH", 0, bytes([seconds])) for seconds in (30, 255, 0)]
    assert b.watched_s == [30, 255, 0]
    assert b.told == a.told == []


def test_look_names_a_service_and_costs_the_remote_its_budget() -> None:
    a, b = loaded_pair()
    before = b.mux._abuse_left
    a.mux.look("speech")
    assert pump(a, b) == [("a", "LOOK", 0, b"speech")]
    assert b.looks == ["speech"]
    assert b.mux._abuse_left == before - 1
    b.mux.feed(frame(LOOK, 0, b"\xff\x1b" * 9000))
    assert len(b.looks[1]) <= MAX_REASON
    assert b.looks[1].isprintable()


def test_open_carries_what_its_side_believes() -> None:
    a, b = loaded_pair()
    a.request(7)
    b.request(0)
    a.request()
    a.open("chat")
    assert pump(a, b)[:4] == [
        ("a", "OPEN", 1, credit(7) + b"default"),
        ("a", "OPEN", 3, credit(ANY_LOAD) + b"default"),
        ("a", "OPEN", 5, credit(ANY_LOAD) + b"chat"),
        ("b", "OPEN", 2, credit(0) + b"default"),
    ]
    assert b.believed == [7, ANY_LOAD, ANY_LOAD]
    assert a.believed == [0]
    assert [service for _, service in b.tunnels] == ["default", "default", "chat"]


def test_busier_ends_a_request_and_says_the_load_before_it() -> None:
    a, b = loaded_pair(accepts=False)
    b.load.in_flight = 4
    ours, end = a.request(2)
    ours.send(b"early")
    pump(a, b)
    theirs = b.tunnels[0][0]
    theirs.refuse_as_busier(4)
    assert pump(a, b) == [("b", "LOAD", 0, load(4)), ("b", "BUSIER", ours.id, credit(4))]
    assert a.told == [4]
    assert end.heard == ["BUSIER 4"]  # and no abort beside it
    assert ours.closed
    assert theirs.closed
    for late in (lambda: theirs.refuse_as_busier(5), lambda: theirs.refuse("x"), theirs.accept, lambda: ours.send(b"late")):
        late()
    assert pump(a, b) == []
    assert not a.mux.channels
    assert not b.mux.channels


def test_what_is_told_is_the_load_by_others() -> None:
    """What the remote itself has here it knows better: a change of that is no news to it."""
    a, b = loaded_pair()
    for n, (entry_id, by, told) in enumerate([
        ("entry", 1, []), ("", 1, [1]), ("third", 1, [2]), ("entry", 1, []), ("third", -1, [1]),
        ("entry", -2, []), ("", -1, [0]),
    ]):  # fmt: skip
        a.load.change(entry_id, by)
        assert a.mux.tell_load() is bool(told), n
        a.mux.ping(bytes(8))
        said = [payload for who, kind, _, payload in pump(a, b) if (who, kind) == ("a", "LOAD")]
        assert said == [load(others) for others in told]
        assert b.told[-len(said) :] == told or not said
    assert a.load == Load()


def test_a_load_knows_what_it_is_made_of() -> None:
    made = Load()
    for entry_id, by in (("", 2), ("one", 3), ("two", 1), ("one", -1), ("two", -1)):
        made.change(entry_id, by)
    assert made == Load(4, {"": 2, "one": 2})  # and keeps no name of one that has nothing here
    assert [made.by_others(entry_id) for entry_id in ("", "one", "two", "nobody")] == [2, 2, 4, 4]


def test_who_was_refused_as_full_hears_of_room_though_the_load_by_others_is_as_it_was() -> None:
    a, b = loaded_pair(accepts=False)
    b.load.change("entry", 3)
    ours, end = a.request(0)
    pump(a, b)
    b.tunnels[0][0].refuse_as_busier(FULL)
    assert pump(a, b) == [("b", "BUSIER", ours.id, credit(FULL))]
    assert end.heard == [f"BUSIER {FULL}"]
    b.load.change("entry", -1)
    assert not b.mux.tell_load()
    assert b.mux.tell_load(again=True)
    assert pump(a, b) == [("b", "LOAD", 0, load(0))]


def test_while_a_refusal_waits_to_go_news_of_room_would_go_before_it() -> None:
    """And its entry would take this node for full when it is not: who tells of room looks here first (forward/pushing)."""
    a, b = loaded_pair(accepts=False)
    ours, _ = a.request(0)
    assert a.mux.is_answering
    pump(a, b)
    assert not a.mux.is_answering
    b.tunnels[0][0].refuse_as_busier(FULL)
    assert b.mux.is_answering
    b.mux.tell_load(again=True)
    assert b.said() == [("LOAD", 0, load(0)), ("BUSIER", ours.id, credit(FULL))]
    assert not b.mux.is_answering


def test_a_second_busier_comes_for_a_channel_that_is_gone() -> None:
    a = Side(load=Load())
    ours, end = a.request(2)
    a.mux.feed(frame(BUSIER, ours.id, credit(3)) + frame(BUSIER, ours.id, credit(4)))
    assert end.heard == ["BUSIER 3"]
    assert a.mux._abuse_left == ABUSE_BUDGET - STRAY_COSTS


def test_busier_for_a_request_that_was_given_up_is_ignored() -> None:
    a = Side(load=Load())
    ours, end = a.request(2)
    ours.abort("too slow")
    a.mux.feed(frame(BUSIER, ours.id, credit(3)))
    assert end.heard == []


def _answered_request(a: Side) -> int:
    channel, _ = a.request()
    a.mux.feed(frame(OPENED, channel.id))
    return channel.id


@pytest.mark.parametrize(
    ("open_", "payload"),
    [
        pytest.param(lambda a: a.open()[0].id, credit(3), id="to a tunnel that is no request"),
        pytest.param(lambda a: a.request()[0].id, b"", id="without a load"),
        pytest.param(lambda a: a.request()[0].id, bytes(3), id="of 3 bytes"),
        pytest.param(lambda a: a.request()[0].id, bytes(5), id="of 5 bytes"),
        pytest.param(_answered_request, credit(3), id="behind OPENED"),
        pytest.param(lambda a: a.mux.open_stream().id, credit(3), id="to a stream"),
        pytest.param(lambda a: a.mux.feed(frame(OPEN, 2, credit(0))) or 2, credit(3), id="to the remote's own"),
        pytest.param(lambda _a: 7, credit(3), id="to nothing that was opened"),
        pytest.param(lambda _a: 0, credit(3), id="to channel 0"),
    ],
)
def test_busier_where_nobody_may_say_it_is_a_violation(open_: Any, payload: bytes) -> None:
    """Whoever asked hears of it with the end of the connection: told before, it would ask that peer again."""
    a = Side(load=Load())
    channel_id = open_(a)
    heard = [channel.other.heard for channel in a.mux.channels.values() if channel.tunnel]
    for each in heard:
        each.clear()
    with pytest.raises(ProtocolViolation):
        a.mux.feed(frame(BUSIER, channel_id, payload))
    assert not any(heard)


OF_LOADS = {
    "loads": (lambda n: frame(LOAD, 0, load(n)), TELLING_COSTS),
    "watches": (lambda n: frame(WATCH, 0, b"\x1e"), 1.0),
    "frames of a later version": (lambda n: frame(FIRST_OPTIONAL + n % 192, n, b"whatever"), 1.0),
}


@pytest.mark.parametrize(("flood", "price"), OF_LOADS.values(), ids=list(OF_LOADS))
def test_a_flood_of_them_costs_the_flooder_its_connection(flood: Any, price: float) -> None:
    a = Side(load=Load())
    allowed = int(ABUSE_BUDGET / price)
    for n in range(allowed):
        a.mux.feed(flood(n))
    assert a.said() == []
    with pytest.raises(ProtocolViolation, match="floods"):
        a.mux.feed(flood(allowed))


def test_requests_that_are_sent_back_without_end_cost_the_connection() -> None:
    b = Side(initiator=False, accepts=False, load=Load())
    b.load.in_flight = 9
    allowed = int(ABUSE_BUDGET / TELLING_COSTS)
    with pytest.raises(ProtocolViolation, match="floods"):
        for n in range(allowed + 2):
            b.mux.feed(frame(OPEN, 2 * n + 1, credit(0) + b"default"))
            b.tunnels.pop()[0].refuse_as_busier(9)
            b.mux.next_record()
    assert n == allowed + 1  # of the one that was too many the next frame tells


def test_an_honest_crowd_never_comes_near_that() -> None:
    """3,000 requests a second, each of them sent back once before it is taken, each answer and each end with a LOAD, and 200
    WATCH: each quarter of a second gives back all that it cost, to both sides."""
    a, b = loaded_pair(accepts=False)
    for _ in range(8):
        for n in range(750):
            for is_second in (False, True):
                ours, end = a.request(0)
                if n % 15 == 0:
                    a.mux.watch(30)
                pump(a, b)
                theirs = b.tunnels.pop()[0]
                if not is_second:
                    theirs.refuse_as_busier(1)
                    pump(a, b)
            b.load.in_flight += 1
            theirs.accept()
            pump(a, b)
            assert end.heard == ["OPENED"]
            ours.send_eof()
            theirs.send_eof()
            b.load.in_flight -= 1
            b.mux.tell_load()
            pump(a, b)
            assert ours.closed
        assert len(a.told) >= 2 * 750
        a.told.clear()
        for side in (a, b):
            side.mux.tick()
            assert side.mux._abuse_left == ABUSE_BUDGET


@pytest.mark.parametrize(
    ("record", "with_load", "without"),
    [
        pytest.param(frame(LOAD, 0, load(1)), True, False, id="LOAD"),
        pytest.param(frame(WATCH, 0, b"\x1e"), True, False, id="WATCH"),
        pytest.param(frame(LOAD, 1, load(1)), False, False, id="LOAD on a channel"),
        pytest.param(frame(LOAD, 0, bytes(3)), False, False, id="LOAD of 3 bytes"),
        pytest.param(frame(LOAD, 0, bytes(8)), False, False, id="LOAD of 8 bytes"),
        pytest.param(frame(WATCH, 1, b"\x1e"), False, False, id="WATCH on a channel"),
        pytest.param(frame(WATCH, 0), False, False, id="WATCH for nothing"),
        pytest.param(frame(WATCH, 0, bytes(2)), False, False, id="WATCH of 2 bytes"),
        pytest.param(frame(OPEN, 1, bytes(3)), False, True, id="OPEN of 3 bytes"),
        pytest.param(frame(OPEN, 1), False, True, id="OPEN of nothing"),
        pytest.param(frame(OPEN, 1, bytes(4)), True, True, id="OPEN of 4 bytes"),
        pytest.param(frame(0), False, False, id="type 0"),
        pytest.param(frame(BUSIER + 1), False, False, id="type 14"),
        pytest.param(frame(FIRST_OPTIONAL - 1), False, False, id="type 63"),
        pytest.param(frame(FIRST_OPTIONAL), True, False, id="type 64"),
        pytest.param(frame(LOOK, 0, b"default"), True, False, id="LOOK"),
        pytest.param(frame(255, 2**32 - 1, bytes(MAX_PAYLOAD)), True, False, id="type 255"),
    ],
)
def test_which_frames_end_a_connection_that_speaks_of_load_and_one_that_does_not(
    record: bytes, with_load: bool, without: bool
) -> None:
    for side, fine in ((Side(initiator=False, load=Load()), with_load), (Side(initiator=False), without)):
        if fine:
            side.mux.feed(record + frame(PING, 0, bytes(8)))  # and the rest of the record is read
            assert side.said()[-1] == ("PONG", 0, bytes(8))
        else:
            with pytest.raises(ProtocolViolation):
                side.mux.feed(record)
        assert side.told == [1] * (record == frame(LOAD, 0, load(1)) and fine)


_acts = st.lists(
    st.tuples(st.sampled_from(["open", "send", "eof", "abort", "ping", "load", "tell", "record"]), st.integers(0, 5)),
    max_size=60,
)


def _transcript(acts: list[tuple[str, int]], load: Load | None) -> tuple[list[Any], dict[int, list[Any]]]:
    """What a side says that does all that: frames in their order, without LOAD, DATA and FIN; and those of each channel that
    was not reset, DATA joined."""
    a = Side(load=load)
    channels: list[Channel] = []
    records: list[bytes] = []
    for act, n in acts:
        if act == "open":
            channels.append(a.open()[0])
        elif act == "ping":
            a.mux.ping(bytes([n]) * 8)
        elif act == "load":
            if load is not None:
                load.in_flight = n
        elif act == "tell":
            a.mux.tell_load(again=n == 0)
        elif act == "record":
            records += filter(None, [a.mux.next_record()])
        elif channels:
            channel = channels[n % len(channels)]
            if act == "send" and not channel.fin_queued:
                pour(channel, bytes([n]) * 20_000)
            elif act == "eof":
                channel.send_eof()
            elif act == "abort":
                channel.abort("enough")
    records += a.records()
    control: list[Any] = []
    flows: dict[int, list[Any]] = {channel.id: [] for channel in channels if not channel.closed}
    for record in records:
        for at, (kind, channel_id, payload) in enumerate(frames(record)):
            if kind == "LOAD":
                assert at == 0
            elif kind not in ("DATA", "FIN"):
                control.append((kind, channel_id, payload.removeprefix(credit(ANY_LOAD))))
            elif channel_id in flows:
                flows[channel_id].append(kind if kind == "FIN" else payload)
    for said in flows.values():
        ends = [item for item in said if item == "FIN"]
        assert said[len(said) - len(ends) :] == ends
        said[:] = [b"".join(said[: len(said) - len(ends)]), *ends]
    return control, flows


@given(_acts)
def test_a_load_overtakes_nothing_and_holds_nothing_up(acts: list[tuple[str, int]]) -> None:
    """A LOAD is the first frame of its record. All else goes in the order in which it goes without."""
    assert _transcript(acts, Load()) == _transcript(acts, None)


ENTRY = "entry"  # the peer id of the other side, as Side has it


@dataclass(eq=False)
class Flow:
    """A request at its exit, until the exit comes to it; the channel's local end."""

    exit: Exit
    channel: Channel
    believed: int
    gone: bool = False
    serves: bool = False

    def send(self, data: bytes | memoryview) -> None: ...
    def acknowledge(self, n: int) -> None: ...
    def resume_writing(self) -> None: ...

    def send_eof(self) -> None:
        if self.channel.answered:
            self.channel.send_eof()
            self.release()

    def abort(self, reason: str) -> None:
        self.gone = True
        self.release()

    def release(self) -> None:
        if self.serves:
            self.serves = False
            self.exit.change(-1, ENTRY)


class Asking(End):
    """The entry's end of a request; it hears from there that its exit is full."""

    def __init__(self, entry: Exit) -> None:
        super().__init__()
        self.entry = entry

    def busier(self, others: int) -> None:
        super().busier(others)
        self.entry.takes_for_full = self.entry.takes_for_full or others == FULL


class Exit(Side):
    """A side that serves as forward/exit does, and pushes each change of its load, sooner or later."""

    def __init__(self, *, initiator: bool) -> None:
        super().__init__(initiator=initiator, load=Load())
        self.asked: deque[Flow] = deque()
        self.flows: list[Flow] = []
        self.is_news = False
        self.believes = 0  # of the other one, as an entry that watches it: what it serves for others
        self.is_full = False
        self.takes_for_full = False  # the other one
        self.owes_room = False  # it was refused for want of room
        self.ours: list[Channel] = []

    def change(self, by: int, entry_id: str) -> None:
        self.load.change(entry_id, by)
        self.is_news = True

    def push(self) -> None:
        room = self.owes_room and not self.is_full and not self.mux.is_answering
        self.owes_room = self.owes_room and not room
        self.is_news = self.owes_room and not self.is_full
        self.mux.tell_load(again=room)

    def tunnel_opened(self, channel: Channel, service: str, believed: int) -> None:
        if service != "default":  # one of the host's own
            channel.other = End(other=channel)
            channel.accept()
            return
        channel.other = flow = Flow(self, channel, believed)
        self.asked.append(flow)

    def serve_next(self, *, refuse: bool) -> None:
        flow = self.asked.popleft()
        if flow.gone:
            return
        others = self.load.by_others(ENTRY)
        if self.is_full:
            self.owes_room = True
            flow.channel.refuse_as_busier(FULL)
        elif others > flow.believed:
            flow.channel.refuse_as_busier(others)
        elif refuse:
            flow.channel.refuse("the backend is down")
        else:
            flow.serves = True
            self.change(1, ENTRY)
            self.flows.append(flow)

    def load_told(self, others: int) -> None:
        super().load_told(others)
        self.believes, self.takes_for_full = others, False

    def ask(self, *, compares: bool) -> None:
        end = Asking(self)
        end.other = self.mux.open_request("default", end, end, self.believes if compares else ANY_LOAD)
        self.ours.append(end.other)


class Beliefs(RuleBasedStateMachine):
    """Two nodes, each an entry and an exit to the other, and a wire each way: however all of it interleaves, an entry that
    is told each change believes what the exit serves for others, whatever becomes of its own requests; and takes it for full
    no longer than it is."""

    def __init__(self) -> None:
        super().__init__()
        self.sides = [Exit(initiator=True), Exit(initiator=False)]
        self.wires: list[deque[bytes]] = [deque(), deque()]

    @rule(who=st.integers(0, 1), compares=st.booleans())
    def ask(self, who: int, compares: bool) -> None:
        self.sides[who].ask(compares=compares)

    @rule(who=st.integers(0, 1))
    def open_a_tunnel_that_is_no_request(self, who: int) -> None:
        self.sides[who].open("/relay/1")

    @rule(who=st.integers(0, 1), n=st.integers(0, 50), way=st.sampled_from(["abort", "eof"]))
    def give_up(self, who: int, n: int, way: str) -> None:
        ours = self.sides[who].ours
        if ours:
            channel = ours[n % len(ours)]
            channel.abort("the client left") if way == "abort" else channel.send_eof()

    @rule(who=st.integers(0, 1), refuse=st.booleans())
    def serve_next(self, who: int, refuse: bool) -> None:
        if self.sides[who].asked:
            self.sides[who].serve_next(refuse=refuse)

    @rule(who=st.integers(0, 1), n=st.integers(0, 50), way=st.sampled_from(["accept", "abort", "refuse", "eof"]))
    def the_backend_speaks(self, who: int, n: int, way: str) -> None:
        flows = self.sides[who].flows
        if not flows:
            return
        flow = flows[n % len(flows)]
        if not flow.channel.answered:
            if way == "accept":
                flow.channel.accept()
            elif way == "refuse":
                flow.release()
                flow.channel.refuse("the backend is down")
        elif way == "eof":
            flow.release()
            flow.channel.send_eof()
        elif way == "abort":
            flow.release()
            flow.channel.abort("the backend broke")

    @rule(who=st.integers(0, 1), by=st.sampled_from([1, -1]))
    def a_client_of_its_own(self, who: int, by: int) -> None:
        side = self.sides[who]
        if side.load.by_entry.get("", 0) + by >= 0:
            side.change(by, "")

    @rule(who=st.integers(0, 1), pushes=st.booleans())
    def refuses_and_has_room_at_once(self, who: int, pushes: bool) -> None:
        side = self.sides[who]
        if side.asked:
            side.is_full = True
            side.serve_next(refuse=False)
            side.is_full, side.is_news = False, True
            if pushes:
                side.push()

    @rule(who=st.integers(0, 1))
    def fills_or_empties(self, who: int) -> None:
        side = self.sides[who]
        side.is_full = not side.is_full
        side.is_news = True

    @rule(who=st.integers(0, 1), is_asked=st.booleans())
    def push(self, who: int, is_asked: bool) -> None:
        side = self.sides[who]
        if is_asked:
            side.mux.tell_load(again=True)
        elif side.is_news:
            side.push()

    @rule(who=st.integers(0, 1))
    def send_a_record(self, who: int) -> None:
        if (record := self.sides[who].mux.next_record()) is not None:
            self.wires[who].append(record)

    @rule(who=st.integers(0, 1))
    def receive_a_record(self, who: int) -> None:
        if self.wires[1 - who]:
            self.sides[who].mux.feed(self.wires[1 - who].popleft())

    @rule()
    def all_that_was_said_arrives(self) -> None:
        """And no exit comes to a request meanwhile."""
        moves = True
        while moves:
            for who, side in enumerate(self.sides):
                self.wires[who].extend(side.records())
            moves = any(self.wires)
            for who in (0, 1):
                while self.wires[1 - who]:
                    self.receive_a_record(who)

    @invariant()
    def the_belief_is_right_when_both_wires_are_empty(self) -> None:
        if any(self.wires) or not all(side.mux.is_empty and not side.is_news for side in self.sides):
            return
        for entry, exit_ in (self.sides, self.sides[::-1]):
            assert entry.believes == exit_.load.by_others(ENTRY) == exit_.load.by_entry.get("", 0)
            assert not entry.takes_for_full or exit_.is_full

    @invariant()
    def what_others_have_is_never_negative(self) -> None:
        for side in self.sides:
            assert side.load.by_entry.get(ENTRY, 0) == sum(flow.serves for flow in side.flows)
            assert side.load.in_flight == sum(side.load.by_entry.values())
            assert all(count > 0 for count in side.load.by_entry.values())
            assert all(others >= 0 for others in side.told)

    @invariant()
    def what_is_kept_is_bounded(self) -> None:
        for side in self.sides:
            side.check()

    @rule()
    def settle(self) -> None:
        """Exits come to all requests and push what is news; everything arrives."""
        self.all_that_was_said_arrives()
        while any(side.asked or side.is_news for side in self.sides):
            for side in self.sides:
                while side.asked:
                    side.serve_next(refuse=False)
                if side.is_news:
                    side.push()
            self.all_that_was_said_arrives()
        for entry, exit_ in (self.sides, self.sides[::-1]):
            assert entry.believes == exit_.load.by_others(ENTRY)
            assert not entry.takes_for_full or exit_.is_full

    def teardown(self) -> None:
        self.settle()


TestBeliefs = Beliefs.TestCase
TestBeliefs.settings = settings(max_examples=300, stateful_step_count=40, suppress_health_check=[HealthCheck.too_slow])


# Violations


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(b"\x05", id="half a header"),
        pytest.param(frame(PING, 0, bytes(8)) + b"\x05\x00\x00", id="half a header behind a frame"),
        pytest.param(HEADER.pack(DATA, 1, 5) + b"four", id="half a frame"),
        pytest.param(HEADER.pack(PING, 0, 8), id="no payload"),
        pytest.param(frame(0), id="type 0"),
        pytest.param(frame(PONG + 1), id="type 11"),
        pytest.param(frame(255, 1), id="type 255"),
        pytest.param(frame(OPEN, 0), id="OPEN of channel 0"),
        pytest.param(frame(STREAM, 0), id="STREAM of channel 0"),
        pytest.param(frame(OPEN, 2), id="OPEN with our parity"),
        pytest.param(frame(OPEN, 5) + frame(OPEN, 5), id="OPEN of an open channel"),
        pytest.param(frame(OPEN, 5) + frame(OPEN, 3), id="OPEN downwards"),
        pytest.param(frame(OPEN, 5) + frame(RST, 5) + frame(OPEN, 5), id="OPEN of a closed channel"),
        pytest.param(frame(STREAM, 5) + frame(STREAM, 5), id="STREAM of an open channel"),
        pytest.param(frame(DATA, 0, b"x"), id="DATA on channel 0"),
        pytest.param(frame(DATA, 1, b"x"), id="DATA on the remote's unopened channel"),
        pytest.param(frame(DATA, 2, b"x"), id="DATA on our unopened channel"),
        pytest.param(frame(FIN, 1), id="FIN on an unopened channel"),
        pytest.param(frame(RST, 2), id="RST on an unopened channel"),
        pytest.param(frame(CREDIT, 0, credit(1)), id="CREDIT on channel 0"),
        pytest.param(frame(OPENED, 2), id="OPENED of an unopened channel"),
        pytest.param(frame(REFUSED, 2), id="REFUSED of an unopened channel"),
        pytest.param(frame(OPEN, 1) + frame(OPENED, 1), id="OPENED of the remote's own channel"),
        pytest.param(frame(OPEN, 1) + frame(CREDIT, 1, b"abc"), id="CREDIT of 3 bytes"),
        pytest.param(frame(OPEN, 1) + frame(CREDIT, 1, b"abcde"), id="CREDIT of 5 bytes"),
        pytest.param(frame(OPEN, 1) + frame(CREDIT, 1, b"\xff\xff\xff\xff"), id="CREDIT of 4 GiB"),
        pytest.param(frame(PING, 0, bytes(7)), id="PING of 7 bytes"),
        pytest.param(frame(PONG, 0, bytes(9)), id="PONG of 9 bytes"),
        pytest.param(frame(PING, 1, bytes(8)), id="PING on a channel"),
        pytest.param(frame(PONG, 2, bytes(8)), id="PONG on a channel"),
    ],
)
def test_a_breach_of_the_rules_raises(record: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        Side(initiator=False).mux.feed(record)


def test_a_window_and_a_record_fit_their_fields() -> None:
    assert MAX_PAYLOAD < 2**16
    assert 2 * MAX_WINDOW < 2**32
    assert len(HEADER.pack(DATA, 2**32 - 1, MAX_PAYLOAD)) + MAX_PAYLOAD == MAX_PLAINTEXT


# Whatever comes


@given(st.binary(max_size=400), st.booleans(), st.booleans())
def test_arbitrary_bytes_raise_protocol_violation_or_nothing(data: bytes, initiator: bool, tells: bool) -> None:
    side = Side(initiator=initiator, load=Load() if tells else None)
    try:
        side.mux.feed(data)
    except ProtocolViolation:
        return
    side.check()
    side.said()


_some_frame = st.builds(
    frame,
    st.one_of(st.integers(0, 14), st.sampled_from([FIRST_OPTIONAL - 1, FIRST_OPTIONAL, 255])),
    st.integers(0, 9),
    st.one_of(st.binary(max_size=9), st.integers(0, 2**32 - 1).map(credit), st.just(bytes(40_000)), st.just(bytes(8))),
)


@settings(max_examples=400)
@given(st.lists(_some_frame, max_size=40), st.booleans(), st.booleans())
def test_arbitrary_frames_raise_protocol_violation_or_nothing(said: list[bytes], initiator: bool, tells: bool) -> None:
    """Frames that are well-formed more often than not, on channels some of which are open, ours among them."""
    side = Side(initiator=initiator, load=Load() if tells else None)
    side.open()
    side.request(1)
    side.mux.open_stream().other = End()
    for one in said:
        try:
            side.mux.feed(one)
        except ProtocolViolation:
            return
        side.check()
        side.records()


@settings(max_examples=200)
@given(st.data())
def test_cut_anywhere_a_valid_record_is_a_violation_or_its_first_frames(data: st.DataObject) -> None:
    a = Side()
    channel, _ = a.open()
    channel.send(b"hello")
    channel.send_eof()
    (record,) = a.records()
    cut = data.draw(st.integers(0, len(record)))
    ends = {0}
    at = 0
    for _, _, payload in frames(record):
        at += HEADER_BYTES + len(payload)
        ends.add(at)
    b = Side(initiator=False)
    if cut in ends:
        b.mux.feed(record[:cut])
    else:
        with pytest.raises(ProtocolViolation):
            b.mux.feed(record[:cut])


# Two muxes back to back


class BackToBack(RuleBasedStateMachine):
    """Whatever is sent in whatever sizes and order, records carried one at a time: what arrives is a prefix of what was
    sent, and in the end all of it; nobody is overdrawn, and nobody who waits is forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.sides = [Side(initiator=True, takes=False), Side(initiator=False, takes=False)]
        self.sent: dict[Channel, bytearray] = {}
        self.taken: dict[Channel, int] = {}
        self.finished: set[Channel] = set()
        self.reset: set[Channel] = set()
        self.byte = 0

    def _channels(self) -> list[Channel]:
        return [channel for channel in self.sent if channel not in self.reset]

    def _other(self, channel: Channel) -> Channel | None:
        """The same channel at the other side, once its OPEN is there."""
        return next((c for c in self.sent if c.id == channel.id and c is not channel), None)

    def _know(self, channel: Channel) -> None:
        self.sent[channel] = bytearray()
        self.taken[channel] = 0

    @precondition(lambda self: len(self.sent) < 12)
    @rule(who=st.integers(0, 1))
    def open(self, who: int) -> None:
        self._know(self.sides[who].open(takes=False)[0])

    @precondition(lambda self: self._channels())
    @rule(data=st.data(), size=st.sampled_from([1, 100, QUANTUM, MAX_PAYLOAD, MAX_PAYLOAD - 3, 200_000]))
    def send(self, data: st.DataObject, size: int) -> None:
        channel = data.draw(st.sampled_from(self._channels()))
        if channel not in self.finished:
            self.byte = (self.byte + 1) % 256
            chunk = bytes([self.byte]) * min(channel.writable(), size)
            channel.send(chunk)
            self.sent[channel] += chunk

    @precondition(lambda self: self._channels())
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        channel = data.draw(st.sampled_from(self._channels()))
        channel.send_eof()
        self.finished.add(channel)

    @precondition(lambda self: self._channels())
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        channel = data.draw(st.sampled_from(self._channels()))
        channel.abort("x")
        self.reset |= {channel, self._other(channel) or channel}

    @rule(who=st.integers(0, 1))
    def carry_one_record(self, who: int) -> None:
        self._carry(who)

    def _carry(self, who: int) -> bool:
        record = self.sides[who].mux.next_record()
        if record is None:
            return False
        there = self.sides[1 - who]
        there.mux.feed(record)
        for channel, _ in there.tunnels:
            if channel not in self.sent:
                self._know(channel)
                if self._other(channel) in self.reset:
                    self.reset.add(channel)
        return True

    @precondition(lambda self: self._channels())
    @rule(data=st.data(), part=st.sampled_from([0.1, 0.5, 1.0]))
    def take(self, data: st.DataObject, part: float) -> None:
        self._take(data.draw(st.sampled_from(self._channels())), part)

    def _take(self, channel: Channel, part: float = 1.0) -> bool:
        """The local reader has read some of what lies there."""
        n = int((len(channel.other.data) - self.taken[channel]) * part)
        self.taken[channel] += n
        channel.acknowledge(n)
        return n > 0

    @invariant()
    def sums_hold(self) -> None:
        for side in self.sides:
            side.check()

    @invariant()
    def what_arrived_is_a_prefix_of_what_was_sent(self) -> None:
        for channel in self._channels():
            other = self._other(channel)
            if other is not None:
                assert self.sent[channel].startswith(other.other.data)
                assert not (channel.closed and other.closed) or self.sent[channel] == other.other.data

    @invariant()
    def sender_and_receiver_agree_on_the_credit(self) -> None:
        """What may be sent, what is queued, and the grants on their way are what the receiver expects at most."""
        for channel in self._channels():
            other = self._other(channel)
            if other is not None and not channel.closed and not other.closed:
                coming = sum(
                    struct.unpack(">I", payload)[0]
                    for kind, channel_id, payload in frames(b"".join(other.mux._control))
                    if kind == "CREDIT" and channel_id == channel.id
                )
                assert channel.credit + channel.out_size + coming == other.granted

    def teardown(self) -> None:
        """Everybody reads all: everything that was sent arrives, and every EOF."""
        while any([self._carry(0), self._carry(1), *[self._take(c) for c in self._channels()]]):
            pass
        assert all(side.mux.is_empty and side.mux.out_size == 0 for side in self.sides)
        for channel in self._channels():
            self._check_end(channel)
        for channel in self.reset:
            assert channel.closed
            assert channel.other.heard.count("RST x") <= 1

    def _check_end(self, channel: Channel) -> None:
        other = self._other(channel)
        assert other is not None
        assert self.sent[channel] == other.other.data
        assert other.other.heard.count("EOF") == (channel in self.finished)
        if channel not in self.finished:
            assert channel.writable() > 0  # all was read: nobody is left waiting for credit
        assert channel.closed == (channel in self.finished and other in self.finished)


TestBackToBack = BackToBack.TestCase
TestBackToBack.settings = settings(max_examples=60, stateful_step_count=60, suppress_health_check=[HealthCheck.too_slow])


# Requests whose end the opener knows


@pytest.mark.parametrize("takes_kept", [True, False])
def test_a_request_from_its_open_to_its_end(takes_kept: bool) -> None:
    a, b = keeping_pair()
    channel, end = a.exchange(takes_kept=takes_kept)
    assert pump(a, b) == [
        ("a", "REQUEST", 1, load(ANY_LOAD) + bytes((takes_kept,)) + b"default"),
        ("b", "OPENED", 1, b""),
    ]
    (theirs, service), *_ = b.tunnels
    assert (service, b.believed) == ("default", [ANY_LOAD])
    assert (theirs.keeps, theirs.takes_kept) == (True, takes_kept)
    kept: list[int] = []
    theirs.on_keep = kept.append
    channel.send(b"question")
    pump(a, b)
    theirs.send(b"answer")
    pump(a, b)
    assert end.data == b"answer"
    channel.keep(6)
    assert pump(a, b) == [("a", "KEEP", 1, load(6))]
    assert kept == [6]
    assert b.tunnels[0][0].other.heard == [b"question"]  # neither an EOF nor a reset
    assert a.mux.channels == b.mux.channels == {}
    a.check()
    b.check()


def test_an_answer_beyond_4_gib_is_told_modulo_2_to_the_32() -> None:
    a, b = keeping_pair()
    channel, _ = a.exchange()
    pump(a, b)
    channel.keep(2**32 + 5)
    assert a.said() == [("KEEP", 1, load(5))]


def test_a_remote_that_keeps_nothing_hears_of_an_ordinary_request() -> None:
    a, b = loaded_pair()
    channel, _ = a.exchange()
    assert not channel.keeps
    assert pump(a, b) == [("a", "OPEN", 1, load(ANY_LOAD) + b"default"), ("b", "OPENED", 1, b"")]
    a, b = pair()
    channel, _ = a.exchange()
    assert not channel.keeps
    assert pump(a, b) == [("a", "OPEN", 1, b"default"), ("b", "OPENED", 1, b"")]


@pytest.mark.parametrize("before", ["bytes wait", "we have ended", "the remote has ended"])
def test_a_channel_where_something_is_under_way_is_reset_instead(before: str) -> None:
    a, b = keeping_pair()
    channel, _ = a.exchange()
    pump(a, b)
    (theirs, _), *_ = b.tunnels
    kept: list[int] = []
    theirs.on_keep = kept.append
    if before == "bytes wait":
        channel.send(b"x")
    elif before == "we have ended":
        channel.send_eof()
    else:
        theirs.send_eof()
        pump(a, b)
    channel.keep(0)
    pump(a, b)
    assert kept == []
    assert theirs.other.heard[-1].startswith("RST")
    assert a.mux.channels == b.mux.channels == {}


def test_a_request_that_has_no_end_yet_is_reset_by_keep() -> None:
    """The exit has not passed its bytes on."""
    a, b = keeping_pair()
    channel, _ = a.exchange()
    pump(a, b)
    channel.keep(0)
    pump(a, b)
    (theirs, _), *_ = b.tunnels
    assert theirs.other.heard[-1].startswith("RST")


def test_keep_for_what_is_gone_costs_as_any_stray_frame() -> None:
    a, b = keeping_pair()
    channel, _ = a.exchange()
    pump(a, b)
    (theirs, _), *_ = b.tunnels
    theirs.abort("the backend broke")
    channel.keep(3)
    pump(a, b)
    assert not b.mux.closed


@pytest.mark.parametrize(
    "said",
    [
        [frame(REQUEST, 1, load(0) + b"\1default"), frame(KEEP, 1, load(1)[1:])],
        [frame(REQUEST, 1, load(0) + b"\1default"), frame(FIN, 1), frame(KEEP, 1, load(1))],
        [frame(OPEN, 1, load(0) + b"default"), frame(KEEP, 1, load(1))],
        [frame(STREAM, 1), frame(KEEP, 1, load(1))],
        [frame(KEEP, 1, load(1))],
        [frame(REQUEST, 1, load(0))],
        [frame(REQUEST, 1, load(0)[1:])],
        [frame(REQUEST, 1, load(0) + b"\2default")],
    ],
)
def test_a_breach_of_the_rules_of_requests_is_a_violation(said: list[bytes]) -> None:
    side = Side(initiator=False, load=Load(), keeps=True)
    with pytest.raises(ProtocolViolation):
        for one in said:
            side.mux.feed(one)


def test_keep_before_the_answer_is_a_violation() -> None:
    side = Side(initiator=False, load=Load(), keeps=True, accepts=False)
    side.mux.feed(frame(REQUEST, 1, load(0) + b"\1default"))
    with pytest.raises(ProtocolViolation):
        side.mux.feed(frame(KEEP, 1, load(0)))


@pytest.mark.parametrize("kind", [REQUEST, KEEP])
@pytest.mark.parametrize("former", [None, Load()])
def test_who_has_not_agreed_to_requests_closes_the_link_for_them(kind: int, former: Load | None) -> None:
    side = Side(initiator=False, load=former)
    with pytest.raises(ProtocolViolation):
        side.mux.feed(frame(kind, 1, load(0) + b"\1default"))
