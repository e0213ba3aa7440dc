"""Records: when a node counts as online, what it offers, and a codec that meets every version and every liar."""

from __future__ import annotations

import random
from datetime import datetime, timedelta, timezone
from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError, create_model

from federation.errors import RecordInvalid
from federation.mesh import records
from federation.mesh.models import Model, catalog, pack, unpack
from federation.mesh.records import NODE_ONLINE_WINDOW, Gpu, NodeData, decode, encode, fitting
from federation.net.wire import MAX_RECORD_BYTES

NOW = datetime(2024, 5, 1, 12, 0, tzinfo=timezone.utc)
MOMENT = timedelta(microseconds=1)
LARGEST = 2**63 - 1

FULL = NodeData(
    peer_id="12D3KooWA",
    name="big box",
    version="0.1.0",
    incarnation=3,
    seq=17,
    last_seen=NOW,
    available_vram=20 << 30,
    total_vram=24 << 30,
    gpus=(Gpu(name="NVIDIA GeForce RTX 4090", total_vram=24 << 30, available_vram=20 << 30),),
    in_flight=2,
    capacity=8,
    services={"default": True, "embeddings": False},
    draining=True,
    addresses=("/ip4/192.0.2.1/tcp/4484",),
    left=True,
)

counts = st.integers(0, LARGEST)
texts = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=64)
plain = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=64)
nodes = st.builds(
    NodeData,
    peer_id=plain,
    name=texts,
    version=texts,
    incarnation=counts,
    seq=counts,
    last_seen=st.datetimes(timezones=st.just(timezone.utc)),
    available_vram=counts,
    total_vram=counts,
    gpus=st.lists(st.builds(Gpu, name=texts, total_vram=counts, available_vram=counts), max_size=4).map(tuple),
    in_flight=counts,
    capacity=counts,
    services=st.dictionaries(texts, st.booleans(), max_size=4),
    draining=st.booleans(),
    addresses=st.lists(plain, max_size=4).map(tuple),
    left=st.booleans(),
)


def node(**fields: Any) -> NodeData:
    return NodeData(**{"peer_id": "a", "last_seen": NOW} | fields)


def wire(**fields: Any) -> bytes:
    data: bytes = msgpack.packb({"peer_id": "a"} | fields)
    return data


def received(data: bytes) -> NodeData:
    return decode(data, received_at=NOW)


def refusal(data: bytes) -> str:
    with pytest.raises(RecordInvalid) as caught:
        received(data)
    return caught.value.detail


# Online


@pytest.mark.parametrize(
    ("silent", "online"),
    [
        (timedelta(0), True),
        (timedelta(seconds=39), True),
        (timedelta(seconds=40) - MOMENT, True),
        (timedelta(seconds=40), False),
        (timedelta(seconds=40) + MOMENT, False),
        (timedelta(days=1), False),
    ],
)
def test_online_window(silent: timedelta, online: bool) -> None:
    assert node(last_seen=NOW).is_online_at(NOW + silent) is online


def test_the_window_is_40_seconds() -> None:
    assert timedelta(seconds=40) == NODE_ONLINE_WINDOW


@pytest.mark.parametrize(
    ("every_s", "window_s"),
    [(0, 40), (1, 40), (16, 40), (17, 42.5), (1000, 2500), (1400, 3500), (1401, 3500), (LARGEST, 3500)],
)
def test_who_announces_rarely_is_online_for_longer(every_s: int, window_s: float) -> None:
    record = node(announce_every_s=every_s)
    assert record.is_online_at(NOW + timedelta(seconds=window_s) - MOMENT)
    assert not record.is_online_at(NOW + timedelta(seconds=window_s))
    assert not record.model_copy(update={"left": True}).is_online_at(NOW)


def test_a_tombstone_is_never_online() -> None:
    assert not node(left=True).is_online_at(NOW)


def test_a_draining_node_is_online() -> None:
    assert node(draining=True).is_online_at(NOW)


