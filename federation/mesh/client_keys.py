"""Client keys: what a client shows at an entry's port, as a table that all nodes of the network agree on.

A key is text, shown once to the person who made it; the table has its hash. Any member makes keys and revokes them, since
any member could serve a client anyway. Each row is one statement, signed by the node that made it:

    a key         [0, hash, made at, name, models, expires at, requests, seconds]
    a revocation  [1, hash, made at, name]                                          takes the place of its key, for good

    signed = the signer's public key (32 bytes), its signature (64), msgpack of the statement

Rule 1: no I/O and no clock; callers pass `now_ms`.
Rule 2: of two rows with one hash a revocation wins, then the larger bytes. So tables that heard of the same rows agree.
Rule 3: no row gives way to another key's. A full table takes no further keys, and one signer never fills it; but a
revocation of a known key always has room.
Rule 4: a statement may have more fields, and a row may be a statement of another kind, by a newer version.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import msgpack
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.errors import NotDone, NotFound, ProtocolViolation
from federation.mesh.models import is_name as is_model
from federation.net import identity

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PREFIX = "fedk_"  # by which people, secret scanners and this program's own logs know a key
SECRET_CHARS = 32  # of 62: 190 bits. Letters and digits only, so that a double click selects a key
MAX_NAME_CHARS = 64
MAX_MODELS = 16
MAX_REQUESTS, MAX_RATE_S = 1_000_000, 86_400
MAX_LIVE = 1000  # keys that are valid
MAX_ROWS = 2048  # with those that were revoked or expired
SHARE = 2  # one signer has at most so large a part of either: a half
MAX_SIGNED_BYTES = 4096  # MAX_MODELS names of the longest have 3.3 kB. Together 8 MiB, on disk 11 (state.MAX_FILE_BYTES)
DAY_MS = 86_400_000
MAX_MS = 2**42  # the year 2109

_KEY, _REVOKED = 0, 1
_HEAD = identity.KEY_BYTES + identity.SIGNATURE_BYTES
_CONTEXT = b"federation/1 client key\0"  # the identity signs other things too
_ALPHABET = string.ascii_letters + string.digits
_TEXT = re.compile(rf"{PREFIX}[A-Za-z0-9]{{{SECRET_CHARS}}}")


class Statement(NamedTuple):
    """`id`: the key's hash. Times in ms since 1970, UTC; `expires_ms` and `requests` are 0 without a limit."""

    id: bytes
    by: str  # peer id of the signer
    at_ms: int
    name: str
    is_revoked: bool = False
    models: tuple[str, ...] = ()  # empty: all
    expires_ms: int = 0
    requests: int = 0  # in so many seconds
    seconds: int = 0

    def is_live(self, now_ms: int) -> bool:
        return not self.is_revoked and not (self.expires_ms and self.expires_ms <= now_ms)


class Row(NamedTuple):
    statement: Statement
    signed: bytes

    @property
    def rank(self) -> tuple[bool, bytes]:
        return self.statement.is_revoked, self.signed

    @property
    def mark(self) -> bytes:
        """Tells this row from an older one of the key."""
        return hashlib.sha256(self.signed).digest()[:8]


def new_text() -> str:
    """A new key. A secret."""
    return PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(SECRET_CHARS))


def id_of(text: str) -> bytes:
    """The hash of a key. A key has 190 random bits, so that a plain hash tells nothing about it."""
    return hashlib.sha256(_CONTEXT + text.encode()).digest()


def is_text(text: str) -> bool:
    """Whether it has the form of a key."""
    return _TEXT.fullmatch(text) is not None


