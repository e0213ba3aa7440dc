"""Which conversation a request goes on with, as two keys: requests with equal keys share the beginning of their prompt.

k0 is the model, the tools and the system text; k1 is k0 and the first message that is not the system's. All turns of a chat
have one k1, and all chats of one application one k0. See homes.py for what the keys are for.

    body                                                          k0                              k1
    messages: [system, user, assistant, user]                     model, tools, system            k0, user, first message
    system, messages: [user, ...]  (Anthropic)                    the same for the same words
    instructions, input: text or items  (Responses)               the same
    prompt  (completions, Ollama's generate)                      model, system, 256 characters   k0, 2048 characters
    X-Session-Id, or prompt_cache_key, or session_id              as above                        model, that value

Rule 1: the keys do not depend on the order of keys, on spaces or escapes in JSON, nor on a text being one string or parts.
Rule 2: what changes in every request is left out. Claude Code's first system block is a billing header with a new `cch=`
each time; system texts tell the time, so their digits do not count; `cache_control` wanders from message to message. The
backend gets all of it.
Rule 3: at most MAX_PART bytes of each member are looked at. Of a longer one the beginning counts as it is written: a first
message with a large image has one k1 for as long as its client writes it in one way.
Rule 4: an empty key is none. Only what a model generates from has keys: an embedding has no prefix to find again.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

from federation.forward.http.paths import Shape, ollama_name

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_PART = 128 * 1024  # Claude Code's tools are 80 kB
MAX_VALUE = 1024  # of a key that a client names; a longer one counts by its beginning
MAX_PARTS = 64  # of a message
MAX_OPENING = 64  # system messages that are read to find the first other one
MAX_TOOLS_SEEN = 256
PROMPT_CHARS, PROMPT_OPENING_CHARS = 2048, 256

_SYSTEM = ("system", "developer")
_TOOLS = ("tools", "functions")
_NAMED = ("prompt_cache_key", "session_id")
_CHAT = {**dict.fromkeys(_TOOLS, MAX_PART), **dict.fromkeys((*_NAMED, "user"), MAX_VALUE)}
# The members of a body that the keys are made of, and how much of each.
WANTED: Mapping[Shape, Mapping[str, int]] = {
    Shape.NONE: {},
    Shape.CHAT: {**_CHAT, "system": MAX_PART, "messages": MAX_PART},
    Shape.RESPONSES: {**_CHAT, "instructions": MAX_PART, "input": MAX_PART},
    Shape.PROMPT: {**_CHAT, "system": MAX_PART, "prompt": MAX_PART},
}

_BILLING = "x-anthropic-billing-header:"
_CCH = re.compile(r"\bcch=[0-9A-Za-z]{1,64};")
_DIGITS = b"0123456789"
_WANDERING = frozenset({"cache_control"})
_NOT_OF_A_MESSAGE = frozenset({"cache_control", "role", "id", "status", "type"})
_GAP = re.compile(r"[ \t\r\n,]*")
_HALF_AN_ESCAPE = re.compile(rb"(?<!\\)(?:\\\\)*(\\(?:u[0-9a-fA-F]{0,3})?)\Z")


class Keys(NamedTuple):
    k0: bytes = b""
    k1: bytes = b""


NO_KEYS = Keys()


def keys_of(shape: Shape, model: str, members: Mapping[str, bytes | bytearray], session: bytes = b"") -> Keys:
    """`members`: those of the body that are WANTED, as they were written. `session`: X-Session-Id."""
    if shape is Shape.NONE:
        return NO_KEYS
    salt = ollama_name(model).encode("utf-8", "replace")
    system: list[str] = []
    first = b""
    for key in ("system", "instructions"):
        if key in members:
            system += _texts(_value(members[key]))
    if shape is Shape.PROMPT:
        prompt = members.get("prompt", b"")
        first = _beginning(prompt, PROMPT_CHARS).encode("utf-8", "surrogatepass")
        system.append(_beginning(prompt, PROMPT_OPENING_CHARS))
    else:
        said, first = _opening(members.get("messages" if shape is Shape.CHAT else "input", b""))
        system += said
    words = b"\n".join(filter(None, map(_lasting, system)))
    tools = [_tools(members[key]) for key in _TOOLS if key in members]
    k0 = _digest(b"k0", salt, words, *tools)
    named = session or next((_named(members[key]) for key in _NAMED if _named(members.get(key, b""))), b"")
    if named:
        return Keys(k0, _digest(b"named", salt, named[:MAX_VALUE]))
    return Keys(k0, _digest(b"k1", k0, _named(members.get("user", b"")), first) if first else b"")


def _digest(kind: bytes, *parts: bytes) -> bytes:
    digest = blake2b(digest_size=16, person=kind)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


_tools_seen: OrderedDict[bytes, bytes] = OrderedDict()


def _tools(written: bytes | bytearray) -> bytes:
    """A digest that does not depend on how they are written. 80 kB take 0.7 ms the first time, then 0.1 ms."""
    as_written = blake2b(written, digest_size=16).digest()
    found = _tools_seen.get(as_written)
    if found is None:
        found = _tools_seen[as_written] = _digest(b"tools", _canonical(_value(written)))
        if len(_tools_seen) > MAX_TOOLS_SEEN:
            _tools_seen.popitem(last=False)
    return found


# Numbers stay text: "1e999" has no value, and one of 4,301 digits is an error.
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str, strict=False)


def _value(written: bytes | bytearray) -> Any:
    """A value, or the text as it was written if it was cut off or is not JSON."""
    text = written.decode("utf-8", "replace")
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError):
        return text


def _canonical(value: Any) -> bytes:
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    except RecursionError:  # it was read with a few frames less
        return b""


def _without(value: Any, keys: frozenset[str]) -> Any:
    """Without these keys of an object; in a list, of the objects in it."""
    if isinstance(value, list):
        return [_without(item, keys) if isinstance(item, dict) else item for item in value]
    return {key: item for key, item in value.items() if key not in keys} if isinstance(value, dict) else value


def _texts(content: Any) -> list[str]:
    """The texts of a content, which is a string or parts; then all parts that are no text, as one."""
    if isinstance(content, str):
        return [content]
    texts, others = [], []
    for part in content[:MAX_PARTS] if isinstance(content, list) else [content]:
        text = part.get("text") if isinstance(part, dict) else part
        if isinstance(text, str):
            texts.append(text)
        elif part is not None:
            others.append(_without(part, _WANDERING))
    return [*texts, _canonical(others).decode()] if others else texts


def _lasting(text: str) -> bytes:
    """A system text without what is another one in each request; among it all digits, which tell dates and times."""
    if _BILLING in text:
        text = "\n".join(line for line in text.split("\n") if not line.lstrip().startswith(_BILLING))
    if "cch=" in text:
        text = _CCH.sub("", text)
    return text.encode("utf-8", "surrogatepass").translate(None, _DIGITS).strip()


def _opening(written: bytes | bytearray) -> tuple[list[str], bytes]:
    """The system's texts at the beginning of messages, and the first message after them; as written if it is cut off."""
    text = written.decode("utf-8", "replace")
    if not text.startswith("["):
        return [], "\n".join(_texts(_value(written))).encode("utf-8", "surrogatepass") if text else b""
    system: list[str] = []
    at = _end_of_gap(text, 1)
    for _ in range(MAX_OPENING):
        if at >= len(text) or text[at] == "]":
            return system, b""
        try:
            message, end = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            break
        if not isinstance(message, dict):
            return system, _canonical(message)
        texts = _texts(message.get("content"))
        if message.get("role") not in _SYSTEM:
            rest = _canonical({k: v for k, v in message.items() if k not in _NOT_OF_A_MESSAGE and k != "content"})
            return system, "\n".join(texts).encode("utf-8", "surrogatepass") + (b"" if rest == b"{}" else rest)
        system += texts
        at = _end_of_gap(text, end)
    return system, text[at:].encode("utf-8", "surrogatepass")


def _end_of_gap(text: str, at: int) -> int:
    return _GAP.match(text, at).end()  # type: ignore[union-attr]  # matches always


def _beginning(written: bytes | bytearray, chars: int) -> str:
    """The first characters of a string; of any other value, what is written."""
    if not written.startswith(b'"'):
        return written[:chars].decode("utf-8", "replace")
    most = 1 + 12 * chars  # each character is two escapes at most
    if len(written) <= most:
        value = _value(written)
        if value != written.decode("utf-8", "replace"):
            return str(value)[:chars]
    cut = bytes(written[1:most])
    if (half := _HALF_AN_ESCAPE.search(cut, max(0, len(cut) - 64))) is not None:
        cut = cut[: half.start(1)]
    value = _value(b'"' + cut.decode("utf-8", "ignore").encode() + b'"')
    return str(value)[:chars]


def _named(written: bytes | bytearray) -> bytes:
    """A value that a client names a conversation by; b"" for "", null, an object or an array."""
    value = bytes(written)
    return b"" if value in (b"", b'""', b"null") or value[:1] in (b"[", b"{") else value
