"""Members of an object as bytes come: the transcripts, and what Python's own reader says of the same."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.forward.http import json_members
from federation.forward.http.json_members import MAX_KEY, MAX_MEMBERS, MAX_STEPS, PIECE, Members, State, text_of

ANY = 1 << 30

texts = st.text(st.characters(codec="utf-8") | st.sampled_from('\\"{}[],:é\U0001f600'), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
spaces = st.sampled_from(["", "", " ", "\n", " \t\r\n"])


@st.composite
def objects(draw: st.DrawFn) -> tuple[bytes, dict[str, Any]]:
    """An object with all that JSON allows: repeated keys, spaces, escapes. Its bytes, and what they say."""
    pairs = draw(st.lists(st.tuples(texts | st.sampled_from(["model", "tools", "m\u00f6del"]), values), max_size=6))
    is_ascii = draw(st.booleans())

    def write(value: object) -> str:
        return json.dumps(value, ensure_ascii=is_ascii, indent=draw(st.sampled_from([None, 1])))

    gap = draw(spaces)
    body = f"{gap},".join(f"{gap}{write(k)}{gap}:{gap}{write(v)}" for k, v in pairs)
    return f"{gap}{{{body}{gap}}}{gap}".encode(), dict(pairs)


def fed(data: bytes, *cuts: int) -> Members:
    members = Members(lambda _key: ANY)
    for begin, end in zip((0, *cuts), (*cuts, len(data)), strict=True):
        members.feed(data[begin:end])
    return members


def read(members: Members) -> dict[str, Any]:
    return {key: json.loads(value) for key, value in members.kept.items()}


def test_the_transcript_of_its_head() -> None:
    members = Members({"model": 100, "messages": 4}.get)  # type: ignore[arg-type]
    assert members.feed(b'{"messages": [{"content": "\\"model\\"') is State.NESTED
    assert members.feed(b':1"}], "mod\\u0065l"  : "llama3"') is State.AFTER
    assert members.kept == {"messages": b'[{"c', "model": b'"llama3"'}
    assert members.feed(b"}") is State.ENDED
    assert members.feed(b" \n") is State.ENDED
    assert members.feed(b"{") is State.BROKEN


@given(objects(), st.data())
def test_it_finds_what_json_finds_however_the_bytes_are_split(
    made: tuple[bytes, dict[str, Any]], data: st.DataObject
) -> None:
    body, expected = made
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=6)))
    members = fed(body, *cuts)
    assert members.state is State.ENDED
    assert read(members) == expected


@given(objects())
def test_byte_by_byte(made: tuple[bytes, dict[str, Any]]) -> None:
    body, expected = made
    assert read(fed(body, *range(1, len(body)))) == expected


@given(objects(), st.integers(1, 40), st.integers(1, 8))
def test_small_pieces_go_every_way_through_the_long_one(made: tuple[bytes, dict[str, Any]], piece: int, small: int) -> None:
    body, expected = made
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_members, "PIECE", piece)
        patch.setattr(json_members, "SMALL", small)
        assert read(fed(body)) == expected


@given(st.binary(max_size=200) | st.text(st.sampled_from('{}[]",:\\u0 1am'), max_size=60).map(str.encode), st.data())
def test_any_bytes_are_borne_and_say_one_thing_however_they_are_split(data: bytes, draw: st.DataObject) -> None:
    for body in (data, b"{" + data):
        whole = fed(body)
        cuts = sorted(draw.draw(st.lists(st.integers(0, len(body)), max_size=4)))
        split = fed(body, *cuts)
        assert split.state is whole.state
        if whole.state is not State.BROKEN:
            assert split.kept == whole.kept
        try:
            expected = json.loads(body)
        except (ValueError, RecursionError):
            continue
        if isinstance(expected, dict) and all(text_of(json.dumps(key).encode()) is not None for key in expected):
            assert whole.state is State.ENDED
            assert read(whole).keys() == expected.keys()


@pytest.mark.parametrize(
    "body",
    [b"", b"[", b"1", b"{,", b'{"a"}', b'{"a" 1}', b'{"a":}', b'{"a":,', b'{"a":1 2}', b'{"a":1,}', b'{a:1}', b"{'a':1}",
     b"}", b'{"a":1}}', b'{"a":"x""b":1}', b"\xef\xbb\xbf{}", b'{"a":1}\0', b"{]", b'{"a":]}'],
)  # fmt: skip
def test_what_is_no_object_is_never_whole(body: bytes) -> None:
    assert fed(body).state is not State.ENDED


def test_it_passes_over_what_a_strict_parser_refuses() -> None:
    deep = b"[" * 200_000 + b"]" * 200_000
    body = b'{"a":"\\ud800","b":NaN,"c":-Infinity,"d":' + b"9" * 200_000 + b',"e":"\xff","f":' + deep + b',"model":"m"}'
    members = Members(lambda key: 100 if key == "model" else 0)
    assert members.feed(body) is State.ENDED
    assert members.kept == {"model": b'"m"'}


def test_keys_and_values_are_bounded() -> None:
    members = Members(lambda _key: 10)
    assert members.feed(b'{"' + b"k" * (MAX_KEY + 1) + b'":1,"' + b"k" * 3_000_000) is State.IN_KEY
    assert len(members._key) <= 2 * MAX_KEY + 2
    assert members.feed(b'":"' + b"v" * 1_000_000 + b'"}') is State.ENDED
    assert not members.kept
    members = Members(lambda _key: 10)
    assert members.feed(b'{"a":"' + b"v" * 1_000_000 + b'","b":[' + b"1," * 100_000 + b"1]}") is State.ENDED
    assert members.kept == {"a": b'"vvvvvvvvv', "b": b"[1,1,1,1,1"}


def test_too_many_members_are_not_read() -> None:
    assert fed(b'{"a":1' + b',"a":1' * (MAX_MEMBERS - 1) + b"}").state is State.ENDED
    assert fed(b'{"a":1' + b',"a":1' * MAX_MEMBERS + b"}").state is State.BROKEN


def test_brackets_beyond_all_reason_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 20 nested ones a few are left in each piece after all rounds, so each one has to be looked at."""
    monkeypatch.setattr(json_members, "MAX_STEPS", 1000)
    tower = (b"[" * 40 + b"]" * 40 + b",") * 100
    assert fed(b'{"a":[' + tower + b"1]}").state is State.BROKEN
    assert fed(b'{"a":[' + b"[[]]," * 100_000 + b"1]}").state is State.ENDED


