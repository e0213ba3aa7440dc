"""What one request asks for: its model, and the conversation that it goes on with. No I/O; no byte of the body is changed.

    peek = Peek("POST", "/v1/chat/completions", content_type=b"application/json")
    peek.asked                          None: more bytes are needed
    peek.feed(b'{"messages": [')        None
    peek.feed(b'...], "model": "m"}')   None: a further "model" would count instead
    peek.finish()                       Asked(model="m", keys=..., ...)

Rule 1: what is found is what the backend will find, or the request has a `trouble`. The last one of two equal keys counts.
A body that names two models in two spellings of the key ("model", "Model": Go's servers take both), twice in a form, or one
in the body and another one in the query, is in trouble: which one counts differs from server to server.
Rule 2: JSON is known by its first byte, not by its type. `curl -d` says that it sends a form, and Ollama takes it.
Rule 3: a body up to WHOLE goes through msgspec in one piece. A longer one, and one that msgspec refuses (it does so for half
of a surrogate pair anywhere in a message), goes through json_members as it comes. Both say the same.
Rule 4: nothing of a body is kept beyond WHOLE; up to there the chunks of the caller are kept, not copies.
Rule 5: a body that cannot be read names no model, and says why in `trouble`. It never raises.

Where an entry does not keep a whole body it may use `so_far`. It should go on to feed, and end the request if `finish`
says otherwise: a second "model" could come behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from federation.forward.http import conversation, paths
from federation.forward.http.conversation import NO_KEYS, Keys
from federation.forward.http.form_field import FormField, boundary_of
from federation.forward.http.json_members import Members, State, text_of
from federation.forward.http.paths import MAX_NAME, Path

if TYPE_CHECKING:
    from collections.abc import Mapping

WHOLE = 512 * 1024  # 0.2 ms; at worst, 100,000 keys, 15 ms and 10 MiB
MAX_CHUNKS = 1024  # a client that sends byte by byte costs no object a byte
MAX_WRITTEN_NAME = 6 * MAX_NAME + 2  # bytes of JSON
_IDS = {"previous_response_id": "responses", "conversation": "conversations", "input_file_id": "files"}

_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_SPACE = b" \t\r\n"


class Asked(NamedTuple):
    """`model`: "" if none was named. `target`: what the backend gets. `id`: of a thing that lives on one node, as
    "responses/resp_1". `trouble`: why the request cannot be understood, for an answer with 400."""

    model: str
    target: str
    keys: Keys = NO_KEYS
    id: str = ""
    trouble: str = ""


class Peek:
    """One request. `asked`: None until it is known; without a body it is known at once."""

    def __init__(
        self, method: str, target: str, *, content_type: bytes = b"", content_encoding: bytes = b"", session: bytes = b""
    ) -> None:
        self.path: Path = paths.read(method, target)
        self.asked: Asked | None = None
        self._session = session
        self._chunks: list[bytes] = []
        self._size = 0
        self._is_object = False  # its first byte has come
        self._members: Members | None = None
        self._form: FormField | None = None
        self._wanted = conversation.WANTED[self.path.shape]
        if not self.path.keys and not self._wanted:
            self._know()
        elif content_encoding.strip().lower() not in (b"", b"identity"):
            self._know(trouble="the body is compressed; send it as it is")
        elif (boundary := boundary_of(content_type)) is not None:
            self._form = FormField(boundary, b"model")

    def feed(self, chunk: bytes) -> Asked | None:
        """The next bytes of the body. Returns `asked`."""
        if self.asked is not None or not chunk:
            return self.asked
        if self._form is not None:
            self._form.feed(chunk)
            if self._form.is_broken:
                self._know(trouble="the form cannot be read")
            elif self._form.is_whole:
                self.finish()
        elif self._members is not None:
            self._scan(chunk)
        else:
            self._collect(chunk)
        return self.asked

    def finish(self) -> Asked:
        """The body has ended."""
        found = self._found(is_whole=True) if self.asked is None else None
        if self.asked is None and found is not None:  # nothing was found to be broken meanwhile
            self._know(*found)
        assert self.asked is not None
        return self.asked

    @property
    def so_far(self) -> Asked:
        """What the bytes until now say."""
        if self._chunks:
            self._scan_kept()
        return self.asked or self._asked(*self._found(is_whole=False))

    def _collect(self, chunk: bytes) -> None:
        if not self._is_object:
            chunk = chunk.lstrip(_SPACE)
            self._is_object = chunk.startswith(b"{")
            if chunk and not self._is_object:
                self._know()
            if not self._is_object:
                return
        self._chunks.append(chunk)
        self._size += len(chunk)
        if self._size > WHOLE:
            self._scan_kept()
        elif len(self._chunks) > MAX_CHUNKS:
            self._chunks = [b"".join(self._chunks)]

    def _scan_kept(self) -> None:
        self._members = Members(self._cap_of)
        chunks, self._chunks = self._chunks, []
        for chunk in chunks:
            self._scan(chunk)

    def _scan(self, chunk: bytes) -> None:
        if self._members is not None and self._members.feed(chunk) is State.BROKEN:
            self._know(trouble="the body is not JSON that can be read")

    def _cap_of(self, key: str) -> int:
        if key in self._wanted:
            return self._wanted[key]
        if key.lower() in self.path.keys:
            return MAX_WRITTEN_NAME
        return conversation.MAX_VALUE if key in _IDS else 0

    def _found(self, *, is_whole: bool) -> tuple[Mapping[str, bytes | bytearray], list[bytes], str]:
        """Members of JSON, values of a form's field, and what is wrong with the body."""
        if self._form is not None:
            trouble = "the form has no end" if is_whole and not self._form.is_whole else ""
            return {}, self._form.values, trouble
        if self._chunks:
            whole = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
            try:
                found = _MEMBERS.decode(whole)
            except (ValueError, RecursionError):
                self._scan_kept()
            else:
                self._chunks.clear()
                return {k: bytes(memoryview(v)[:cap]) for k, v in found.items() if (cap := self._cap_of(k))}, [], ""
        if self._members is None:
            return {}, [], ""
        trouble = ""
        if self._members.state is not State.ENDED and is_whole:
            trouble = "the body is not JSON that can be read"
        return self._members.kept, [], trouble

    def _know(
        self, members: Mapping[str, bytes | bytearray] | None = None, fields: list[bytes] | None = None, trouble: str = ""
    ) -> None:
        self.asked = self._asked(members or {}, fields or [], trouble)
        self._members = self._form = None
        self._chunks.clear()

    def _asked(self, members: Mapping[str, bytes | bytearray], fields: list[bytes], trouble: str) -> Asked:
        path = self.path
        if trouble:
            return Asked(path.model, path.target, id=path.id, trouble=trouble)
        try:
            model = path.model or self._named(members, fields)
        except ValueError as error:
            return Asked("", path.target, id=path.id, trouble=str(error))
        keys = conversation.keys_of(path.shape, model, members, self._session)
        return Asked(model, path.target, keys, path.id or _id(members))

    def _named(self, members: Mapping[str, bytes | bytearray], fields: list[bytes]) -> str:
        """The one model that the query, the form or the body names. Raises ValueError if it is not one."""
        named = {_field(value) for value in fields}
        for wanted in self.path.keys:
            spelt = {_member(value) for key, value in members.items() if key.lower() == wanted}
            if len(spelt) > 1:
                raise ValueError(f"the body has {wanted!r} in two spellings of the key, and they differ")
            named |= spelt
            if any(spelt):
                break
        if self.path.query_model:
            named.add(self.path.query_model)
        named.discard("")
        if len(named) > 1:
            raise ValueError("the request names two models")
        return named.pop() if named else ""


def _member(written: bytes | bytearray) -> str:
    """Raises ValueError for a string that cannot be a model's name; any other value names none."""
    if not written.startswith(b'"'):
        return ""
    name = text_of(written) if len(written) < MAX_WRITTEN_NAME else None
    return _checked(name)


def _field(value: bytes) -> str:
    return _checked(value.decode("utf-8", "replace"))


def _checked(name: str | None) -> str:
    if name is None or len(name) > MAX_NAME:
        raise ValueError(f"the model's name is no text of at most {MAX_NAME} characters")
    return name


def _id(members: Mapping[str, bytes | bytearray]) -> str:
    for key, kind in _IDS.items():
        if key in members and (name := text_of(members[key])):
            return f"{kind}/{name}"
    return ""
