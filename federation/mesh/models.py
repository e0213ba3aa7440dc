"""The models that a node's backends have, and their compact form in the node's record.

    record.models = deflate(msgpack([[service, kind, total, [[name, warm, size in MiB, slots], ...], digest], ...]))

A row leaves out what is zero at its end: [name] is a cold model of unknown size. `total` counts all models of the backend:
a service with fewer rows than that has more models than its record could carry. Rows that are warm travel first. Of names
that found no place `digest` has two bytes each, so entries nearly always know which nodes have such a model; versions
before it pass it over.

A record keeps these bytes as they came, and only a reader that needs the models unpacks them: a record takes no more
memory than its bytes, and a form that this version cannot read costs its node the models, not its place in the network.
"""

from __future__ import annotations

import zlib
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MAX_MODELS = 512  # of one node, all services together
MAX_NAME_BYTES = 200  # a path of a file is a name at some servers
MAX_SERVICES = 64  # as in a record
MAX_SLOTS = 100_000
MAX_MIB = 2**32 - 1
# A third of a record: the rest of a large one (32 services, 16 addresses, eight GPUs) has 5 kB. Of names as people have them
# about 300 fit, with sizes.
MAX_PACKED_BYTES = 5120
MAX_DIGEST_BYTES = 1024  # of one node, 512 names; they cannot be compressed
_MAX_RAW_BYTES = 128 * 1024  # 512 rows of the longest names
_MIB = 1 << 20


class Model(NamedTuple):
    """A model of one backend. `warm`: in memory, so that its first token does not wait for a load.

    `size` in bytes, 0 where the server does not say. `slots`: how many requests the server computes at once, 0: unknown.
    """

    name: str
    warm: bool = False
    size: int = 0
    slots: int = 0


class Catalog(NamedTuple):
    """The models of one service's backend. `kind`: which server it is ("ollama"), empty if unknown."""

    kind: str
    models: tuple[Model, ...]
    total: int  # more than there are in `models`: the others found no place
    digest: bytes = b""  # of these

    @property
    def is_listed(self) -> bool:
        return self.total <= len(self.models)

    @property
    def is_whole(self) -> bool:
        """Whether it has no model but those that are listed, and those that are in the digest."""
        return self.total <= len(self.models) + len(self.digest) // 2

    def may_have(self, asked: str) -> bool:
        """Whether a model of that name is in the digest; one of some hundred other names is too."""
        at = -1
        while self.digest:
            at = self.digest.find(_mark(asked, self.kind), at + 1)
            if at % 2 == 0 or at < 0:
                return at >= 0
        return False


def is_name(value: object) -> bool:
    """Whether it may be a model's name: text that a terminal shows in one line, and not too long."""
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME_BYTES and value.isprintable() and _fits(value)


def is_called(name: str, asked: str, kind: str) -> bool:
    """Whether a server of that kind means the model `name` by `asked`. Ollama ignores case and implies `:latest`."""
    return name == asked or (kind == "ollama" and _ollama(name) == _ollama(asked))


def catalog(kind: str, models: Iterable[Model], *, total: int = 0) -> Catalog:
    """A catalog within bounds: each name once, warm ones first, then by name."""
    found: dict[str, Model] = {}
    for model in models:
        known = found.get(model.name)
        if known is None or (model.warm and not known.warm):
            found[model.name] = model
    rows = sorted(found.values(), key=lambda model: (not model.warm, model.name))
    return Catalog(kind, tuple(rows[:MAX_MODELS]), max(total, len(rows)), _digest(rows[MAX_MODELS:], kind))


def pack(catalogs: Mapping[str, Catalog]) -> bytes:
    """The form in a record, at most MAX_PACKED_BYTES; nothing for no models. Of too many models some are left out."""
    if not any(listed.models or listed.total for listed in catalogs.values()):
        return b""
    most = sum(len(listed.models) for listed in catalogs.values())
    keep = 1.0 if most <= MAX_MODELS else MAX_MODELS / most
    while True:
        data = _packed(catalogs, keep)
        if len(data) <= MAX_PACKED_BYTES or not keep:
            return data if len(data) <= MAX_PACKED_BYTES else b""
        keep = keep * MAX_PACKED_BYTES / len(data) * 0.97
        keep = keep if keep * most >= 1 else 0.0


def unpack(data: bytes) -> dict[str, Catalog]:
    """Service -> its catalog. Never raises: rows that are none are left out, and what is no such form has no models."""
    try:
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        raw = inflate.decompress(data, _MAX_RAW_BYTES)
        if not inflate.eof:
            return {}
        listed = msgpack.unpackb(raw)
    except (zlib.error, ValueError):
        return {}
    found: dict[str, Catalog] = {}
    left = MAX_MODELS
    for row in listed[:MAX_SERVICES] if isinstance(listed, list) else ():
        match row:
            case [str(service), str(kind), int(total), list(rows), *rest] if _is_word(service) and _is_word(kind):
                models = tuple(model for model in map(_model, rows[:left]) if model is not None)
                left -= len(models)
                digest = rest[0][:MAX_DIGEST_BYTES] if rest and isinstance(rest[0], bytes) else b""
                found[service] = Catalog(kind, models, max(0, min(total, 2**31)), digest)
    return found


def _packed(catalogs: Mapping[str, Catalog], keep: float) -> bytes:
    listed: list[list[Any]] = []
    for service, entry in sorted(catalogs.items()):
        kept = int(len(entry.models) * keep)
        row = [service, entry.kind, entry.total, [_row(model) for model in entry.models[:kept]]]
        left = entry.digest + _digest(entry.models[kept:], entry.kind)
        listed.append([*row, left[: MAX_DIGEST_BYTES // len(catalogs) & ~1]] if left else row)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return deflate.compress(msgpack.packb(listed)) + deflate.flush()


def _row(model: Model) -> list[Any]:
    row = [model.name, int(model.warm), min(-(-model.size // _MIB), MAX_MIB), min(model.slots, MAX_SLOTS)]
    while not row[-1]:
        row.pop()
    return row


def _model(row: object) -> Model | None:
    if not isinstance(row, list) or not row or not is_name(row[0]):
        return None
    numbers = [value if isinstance(value, int) and value >= 0 else 0 for value in row[1:4]]
    warm, mib, slots = (*numbers, 0, 0, 0)[:3]
    return Model(row[0], bool(warm), min(mib, MAX_MIB) * _MIB, min(slots, MAX_SLOTS))


def _digest(models: Iterable[Model], kind: str) -> bytes:
    return b"".join(_mark(model.name, kind) for model in models)


def _mark(name: str, kind: str) -> bytes:
    name = _ollama(name) if kind == "ollama" else name
    return blake2b(name.encode("utf-8", "replace"), digest_size=2).digest()


def _ollama(name: str) -> str:
    name = name.lower()
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _is_word(text: str) -> bool:
    return len(text) <= 64 and text.isprintable()


def _fits(name: str) -> bool:
    try:
        return len(name.encode()) <= MAX_NAME_BYTES
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write
        return False