def test_online_does_not_depend_on_the_zone() -> None:
    tokyo = timezone(timedelta(hours=9))
    assert node().is_online_at((NOW + timedelta(seconds=39)).astimezone(tokyo))
    assert not node().is_online_at((NOW + timedelta(seconds=40)).astimezone(tokyo))


@pytest.mark.parametrize(("silent", "online"), [(timedelta(seconds=39), True), (timedelta(seconds=40), False)])
def test_is_online_asks_the_clock(monkeypatch: pytest.MonkeyPatch, silent: timedelta, online: bool) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return (NOW + silent).astimezone(tz)

    monkeypatch.setattr(records, "datetime", Clock)
    assert node().is_online() is online


# Offers


@pytest.mark.parametrize(
    ("fields", "offers"),
    [
        ({"services": {"chat": True}}, True),
        ({"services": {"chat": False}}, False),
        ({"services": {"default": True}}, False),
        ({"services": {}}, False),
        ({"services": {"chat": True}, "draining": True}, False),
        ({"services": {"chat": True}, "left": True}, False),
        ({"services": {"chat": True, "default": False}}, True),
    ],
)
def test_offers(fields: dict[str, Any], offers: bool) -> None:
    assert node(**fields).offers("chat") is offers


# The record itself


def test_defaults() -> None:
    record = NodeData(peer_id="a", last_seen=NOW)
    assert record.model_dump(exclude={"peer_id", "last_seen"}) == {
        "name": "",
        "version": "",
        "incarnation": 0,
        "seq": 0,
        "available_vram": 0,
        "total_vram": 0,
        "gpus": (),
        "in_flight": 0,
        "capacity": 0,
        "services": {},
        "http": (),
        "draining": False,
        "addresses": (),
        "relays": False,
        "via": (),
        "owner": False,
        "copied": (),
        "notifies": False,
        "left": False,
        "models": b"",
        "announce_every_s": 0,
    }


def test_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        node().seq = 1  # type: ignore[misc]


def test_defaults_are_not_shared() -> None:
    node().services["chat"] = True
    assert node().services == {}


def test_last_seen_needs_a_zone() -> None:
    with pytest.raises(ValidationError, match="timezone"):
        node(last_seen=NOW.replace(tzinfo=None))


# Codec


@given(nodes)
@example(FULL)
def test_round_trip(record: NodeData) -> None:
    assert decode(encode(record), received_at=record.last_seen) == record


def test_all_fields_but_last_seen_travel() -> None:
    assert msgpack.unpackb(encode(FULL)) == {
        "peer_id": "12D3KooWA",
        "name": "big box",
        "version": "0.1.0",
        "incarnation": 3,
        "seq": 17,
        "available_vram": 20 << 30,
        "total_vram": 24 << 30,
        "gpus": [{"name": "NVIDIA GeForce RTX 4090", "total_vram": 24 << 30, "available_vram": 20 << 30}],
        "in_flight": 2,
        "capacity": 8,
        "services": {"default": True, "embeddings": False},
        "draining": True,
        "addresses": ["/ip4/192.0.2.1/tcp/4484"],
        "left": True,
    }


def test_the_receiver_stamps_last_seen() -> None:
    later = NOW + timedelta(hours=1)
    assert decode(encode(FULL), received_at=later).last_seen == later


@pytest.mark.parametrize("claim", ["2999-01-01T00:00:00Z", 32503680000, None, [], msgpack.Timestamp(2**33)])
def test_last_seen_on_the_wire_is_ignored(claim: object) -> None:
    assert received(wire(last_seen=claim)).last_seen == NOW


def test_older_version_without_vram() -> None:
    """The record that nodes sent before VRAM was announced: it is read, and ranks lowest."""
    old = {"peer_id": "12D3KooWA", "name": "old box", "version": "0.0.9", "incarnation": 1, "seq": 5}
    old |= {"in_flight": 1, "services": {"default": True}}
    record = received(msgpack.packb(old))
    assert record == NodeData(**old, last_seen=NOW, available_vram=0, total_vram=0, gpus=())
    assert record.is_online_at(NOW)
    assert record.offers("default")