class KeyTable:
    """The rows by hash. `network`: the bytes that name it, so that no statement counts in another network."""

    def __init__(self, network: bytes) -> None:
        self._context = _CONTEXT + network
        self._rows: dict[bytes, Row] = {}
        self._summary: bytes | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key_id: object) -> bool:
        return key_id in self._rows

    def find(self, text: str) -> Statement | None:
        """What is known of the key of this text. Found by its hash, so the time tells nothing about other keys."""
        row = self._rows.get(id_of(text)) if is_text(text) else None
        return None if row is None else row.statement

    def live(self, now_ms: int) -> list[Statement]:
        """The valid keys, by name."""
        found = (row.statement for row in self._rows.values())
        return sorted((s for s in found if s.is_live(now_ms)), key=lambda s: (s.name, s.at_ms))

    # Ours

    def add(self, seed: bytes, text: str, statement: Statement, now_ms: int) -> Row:
        """Sign a new key and keep it. Raises NotDone if a valid key has that name, or where there is no room."""
        if any(key.name == statement.name for key in self.live(now_ms)):
            raise NotDone(f"there is a key {statement.name!r}; revoke it first, or choose another name")
        row = self._signed(
            seed,
            [
                _KEY, id_of(text), statement.at_ms, statement.name, list(statement.models),
                statement.expires_ms, statement.requests, statement.seconds,
            ],
        )  # fmt: skip
        if not self.merge(row, now_ms):
            raise NotDone(
                f"the table of client keys is full ({MAX_LIVE} keys, a node makes half of them); revoke some first"
            )
        return row

    def revoke(self, seed: bytes, name: str, now_ms: int) -> list[Row]:
        """Revoke all valid keys of that name. Raises NotFound."""
        found = [key for key in self.live(now_ms) if key.name == name]
        if not found:
            raise NotFound(f"no client key {name!r}; `federation key list` shows them")
        rows = [self._signed(seed, [_REVOKED, key.id, now_ms, key.name]) for key in found]
        for row in rows:
            self.merge(row, now_ms)
        return rows

    def drop(self, row: Row) -> None:
        """Take back a key that could not be saved, and was shown to nobody."""
        if self._rows.get(row.statement.id) is row:
            del self._rows[row.statement.id]
            self._summary = None

    # Theirs

    def read(self, signed: bytes) -> Row | None:
        """Check a row that another node hands over; None for a kind of statement that this version does not know.

        Raises ProtocolViolation for a row that no honest node makes, whatever the bytes.
        """
        if not _HEAD < len(signed) <= MAX_SIGNED_BYTES:
            raise ProtocolViolation("a client key's row that is too short or too long")
        key, body = signed[: identity.KEY_BYTES], signed[_HEAD:]
        if not identity.is_signed(self._context + body, signed[identity.KEY_BYTES : _HEAD], key):
            raise ProtocolViolation("a client key that its maker did not sign")
        statement = _read(str(identity.peer_id(key)), body)
        return None if statement is None else Row(statement, signed)

    def knows(self, signed: bytes) -> bool:
        """Whether this very row is here, so that its signature need not be checked."""
        try:
            match msgpack.unpackb(signed[_HEAD:MAX_SIGNED_BYTES]):
                case [int(), bytes(key_id), *_]:
                    return (row := self._rows.get(key_id)) is not None and row.signed == signed
        except ValueError:
            pass
        return False

    def merge(self, row: Row, now_ms: int) -> bool:
        """Take a row in. Returns whether that changed anything."""
        known = self._rows.get(row.statement.id)
        if known is not None:
            if row.rank <= known.rank:
                return False
        elif not self._has_room(row.statement, now_ms):
            return False
        self._rows[row.statement.id] = row
        self._summary = None
        return True

    def _has_room(self, new: Statement, now_ms: int) -> bool:
        if new.expires_ms and new.expires_ms + DAY_MS <= now_ms:
            return False
        if len(self._rows) >= MAX_ROWS:
            self._forget_expired(now_ms)
        statements = [row.statement for row in self._rows.values()]
        by_signer = Counter(statement.by for statement in statements)
        if len(statements) >= MAX_ROWS or by_signer[new.by] >= MAX_ROWS // SHARE:
            return False
        live = [statement for statement in statements if statement.is_live(now_ms)]
        return not new.is_live(now_ms) or (
            len(live) < MAX_LIVE and sum(statement.by == new.by for statement in live) < MAX_LIVE // SHARE
        )

    def _forget_expired(self, now_ms: int) -> None:
        """Long expired keys need no row: no table takes them in any more."""
        for row in list(self._rows.values()):
            if row.statement.expires_ms and row.statement.expires_ms + DAY_MS <= now_ms:
                del self._rows[row.statement.id]

    # Comparing two tables

    @property
    def summary(self) -> bytes:
        """Equal where two tables are."""
        if self._summary is None:
            marks = sorted((key_id, row.mark) for key_id, row in self._rows.items())
            self._summary = hashlib.sha256(b"".join(key_id + mark for key_id, mark in marks)).digest()
        return self._summary

    def digest(self) -> list[tuple[bytes, bytes]]:
        return [(key_id, row.mark) for key_id, row in self._rows.items()]

    def missing(self, digest: Mapping[bytes, bytes]) -> list[bytes]:
        """The signed rows that the owner of `digest` lacks or has in another version."""
        return [row.signed for key_id, row in self._rows.items() if digest.get(key_id) != row.mark]

    def wanted(self, digest: Mapping[bytes, bytes]) -> list[bytes]:
        """The hashes whose rows in `digest` are missing here, or differ."""
        return [key_id for key_id, mark in digest.items() if (row := self._rows.get(key_id)) is None or row.mark != mark]

    def rows_of(self, key_ids: Iterable[bytes]) -> list[bytes]:
        return [row.signed for key_id in key_ids if (row := self._rows.get(key_id)) is not None]

    # On disk

    def dump(self) -> list[bytes]:
        return [row.signed for row in self._rows.values()]

    def load(self, rows: Iterable[bytes]) -> None:
        """Take in what `dump` gave: this node's own file, whose signatures were checked. Raises ProtocolViolation."""
        for signed in rows:
            statement = _read(str(identity.peer_id(signed[: identity.KEY_BYTES])), signed[_HEAD:])
            if statement is not None:
                self._rows[statement.id] = Row(statement, signed)
        self._summary = None

    def _signed(self, seed: bytes, statement: list[object]) -> Row:
        key, body = Ed25519PrivateKey.from_private_bytes(seed), msgpack.packb(statement)
        row = self.read(key.public_key().public_bytes_raw() + key.sign(self._context + body) + body)
        assert row is not None
        return row


