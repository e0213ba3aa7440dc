"""The dashboard's sessions: the page acts for the owner and leaves nothing in the browser's history that opens anything.

For `federation dashboard` the daemon makes a code, for 30 s and one use. The page exchanges the code for a session, which
stays in its tab. A session ends a week after it was last used, by `federation dashboard --revoke`, and with the daemon: a
program on the port of a daemon that was killed gets from an open page nothing that the next daemon takes.
"""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CODE_S = 30.0  # for a browser to start
IDLE_S = 7 * 86400.0
MAX_CODES = 16
MAX_SESSIONS = 64  # of one owner's browsers and tabs; the one that was used longest ago makes room


class _Session:
    def __init__(self, now: float) -> None:
        self.used_at = now
        self.ends: set[Callable[[], None]] = set()  # of requests that run


class Sessions:
    """`now`: seconds. Codes and sessions are kept as digests: to find one takes no comparison of secrets."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._codes: dict[bytes, float] = {}  # -> when it was made
        self._sessions: dict[bytes, _Session] = {}

    def new_code(self) -> str:
        code = secrets.token_urlsafe(32)
        self._codes[_digest(code)] = self._now()
        while len(self._codes) > MAX_CODES:
            del self._codes[next(iter(self._codes))]
        return code

    def exchange(self, code: str) -> str | None:
        """Spend a code on a session. Returns None if the code is unknown, spent or too old."""
        made_at = self._codes.pop(_digest(code), None)
        if made_at is None or self._now() > made_at + CODE_S:
            return None
        if len(self._sessions) >= MAX_SESSIONS:
            self._end(min(self._sessions, key=lambda digest: self._sessions[digest].used_at))
        session = secrets.token_urlsafe(32)
        self._sessions[_digest(session)] = _Session(self._now())
        return session

    def is_one(self, text: str) -> bool:
        digest = _digest(text)
        session = self._sessions.get(digest)
        if session is None:
            return False
        if not session.ends and self._now() > session.used_at + IDLE_S:
            self._end(digest)
            return False
        return True

    @contextmanager
    def used(self, text: str, end: Callable[[], None]) -> Iterator[None]:
        """Runs around a request of a valid session; `end` is called if the session ends before the request does."""
        session = self._sessions[_digest(text)]
        session.ends.add(end)
        try:
            yield
        finally:
            session.ends.discard(end)
            session.used_at = self._now()

    def end_all(self) -> int:
        """End all sessions and codes. Returns how many sessions there were."""
        self._codes.clear()
        count = len(self._sessions)
        for digest in list(self._sessions):
            self._end(digest)
        return count

    def _end(self, digest: bytes) -> None:
        for end in list(self._sessions.pop(digest).ends):
            end()


def _digest(text: str) -> bytes:
    return sha256(text.encode("utf-8", "replace")).digest()
