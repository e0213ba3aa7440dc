"""Helpers for tests: every way in which a secret may show up in text, whole or its first half."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from federation.mesh.tokens import Token

PART = 12  # so many characters of a secret in a row are no coincidence: 2^-48 for hex


def spellings(secret: bytes) -> Iterator[str]:
    for part in (secret[: len(secret) // 2], secret[len(secret) // 2 :]):
        yield part.hex()
        yield part.hex().upper()
        yield repr(part)[2:-1]
        yield str(list(part))[1:-1]
    for encode in (base64.b64encode, base64.urlsafe_b64encode, base64.b32encode):
        text = encode(secret).decode().rstrip("=")
        yield text[:PART]
        yield text[-PART - 4 : -4]


def of_token(token: Token) -> dict[str, bytes | str]:
    text = token.encode()
    return {
        "the token": text[5 : 5 + PART],
        "its secret": token.secret,
        "its admission key": token.admission_key(),
        "its rendezvous": token.rendezvous(),
    }


def found_in(text: str, secrets: Mapping[str, bytes | str]) -> list[str]:
    """Which of them show up in `text`."""
    return [
        name
        for name, secret in secrets.items()
        if any(part in text for part in (spellings(secret) if isinstance(secret, bytes) else [secret]))
    ]