def test_newer_version_with_unknown_keys() -> None:
    gpu = {"name": "X", "total_vram": 2, "available_vram": 1, "temperature_c": 80}
    data = wire(seq=4, gpus=[gpu], colour="blue", nested={"deep": [1, 2.5, None, b"\xff"]})
    assert received(data) == node(seq=4, gpus=(Gpu(name="X", total_vram=2, available_vram=1),))


MODELS = pack({"default": catalog("ollama", [Model("llama3:latest", True, 5 << 30)])})


def test_the_former_version_ignores_models() -> None:
    former_fields = {name: (f.annotation, f) for name, f in NodeData.model_fields.items() if name != "models"}
    former: Any = create_model("Former", **former_fields)
    record = node(services={"default": True}, models=MODELS)
    read = former.model_validate(msgpack.unpackb(encode(record)) | {"last_seen": NOW})
    assert read.model_dump() == record.model_dump(exclude={"models"})


def test_models_travel_and_none_take_no_byte() -> None:
    assert received(encode(node(models=MODELS))).models == MODELS
    assert "models" not in msgpack.unpackb(encode(node()))


@pytest.mark.parametrize("models", [b"", b"no such form", b"\x00" * 5000])
def test_models_in_a_form_of_another_version_cost_their_node_no_more_than_them(models: bytes) -> None:
    assert unpack(received(wire(models=models)).models) == {}


def test_a_record_with_all_that_a_large_node_has_and_models_fits() -> None:
    rng = random.Random(3)
    hard = [Model(rng.randbytes(90).hex()) for _ in range(512)]
    large = node(
        peer_id="12D3KooW" + "p" * 44, name="n" * 64, version="v" * 20, models=pack({"default": catalog("ollama", hard)}),
        services={f"{n:x<64}": True for n in range(32)}, via=["12D3KooW" + "v" * 44] * 8,
        addresses=[f"/ip6/2001:db8:aaaa:bbbb:cccc:dddd:eeee:{n:04x}/tcp/44840" for n in range(32)],
        gpus=[Gpu(name="g" * 40, total_vram=2**40, available_vram=2**39)] * 8,
    )  # fmt: skip
    assert len(large.models) > 4000
    assert fitting(large) is large
    huge = large.model_copy(update={"gpus": large.gpus * 8, "addresses": ("/dns4/" + "a" * 90,) * 32})
    with pytest.raises(RecordInvalid):
        encode(huge)
    assert fitting(huge) == huge.model_copy(update={"models": b""})


