"""The compact form of models in a record: bounded both ways, and whatever the bytes, no error."""

from __future__ import annotations

import random
import zlib
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from federation.mesh import models
from federation.mesh.models import (
    MAX_DIGEST_BYTES,
    MAX_MODELS,
    MAX_PACKED_BYTES,
    Catalog,
    Model,
    catalog,
    is_called,
    is_name,
    pack,
    unpack,
)

quick = settings(max_examples=50)
MIB = 1 << 20

names = st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=40).filter(is_name)
rows = st.builds(Model, names, st.booleans(), st.integers(0, 2**40).map(lambda n: n * MIB % 2**52), st.integers(0, 64))
catalogs = st.dictionaries(
    st.sampled_from(("default", "embed", "tts")),
    st.builds(catalog, st.sampled_from(("ollama", "vllm", "")), st.lists(rows, max_size=20)).filter(lambda c: c.models),
    max_size=3,
)


def deflated(value: Any) -> bytes:
    return raw_deflated(msgpack.packb(value))


def raw_deflated(data: bytes) -> bytes:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return deflate.compress(data) + deflate.flush()


@quick
@given(catalogs)
def test_round_trip(listed: dict[str, Catalog]) -> None:
    data = pack(listed)
    assert len(data) <= MAX_PACKED_BYTES
    assert unpack(data) == listed


def test_nothing_is_nothing() -> None:
    assert pack({}) == pack({"default": catalog("vllm", [])}) == b""
    assert unpack(b"") == {}


def test_a_box_as_people_have_them_takes_some_hundred_bytes() -> None:
    sizes = ("1b", "3b", "7b", "14b", "32b")
    many = [Model(f"{family}:{size}", size == "7b", 4321 * MIB) for family in ("qwen2.5", "llama3.2") for size in sizes]
    assert len(pack({"default": catalog("ollama", many)})) < 150


def test_sizes_travel_in_whole_mib_rounded_up() -> None:
    (model,) = unpack(pack({"default": catalog("ollama", [Model("m", size=MIB + 1)])}))["default"].models
    assert model.size == 2 * MIB


def test_of_too_many_the_warm_ones_travel_and_the_rest_is_counted() -> None:
    rng = random.Random(1)
    hard = [Model(f"{n}-{rng.randbytes(80).hex()}", n % 100 == 0, rng.randrange(2**40)) for n in range(600)]
    data = pack({"default": catalog("ollama", hard), "embed": catalog("vllm", [Model("e")])})
    assert MAX_PACKED_BYTES * 0.8 < len(data) <= MAX_PACKED_BYTES
    listed = unpack(data)["default"]
    assert (listed.total, listed.is_listed) == (600, False)
    assert sum(model.warm for model in listed.models) == 6
    few = unpack(pack({"default": catalog("ollama", [Model("m")], total=1)}))["default"]
    assert few.is_whole


def test_512_names_of_a_usual_kind_fit() -> None:
    listed = unpack(pack({"default": catalog("ollama", [Model(f"llama3.1-{n}:8b-instruct-q4_K_M") for n in range(700)])}))
    assert len(listed["default"].models) == MAX_MODELS
    assert (listed["default"].total, listed["default"].is_listed, listed["default"].is_whole) == (700, False, True)


def test_names_that_found_no_place_are_known_by_a_digest() -> None:
    names = [f"llama3.1-{n}:8b-instruct-q4_K_M" for n in range(MAX_MODELS + 300)]
    listed = unpack(pack({"default": catalog("ollama", map(Model, names))}))["default"]
    shown = {model.name for model in listed.models}
    assert all(listed.may_have(name.upper()) for name in names if name not in shown)
    strangers = sum(listed.may_have(f"other-{n}") for n in range(2000))
    assert strangers < 40, "300 of 65,536 marks are taken"
    most = unpack(pack({"default": catalog("ollama", (Model(f"{n}") for n in range(5000)))}))["default"]
    assert (len(most.digest), most.is_whole) == (MAX_DIGEST_BYTES, False)
    many = pack({f"s{n}": catalog("x", [Model(f"{n} {m}") for m in range(64)]) for n in range(60)})
    assert sum(len(each.digest) for each in unpack(many).values()) <= MAX_DIGEST_BYTES