def test_a_second_value_of_a_key_replaces_the_first() -> None:
    assert fed(b'{"a":"one","a":[2],"a":3}').kept == {"a": b"3"}


def test_a_long_body_in_one_chunk_and_in_many() -> None:
    rng = random.Random(1)
    messages = [
        {
            "role": "user",
            "content": [{"type": "text", "text": '\\"{[' * rng.randrange(300)}, {"n": [[[[[[[[rng.random()]]]]]]]]}],
        }
        for _ in range(2000)
    ]
    body = json.dumps({"messages": messages, "model": "m", "tools": [{}]}).encode()
    assert len(body) > 10 * PIECE
    for size in (len(body), 70_001, PIECE, 1460):
        members = fed(body, *range(size, len(body), size))
        assert members.state is State.ENDED
        assert read(members) == {"messages": messages, "model": "m", "tools": [{}]}
        assert members.kept["model"] == b'"m"'


@pytest.mark.parametrize(
    "filling",
    [b"[],", b"[[[[[[[[[[[[]]]]]]]]]]]],", b'"",', b'"\\"",', b"{}," , b'{"a":"b"},', b"1,", b'"\\\\\\\\",',
     b'[{"":[""]}],'],
)  # fmt: skip
def test_no_filling_costs_much(filling: bytes) -> None:
    """100 ns a byte at most, on a machine that is busy too: measured are 2 to 40."""
    body = b'{"a":[' + filling * (4_000_000 // len(filling)) + b'1],"model":"m"}'
    members = Members(lambda key: 10 if key == "model" else 0)
    began = time.process_time()
    members.feed(body)
    assert time.process_time() - began < len(body) * 500e-9
    assert members.state is State.ENDED or members._steps > MAX_STEPS


def test_a_backslash_outside_of_strings_counts_the_same_wherever_the_pieces_end() -> None:
    """No JSON, and no string either: the bracket behind it is one. Found by scripts/fuzz."""
    for data in (b'{"a": [\\[ "\\[" \\{]]], "model": "m"}', b'{"a": [\\"]", \\\\[]], "model": "m"}'):
        whole = fed(data)
        for at in range(1, len(data)):
            pieces = fed(data, at)
            assert (pieces.state, pieces.kept) == (whole.state, whole.kept)