def test_peer_id_alone_is_a_record() -> None:
    assert received(wire()) == node()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("peer_id", None),
        ("peer_id", ""),
        ("peer_id", "p" * 129),
        ("peer_id", "two words"),
        ("peer_id", "line\n"),
        ("peer_id", b"bytes"),
        ("name", "n" * 65),
        ("name", "red\x1b[31m"),
        ("name", "two\nlines"),
        ("name", "line\n"),
        ("name", "\x9b31m"),
        ("name", "\u2028"),
        ("name", None),
        ("name", 7),
        ("version", "v" * 65),
        ("incarnation", -1),
        ("seq", -1),
        ("seq", LARGEST + 1),
        ("seq", 1.0),
        ("seq", True),
        ("seq", "1"),
        ("seq", None),
        ("available_vram", -1),
        ("total_vram", LARGEST + 1),
        ("in_flight", -1),
        ("capacity", -1),
        ("gpus", {}),
        ("gpus", ["name"]),
        ("gpus", [{"name": "X", "total_vram": 1}]),
        ("gpus", [{"name": "X", "total_vram": -1, "available_vram": 0}]),
        ("gpus", [{"name": "X", "total_vram": 1, "available_vram": 1}] * 65),
        ("services", ["default"]),
        ("services", {"default": 1}),
        ("services", {"default": "true"}),
        ("services", {"evil\x1b[2J": True}),
        ("services", {"s" * 65: True}),
        ("services", {str(number): True for number in range(65)}),
        ("draining", 0),
        ("left", "no"),
        ("addresses", "/ip4/192.0.2.1/tcp/1"),
        ("addresses", [""]),
        ("addresses", ["a" * 257]),
        ("addresses", ["/dns4/a b/tcp/1"]),
        ("addresses", ["/ip4/192.0.2.1/tcp/1"] * 33),
    ],
)
def test_wrong_field_is_named(field: str, value: object) -> None:
    assert refusal(wire(**{field: value})).startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("peer_id", "p" * 128),
        ("name", "n" * 64),
        ("name", "K\N{LATIN SMALL LETTER U WITH DIAERESIS}che 2"),
        ("seq", 0),
        ("seq", LARGEST),
        ("services", {str(number): True for number in range(64)}),
        ("addresses", ["a" * 256] * 32),
        ("gpus", [{"name": "g" * 64, "total_vram": LARGEST, "available_vram": 0}] * 64),
    ],
)
def test_bounds_are_inclusive(field: str, value: object) -> None:
    assert msgpack.unpackb(encode(received(wire(**{field: value})))).get(field, 0) == value  # defaults do not travel


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"", "not msgpack"),
        (b"\xc1", "not msgpack"),
        (b"GET / HTTP/1.1\r\n\r\n", "not msgpack"),
        (encode(FULL)[:-1], "not msgpack"),
        (encode(FULL) + b"\x00", "not msgpack"),
        (b"\x91" * 10_000, "not msgpack"),
        (b"\xdd\xff\xff\xff\xff", "not msgpack"),
        (b"\xdf\xff\xff\xff\xff", "not msgpack"),
        (b"\x81\xa7peer_id\xa2\xff\xfe", "not msgpack"),
        (b"\x81\x01\x02", "not msgpack"),
        (b"\xc0", "not a map"),
        (b"\x90", "not a map"),
        (msgpack.packb("peer_id"), "not a map"),
        (b"\x80", "peer_id: Field required"),
        (msgpack.packb({b"peer_id": "a"}), "peer_id: Field required"),
    ],
)
def test_what_is_not_a_record(data: bytes, detail: str) -> None:
    assert refusal(data) == detail


def padded(size: int) -> bytes:
    data = wire(padding="")
    return data[:-1] + b"\xda" + (size - len(data) - 2).to_bytes(2, "big") + b"x" * (size - len(data) - 2)


def test_largest_record() -> None:
    assert len(padded(MAX_RECORD_BYTES)) == MAX_RECORD_BYTES
    assert received(padded(MAX_RECORD_BYTES)) == node()
    assert "at most 16384" in refusal(padded(MAX_RECORD_BYTES + 1))


def test_a_record_too_large_to_be_read_is_not_written() -> None:
    gpus = (Gpu(name="\N{GRINNING FACE}" * 64, total_vram=LARGEST, available_vram=LARGEST),) * 64
    with pytest.raises(RecordInvalid, match="at most 16384"):
        encode(node(gpus=gpus))


def check_any(data: bytes) -> None:
    """`data` is a record, in order, or it is refused with one printable line."""
    try:
        record = received(data)
    except RecordInvalid as error:
        refused = str(error)
    else:
        assert record.last_seen == NOW
        assert received(encode(record)) == record
        return
    assert refused.isprintable()


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(st.binary(max_size=200))
def test_arbitrary_bytes(data: bytes) -> None:
    check_any(data)


@given(st.data())
def test_damaged_records(data: st.DataObject) -> None:
    """Bytes that nearly are a record get further than noise does."""
    damaged = bytearray(encode(FULL))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    check_any(bytes(damaged))


@given(junk)
def test_arbitrary_msgpack(value: object) -> None:
    check_any(msgpack.packb(value))


@given(st.dictionaries(st.sampled_from(sorted(NodeData.model_fields)), junk, max_size=4))
def test_arbitrary_fields(fields: dict[str, object]) -> None:
    check_any(wire(**fields))
