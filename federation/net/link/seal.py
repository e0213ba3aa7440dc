"""Sealed records, sans-IO: 2 bytes of length, big endian; then AES-256-GCM or ChaCha20-Poly1305 of 1 to MAX_PLAINTEXT
bytes.

The keys and the counters are those that the Noise handshake ends with (link/handshake.py). `cryptography` seals and
unseals directly, as many records as arrived at a time.
"""

from __future__ import annotations

import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from federation.errors import ProtocolViolation

TAG = 16
SEALING_BYTES = 2 + TAG  # a record is so much longer than its plaintext
MAX_CIPHERTEXT = 65_535  # what the 2-byte length can say
MAX_PLAINTEXT = MAX_CIPHERTEXT - TAG

_LENGTH = struct.Struct(">H")

Aead = type[ChaCha20Poly1305] | type[AESGCM]
_NONCES = {ChaCha20Poly1305: struct.Struct("<xxxxQ"), AESGCM: struct.Struct(">xxxxQ")}  # as Noise has them


class Sealer:
    """Plaintext -> record, with our half of the session keys."""

    __slots__ = ("_encrypt_into", "_n", "_pack_nonce")

    def __init__(self, key: bytes, n: int = 0, aead: Aead = ChaCha20Poly1305) -> None:
        self._encrypt_into = aead(key).encrypt_into
        self._pack_nonce = _NONCES[aead].pack
        self._n = n

    def seal_into(self, plaintext: bytes, out: memoryview) -> int:
        """Write the record of `plaintext`, 1 to MAX_PLAINTEXT bytes, to the begin of `out`; return the record's size."""
        n = self._n
        self._n = n + 1
        end = len(plaintext) + (2 + TAG)
        _LENGTH.pack_into(out, 0, end - 2)
        self._encrypt_into(self._pack_nonce(n), plaintext, None, out[2:end])
        return end

    def seal(self, plaintext: bytes) -> bytes:
        record = bytearray(len(plaintext) + 2 + TAG)
        self.seal_into(plaintext, memoryview(record))
        return bytes(record)


class Unsealer:
    """Records -> plaintexts, with the remote's half of the session keys."""

    __slots__ = ("_decrypt", "_n", "_pack_nonce", "rest")

    def __init__(self, key: bytes, n: int = 0, aead: Aead = ChaCha20Poly1305) -> None:
        self._decrypt = aead(key).decrypt
        self._pack_nonce = _NONCES[aead].pack
        self._n = n
        self.rest = b""  # the half record at the end of what `feed` got

    def open_records(self, view: memoryview) -> tuple[list[bytes], int]:
        """The plaintexts of the whole records in `view`, and how many bytes those records took.

        Raises ProtocolViolation on a forged or impossible record.
        """
        at, end, n = 0, len(view), self._n
        plaintexts: list[bytes] = []
        decrypt, pack_nonce = self._decrypt, self._pack_nonce
        while end - at >= 2:
            stop = at + 2 + ((view[at] << 8) | view[at + 1])
            if stop - at <= 2 + TAG:  # to open one costs what it costs to open a full one
                raise ProtocolViolation("a record shorter than its tag, or with nothing in it")
            if stop > end:
                break
            try:
                plaintexts.append(decrypt(pack_nonce(n), view[at + 2 : stop], None))
            except InvalidTag:
                raise ProtocolViolation("a record that its key does not open") from None
            n += 1
            at = stop
        self._n = n
        return plaintexts, at

    def feed(self, data: bytes) -> list[bytes]:
        """The plaintexts of the records that `data` completes; a half one waits in `rest`. Raises as `open_records`."""
        data = self.rest + data
        plaintexts, used = self.open_records(memoryview(data))
        self.rest = data[used:]
        return plaintexts
