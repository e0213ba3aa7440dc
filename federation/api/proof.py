"""Client and daemon prove to each other that they have the control key, and neither sends it. For clients that reach the
daemon by an address, where any program may listen, or read in between.

    client -> daemon   GET /api/v1/challenge?nonce=C
    daemon -> client   {"nonce": N, "proof": MAC("daemon", C, N, host)}
    client -> daemon   any one request, Authorization: Federation-MAC C N MAC("request", C, N, host, method, target, body)
    daemon -> client   its answer, Federation-Answer: MAC("answer", C, N, status, body)

MAC is HMAC-SHA256 under the control key; a body goes in as its SHA-256, `host` is the request's Host. N is good for one
request, within 30 s, of the client that chose C. So a program without the key learns nothing that opens anything, cannot
turn a request into another one, repeat it, or change its answer. A program in between can read requests and answers: this is
no TLS.

The command line needs this where it must answer at once: standard library only.
"""

from __future__ import annotations

import hmac
import secrets
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

SCHEME = "Federation-MAC"
ANSWER_HEADER = "Federation-Answer"
LIFETIME_S = 30.0  # from the challenge to its request: a slow line and a loaded machine
NONCE_CHARS = 43  # 32 random bytes


class Nonces(NamedTuple):
    client: str
    daemon: str


def new_nonce() -> str:
    return secrets.token_urlsafe(32)


def of_daemon(key: str, nonces: Nonces, host: str) -> str:
    return _mac(key, "daemon", *nonces, host)


def of_request(key: str, nonces: Nonces, host: str, method: str, target: str, body: bytes) -> str:
    return _mac(key, "request", *nonces, host, method, target, sha256(body).hexdigest())


def of_answer(key: str, nonces: Nonces, status: int, body: bytes) -> str:
    return _mac(key, "answer", *nonces, str(status), sha256(body).hexdigest())


def is_same(one: str, other: str) -> bool:
    """Compare in a time that does not tell the place of a difference."""
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode("utf-8", "replace"))


class Challenges:
    """The daemon's side. `now`: seconds.

    A challenge costs no memory: its nonce contains its time, and a seal over that and the client's nonce. The daemon keeps
    only nonces that the owner has used, until they are too old anyway.
    """

    def __init__(self, key: str, now: Callable[[], float]) -> None:
        self._key = key
        self._now = now
        self._own = secrets.token_urlsafe(32)  # new in each process: a nonce from before a restart is invalid
        self._used: dict[str, float] = {}  # nonce -> when it is too old, oldest first

    def issue(self, client_nonce: str, host: str) -> tuple[str, str]:
        """The daemon's nonce, and its proof that it has the key."""
        stem = f"{round(self._now() * 1000)}.{secrets.token_urlsafe(16)}"
        nonces = Nonces(client_nonce, f"{stem}.{self._seal(stem, client_nonce)}")
        return nonces.daemon, of_daemon(self._key, nonces, host)

    def take(self, authorization: str, host: str, method: str, target: str, body: bytes) -> Nonces | None:
        """The nonces of a request, if the owner signed it and it is no repetition; else None.

        `authorization`: the header's value behind the scheme.
        """
        words = authorization.split()
        if len(words) != 3:
            return None
        nonces, mac = Nonces(words[0], words[1]), words[2]
        stem, _, seal = nonces.daemon.rpartition(".")
        if not is_same(seal, self._seal(stem, nonces.client)):
            return None
        now, expires = self._now(), int(stem.partition(".")[0]) / 1000 + LIFETIME_S
        if now > expires or nonces.daemon in self._used:
            return None
        if not is_same(mac, of_request(self._key, nonces, host, method, target, body)):
            return None
        while self._used and next(iter(self._used.values())) < now:
            del self._used[next(iter(self._used))]
        self._used[nonces.daemon] = now + LIFETIME_S
        return nonces

    def answered(self, nonces: Nonces, status: int, body: bytes) -> str:
        return of_answer(self._key, nonces, status, body)

    def _seal(self, stem: str, client_nonce: str) -> str:
        return _mac(self._own, "nonce", stem, client_nonce)


def _mac(key: str, *parts: str) -> str:
    message = b"".join(len(data).to_bytes(4, "big") + data for data in (part.encode("utf-8", "replace") for part in parts))
    return hmac.new(key.encode(), message, sha256).hexdigest()
