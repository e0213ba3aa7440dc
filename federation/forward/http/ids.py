"""Things that live on the node that made them: stored responses, files, batches, conversations, assistants' threads.
Sans-IO, no clock: callers pass `now`.

    POST /v1/responses   ->  {"id": "resp_1", ...}             the node that answered has responses/resp_1
    GET  /v1/responses/resp_1                                  goes there, wherever else the model is
    POST /v1/responses   {"previous_response_id": "resp_1"}    likewise, and so does what that makes
    POST /v1/batches     {"input_file_id": "file-1"}           likewise, by the file

Rule 1: of the answer to a request that makes something, FIRST bytes are looked at for its id; of a stream for that of the
first event that has a response. Other answers are not looked at.
Rule 2: who is said first to have made an id keeps it: another node's backend cannot take it over.
Rule 3: an entry knows what it has passed on itself, MAX_IDS of the newest use, for KEPT_S each. Other entries are not told;
they may ask, by the hash of service and name (`digest_of`).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from hashlib import sha256
from typing import TYPE_CHECKING

from federation.forward.http.json_members import Members, text_of
from federation.forward.http.paths import made_by

if TYPE_CHECKING:
    from collections.abc import Iterable

    from federation.forward.http.head import ResponseHead

FIRST = 2048  # bytes; the id is the first member at all servers that are known
MAX_ID = 256  # bytes of an id; real ones have at most 80
MAX_IDS = 8192  # at most 5 MB
KEPT_S = 24 * 3600.0  # since its last use
_IN_EVENT = re.compile(
    rb'"response"\s*:\s*\{\s*"id"\s*:\s*"([!#-\[\]-~]{1,%d})"|"id"\s*:\s*"(resp_[!#-\[\]-~]{1,%d})"' % (MAX_ID, MAX_ID - 5)
)


class Ids:
    """The things that nodes made, as far as one entry knows: the name, as "responses/resp_1", and the peer that made it."""

    def __init__(self) -> None:
        self._makers: OrderedDict[tuple[str, str], tuple[str, float]] = OrderedDict()  # by service and name: peer, until
        self._digests: dict[bytes, tuple[str, str]] = {}

    def made(self, service: str, name: str, peer_id: str, now: float) -> None:
        if self.maker(service, name, now) not in ("", peer_id):
            return
        self._makers[service, name] = peer_id, now + KEPT_S
        self._makers.move_to_end((service, name))
        self._digests[digest_of(service, name)] = service, name
        if len(self._makers) > MAX_IDS:
            self._forget(next(iter(self._makers)))

    def maker(self, service: str, name: str, now: float) -> str:
        """The peer id of the node that made it; empty if that is not known here."""
        peer_id, until = self._makers.get((service, name), ("", now))
        if until <= now:
            self._forget((service, name))
            return ""
        self._makers[service, name] = peer_id, now + KEPT_S
        self._makers.move_to_end((service, name))
        return peer_id

    def maker_by(self, digest: bytes, now: float) -> str:
        """As `maker`, for another entry that asks."""
        key = self._digests.get(digest)
        return "" if key is None else self.maker(*key, now)

    def _forget(self, key: tuple[str, str]) -> None:
        if self._makers.pop(key, None) is not None:
            del self._digests[digest_of(*key)]


def digest_of(service: str, name: str) -> bytes:
    return sha256(f"{service}\0{name}".encode(errors="replace")).digest()


class Maker:
    """The answer to a request that makes something of that kind. `name`: what it has made, empty until that is known."""

    __slots__ = ("_is_stream", "_kind", "_members", "_seen", "name")

    def __init__(self, kind: str, *, is_stream: bool) -> None:
        self.name = ""
        self._kind = kind
        self._is_stream = is_stream
        self._members = Members(lambda key: MAX_ID + 3 if key == "id" else 0)
        self._seen = bytearray()

    def feed(self, content: Iterable[memoryview]) -> str:
        """The next content of its body. Returns `name`."""
        for part in content:
            if self.name or len(self._seen) >= FIRST:
                break
            new = bytes(part[: FIRST - len(self._seen)])
            self._seen += new
            found = self._in_events() if self._is_stream else self._in_object(new)
            if found and len(found) <= MAX_ID and found.isprintable():
                self.name = f"{self._kind}/{found}"
        return self.name

    def _in_object(self, new: bytes) -> str:
        self._members.feed(new)
        return text_of(self._members.kept.get("id", b"")) or ""

    def _in_events(self) -> str:
        match = _IN_EVENT.search(self._seen)
        return (match[1] or match[2]).decode() if match is not None else ""


def maker_of(method: str, target: str, answer: ResponseHead) -> Maker | None:
    """For the answer to that request; None where it makes nothing that is asked for later."""
    kind = made_by(method, target)
    if not kind or not 200 <= answer.status < 300 or answer.get(b"content-encoding") not in (None, b"identity"):
        return None
    content_type = answer.get(b"content-type") or b""
    is_stream = content_type.startswith(b"text/event-stream")
    return Maker(kind, is_stream=is_stream) if is_stream or content_type.startswith(b"application/json") else None
