"""SHA256SUMS, the list of a release's archives and their hashes, as `sha256sum` writes it, and its signature.

The signature (SHA256SUMS.sig) is Ed25519 over the list's bytes: 64 bytes, or these in base64. Who checks it has the public
key from the version that is installed: `share/release.pub` in its folder, 32 bytes or these in base64.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import IO, TYPE_CHECKING

from federation.errors import NotDone, UsageError
from federation.program.archive import CHUNK, Name, order

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LIST, SIGNATURE, PUBLIC_KEY = "SHA256SUMS", "SHA256SUMS.sig", "share/release.pub"
MAX_LIST_BYTES = 256 * 1024
_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](?:\./)?(\S+)")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def parse(data: bytes) -> dict[str, str]:
    """File name -> hash. Raises NotDone for a text that is no such list."""
    found: dict[str, str] = {}
    for line in data.decode(errors="replace").splitlines():
        match = _LINE.fullmatch(line.strip())
        if match:
            found[match[2]] = match[1].lower()
        elif line.strip():
            raise NotDone(f"{LIST} is not a list of hashes: {line[:60]!a}")
    return found


def newest(hashes: Mapping[str, str]) -> Name | None:
    """The newest archive for this machine; None if the list has none."""
    names = [name for name in map(Name.parse, hashes) if name is not None and name == Name.here(name.version)]
    return max(names, key=lambda name: order(name.version), default=None)


def check_signature(data: bytes, signature: bytes, public_key: bytes) -> None:
    """Raises NotDone if the list is not signed with that key."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = Ed25519PublicKey.from_public_bytes(_raw(public_key, 32))
        key.verify(_raw(signature, 64), data)
    except (InvalidSignature, ValueError):
        raise NotDone(
            f"{LIST} is not signed with the key of the version that is installed ({PUBLIC_KEY}); nothing was changed"
        ) from None


def wanted(text: str) -> str:
    """A hash that a person gives. Raises UsageError."""
    text = text.strip().lower()
    if not _SHA256.fullmatch(text):
        raise UsageError(f"--sha256 {text!r}: 64 hexadecimal digits, as sha256sum prints them")
    return text


def of_file(file: IO[bytes], progress: Callable[[int], None] = lambda _done: None) -> str:
    """The hash of the file from its beginning, where it is left again."""
    file.seek(0)
    digest = hashlib.sha256()
    done = 0
    while chunk := file.read(CHUNK):
        digest.update(chunk)
        done += len(chunk)
        progress(done)
    file.seek(0)
    return digest.hexdigest()


def _raw(data: bytes, size: int) -> bytes:
    if len(data) == size:
        return data
    try:
        return base64.b64decode(data.strip(), validate=True)
    except binascii.Error:
        raise ValueError("neither bytes nor base64") from None