def is_key_name(text: str) -> bool:
    return 1 <= len(text) <= MAX_NAME_CHARS and text.isprintable() and text.strip() == text


def _read(by: str, body: bytes) -> Statement | None:
    try:
        said = msgpack.unpackb(body, max_array_len=64, max_map_len=64, max_ext_len=0)
    except ValueError:
        raise ProtocolViolation("a client key's row that is not msgpack") from None
    match said:
        case [int(kind), *_] if kind not in (_KEY, _REVOKED):
            return None
        case [1, bytes(key_id), int(at), str(name), *_]:
            statement = Statement(key_id, by, at, name, is_revoked=True)
        case [0, bytes(key_id), int(at), str(name), list(models), int(expires), int(requests), int(seconds), *_]:
            statement = Statement(
                key_id, by, at, name, models=tuple(models), expires_ms=expires, requests=requests, seconds=seconds
            )
        case _:
            raise ProtocolViolation("a client key's row without its fields")
    if not _is_sound(statement):
        raise ProtocolViolation("a client key's row whose values are out of bounds")
    return statement


def _is_sound(key: Statement) -> bool:
    return (
        len(key.id) == hashlib.sha256().digest_size
        and is_key_name(key.name)
        and 0 <= key.at_ms <= MAX_MS
        and 0 <= key.expires_ms <= MAX_MS
        and len(key.models) <= MAX_MODELS
        and all(map(is_model, key.models))
        and 0 <= key.requests <= MAX_REQUESTS
        and (0 < key.seconds <= MAX_RATE_S if key.requests else key.seconds == 0)
    )