def test_a_digest_of_another_may_be_anything() -> None:
    for odd in (7, "x", None, b"abc", b"x" * 9000):
        (listed,) = unpack(deflated([["default", "x", 9000, [["a"]], odd]])).values()
        assert len(listed.digest) <= MAX_DIGEST_BYTES
        listed.may_have("b")


def test_names_that_cannot_be_compressed_at_all() -> None:
    rng = random.Random(2)
    alphabet = [chr(n) for n in range(0x4E00, 0x9F00)]
    hard = [Model("".join(rng.choices(alphabet, k=66))) for _ in range(512)]
    data = pack({f"s{n}": catalog("x", hard[n::8]) for n in range(8)})
    assert 0 < len(data) <= MAX_PACKED_BYTES
    assert all(listed.total == 64 for listed in unpack(data).values())


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("llama3:latest", True), ("/models/Llama 3.gguf", True), ("模型", True), ("x" * 200, True), ("x" * 201, False),
        ("é" * 101, False), ("", False), ("a\nb", False), ("a\x1b[2J", False), ("a\u202eb", False), ("\ud800", False),
        (7, False), (None, False), (b"m", False),
    ],
)  # fmt: skip
def test_names(name: object, is_one: bool) -> None:
    assert is_name(name) is is_one


@pytest.mark.parametrize(
    ("name", "asked", "kind", "is_it"),
    [
        ("llama3:latest", "llama3", "ollama", True), ("llama3:latest", "LLAMA3:Latest", "ollama", True),
        ("llama3:8b", "llama3", "ollama", False), ("llama3:latest", "llama3", "vllm", False), ("m", "m", "vllm", True),
        ("hf.co:8080/a/m:latest", "hf.co:8080/a/m", "ollama", True),
    ],
)  # fmt: skip
def test_what_a_server_means_by_a_name(name: str, asked: str, kind: str, is_it: bool) -> None:
    assert is_called(name, asked, kind) is is_it


def test_a_catalog_has_each_name_once_and_the_warm_ones_first() -> None:
    listed = catalog("x", [Model("b"), Model("a"), Model("b", True), Model("a")])
    assert listed == Catalog("x", (Model("b", True), Model("a")), 2)


@quick
@given(st.binary(max_size=200))
@example(raw_deflated(b"\xc1"))
def test_any_bytes_are_some_catalogs(data: bytes) -> None:
    assert isinstance(unpack(data), dict)
    assert isinstance(unpack(raw_deflated(data)), dict)


@pytest.mark.parametrize(
    "value",
    [
        None, 7, {}, "x", [7], [[]], [["default"]], [["default", "x", 1, 7]], [["default", 7, 1, []]],
        [["a\nb", "x", 1, [["m"]]]], [["default", "x", "1", []]], [["x" * 65, "x", 1, []]],
    ],
)  # fmt: skip
def test_what_is_no_such_form_has_no_models(value: Any) -> None:
    assert unpack(deflated(value)) == {}


def test_rows_that_are_none_are_left_out_and_more_columns_are_passed_over() -> None:
    odd = [["a", 1, 2, 3, "new"], ["b", -1, "x", 10**9], ["c", 5], [], [7], "d", ["e\x00"], ["f" * 201]]
    (listed,) = unpack(deflated([["default", "x", -5, odd, "new"]])).values()
    assert listed.models == (Model("a", True, 2 * MIB, 3), Model("b", False, 0, models.MAX_SLOTS), Model("c", True))
    assert listed.total == 0


def test_one_node_has_a_bounded_number_of_models_however_it_deals_them_out() -> None:
    many = [[f"s{n}", "x", 300, [[f"m{m}"] for m in range(300)]] for n in range(20)]
    assert sum(len(listed.models) for listed in unpack(deflated(many)).values()) == MAX_MODELS


def test_a_bomb_is_not_inflated() -> None:
    assert unpack(deflated([["default", "x", 1, [["m"]], "z" * 2**20]])) == {}
    assert unpack(deflated([["default", "x", 1, [["m"]]]])[:-1]) == {}  # cut off
