"""The keys of a conversation: what changes them, and what must not."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.forward.http.conversation import MAX_PART, NO_KEYS, PROMPT_CHARS, WANTED, Keys, keys_of
from federation.forward.http.paths import Shape

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {"n": 1e5}}}}]
SYSTEM, USER = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is the sky blue?"}
ANSWER, MORE = {"role": "assistant", "content": "Rayleigh."}, {"role": "user", "content": "And at night?"}


def keys(
    shape: Shape = Shape.CHAT, model: str = "m", session: bytes = b"", *, indent: int | None = None, **body: Any
) -> Keys:
    members = {
        k: json.dumps(v, indent=indent).encode()[: WANTED[shape].get(k, 0)] for k, v in body.items() if k in WANTED[shape]
    }
    return keys_of(shape, model, members, session)


def backwards(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: backwards(item) for key, item in reversed(value.items())}
    return [backwards(item) for item in value] if isinstance(value, list) else value


def test_all_turns_of_a_chat_have_one_key_and_two_chats_have_two() -> None:
    first = keys(messages=[SYSTEM, USER], tools=TOOLS)
    assert keys(messages=[SYSTEM, USER, ANSWER, MORE], tools=TOOLS) == first
    other = keys(messages=[SYSTEM, MORE], tools=TOOLS)
    assert other.k0 == first.k0
    assert other.k1 != first.k1


def test_each_part_of_the_beginning_counts() -> None:
    seen = [
        keys(messages=[SYSTEM, USER]), keys(messages=[USER]), keys(messages=[SYSTEM, USER], tools=TOOLS),
        keys(messages=[{**SYSTEM, "content": "Be long."}, USER]), keys(messages=[SYSTEM, USER], model="other"),
        keys(messages=[SYSTEM, USER], functions=TOOLS, tools=TOOLS),
    ]  # fmt: skip
    assert len({k.k0 for k in seen}) == len(seen)
    assert len({k.k1 for k in seen}) == len(seen)
    assert len({keys(messages=[SYSTEM, USER], user=user).k1 for user in ("", "ann", "bob")}) == 3


def test_the_same_words_in_three_dialects_are_one_conversation() -> None:
    openai = keys(messages=[SYSTEM, USER])
    assert keys(messages=[{**SYSTEM, "role": "developer"}, USER]) == openai
    assert keys(system="Be brief.", messages=[USER]) == openai
    assert keys(system=[{"type": "text", "text": "Be brief.", "cache_control": {}}], messages=[USER]) == openai
    parts = {"role": "user", "content": [{"type": "text", "text": USER["content"], "cache_control": {"type": "ephemeral"}}]}
    assert keys(messages=[SYSTEM, parts]) == openai
    assert keys(Shape.RESPONSES, instructions="Be brief.", input=[USER]) == openai
    assert keys(Shape.RESPONSES, instructions="Be brief.", input=USER["content"]) == openai
    assert keys(model="M:latest", messages=[SYSTEM, USER]) == openai


def test_the_order_of_keys_and_spaces_do_not_count() -> None:
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x", "detail": "low"}}], "images": ["y"]}
    for messages in ([SYSTEM, USER], [SYSTEM, image]):
        one = keys(messages=messages, tools=TOOLS)
        assert keys(messages=backwards(messages), tools=backwards(TOOLS), indent=3) == one


def test_escapes_do_not_count() -> None:
    plain = {"messages": '[{"content":"für \U0001f600"}]'.encode(), "tools": '["é"]'.encode()}
    escaped = {"messages": b'[{"c\\u006fntent":"f\\u00fcr \\ud83d\\uDE00"}]', "tools": b'["\\u00e9"]'}
    assert keys_of(Shape.CHAT, "m", plain) == keys_of(Shape.CHAT, "m", escaped)


def test_what_changes_in_each_request_does_not_count() -> None:
    def claude_code(n: int) -> Keys:
        system = [
            {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2.1.{n}; cc_entrypoint=cli; cch=a{n}b;"},
            {"type": "text", "text": f"You are Claude Code.\nToday is 2026-11-{n}, {n}:30:0{n % 10}."},
        ]
        return keys(system=system, messages=[{**USER, "cache_control": {"n": n}}], tools=TOOLS)

    assert claude_code(10) == claude_code(28)
    one, other = ({**SYSTEM, "content": f"a cch={cch}; b"} for cch in ("1f0e", "ab"))
    assert keys(messages=[one, USER]) == keys(messages=[other, USER])


def test_a_first_message_counts_with_its_digits_and_images() -> None:
    def image(url: str, **more: Any) -> dict[str, Any]:
        return {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}, **more}]}

    assert keys(messages=[image("a", cache_control={})]) == keys(messages=[image("a")])

    assert keys(messages=[image("a")]).k1 != keys(messages=[image("b")]).k1
    assert keys(messages=[{"role": "user", "content": "1"}]).k1 != keys(messages=[{"role": "user", "content": "2"}]).k1
    assert keys(messages=[{**USER, "images": ["a"]}]).k1 != keys(messages=[{**USER, "images": ["b"]}]).k1


@pytest.mark.parametrize("where", ["session", "prompt_cache_key", "session_id"])
def test_a_client_may_name_its_conversation(where: str) -> None:
    def named(name: str, *messages: dict[str, str]) -> Keys:
        if where == "session":
            return keys(session=name.encode(), messages=[*messages])
        return keys(messages=[*messages], **{where: name})

    assert named("a", SYSTEM, USER).k1 == named("a", SYSTEM, MORE).k1 != named("b", SYSTEM, USER).k1
    assert named("a", SYSTEM, USER).k0 == keys(messages=[SYSTEM, USER]).k0
    assert named("", SYSTEM, USER) == keys(messages=[SYSTEM, USER])


def test_a_prompt_counts_by_its_beginning() -> None:
    long = 'Once upon a time, é\U0001f600\\" ' * 1000
    one = keys(Shape.PROMPT, prompt=long)
    assert keys(Shape.PROMPT, prompt=long[:PROMPT_CHARS] + "something else") == one
    assert keys_of(Shape.PROMPT, "m", {"prompt": json.dumps(long, ensure_ascii=False).encode()[:MAX_PART]}) == one
    assert keys(Shape.PROMPT, prompt=long[: PROMPT_CHARS - 1] + "x").k1 != one.k1
    assert keys(Shape.PROMPT, prompt=long[: PROMPT_CHARS - 1] + "x").k0 == one.k0
    assert keys(Shape.PROMPT, prompt=["a"]).k1 != keys(Shape.PROMPT, prompt=["b"]).k1
    assert keys(Shape.PROMPT, prompt="").k1 == b""


@given(st.text(min_size=1), st.integers(1, 40))
def test_a_prompt_that_was_cut_off_anywhere_counts_by_what_is_left(text: str, chars: int) -> None:
    """Twelve bytes a character are always enough."""
    from federation.forward.http.conversation import _beginning

    for is_ascii in (True, False):
        written = json.dumps(text, ensure_ascii=is_ascii).encode()
        assert _beginning(written, chars) == text[:chars]
        assert _beginning(written + b" ", chars) or not text  # never a traceback


def test_a_first_message_beyond_what_is_kept_has_one_key() -> None:
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x" * MAX_PART}}]}
    first = keys(messages=[SYSTEM, image])
    assert keys(messages=[SYSTEM, image, ANSWER, MORE]) == first
    assert first.k0 == keys(messages=[SYSTEM, USER]).k0
    assert first.k1 not in (b"", keys(messages=[SYSTEM, USER]).k1)


def test_what_has_no_beginning_has_no_key_of_its_own() -> None:
    assert keys(Shape.NONE, messages=[USER]) == NO_KEYS
    assert keys(messages=[]).k1 == b""
    assert keys(messages=[SYSTEM]).k1 == b""
    assert keys().k1 == b""
    assert keys().k0


@given(
    st.sampled_from(Shape),
    st.dictionaries(
        st.sampled_from(sorted({key for wanted in WANTED.values() for key in wanted})),
        st.binary(max_size=60) | st.text(st.sampled_from('[]{}",:\\u0d8role"content"')).map(str.encode),
    ),
    st.binary(max_size=5),
)
def test_any_members_are_borne(shape: Shape, members: dict[str, bytes], session: bytes) -> None:
    found = keys_of(shape, "m", members, session)
    assert keys_of(shape, "m", {key: bytearray(value) for key, value in members.items()}, session) == found
    assert len(found.k0) == (0 if shape is Shape.NONE else 16)
    assert len(found.k1) in (0, 16)


def test_deep_members_are_borne() -> None:
    for deep in (b"[" * 60_000 + b"]" * 60_000, b'{"a":' * 15_000 + b"1" + b"}" * 15_000, b'[{"content":' * 9000):
        for shape in Shape:
            keys_of(shape, "m", dict.fromkeys(WANTED[shape], deep))


@pytest.mark.parametrize(
    "written",
    [b'[{"content":[' + b"0," * 60_000 + b"0]}]", b'[{"content":[' + b"{}," * 40_000 + b"0]}]",
     b"[" + b"{}," * 40_000 + b"0]",
     b'[{"role":"system","content":"cch=' + b" " * 120_000 + b'"}]', b'"' + b"cch=a" * 25_000 + b'"', b'"' + b"\\" * 120_000,
     b'[{"role":"system"}' + b',{"role":"system"}' * 6000 + b"]"],
)  # fmt: skip
def test_nothing_that_fits_costs_much(written: bytes) -> None:
    """Measured: 20 ms at most."""
    began = time.process_time()
    for shape in Shape:
        keys_of(shape, "m", dict.fromkeys(WANTED[shape], written))
    assert time.process_time() - began < 2.0
