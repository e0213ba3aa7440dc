from __future__ import annotations

import base64
import hashlib
import io

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from federation.errors import NotDone, UsageError
from federation.program import sums
from federation.program.archive import Name

HASH = "ab" * 32


def test_the_list_as_sha256sum_writes_it() -> None:
    assert sums.parse(f"{HASH}  one.tar.gz\n{HASH.upper()} *two.deb\n\n{HASH}  ./three\n".encode()) == {
        "one.tar.gz": HASH, "two.deb": HASH, "three": HASH,
    }  # fmt: skip
    for text in ("<html>", f"{HASH}", f"{HASH[:-1]}  one"):
        with pytest.raises(NotDone, match="not a list of hashes"):
            sums.parse(text.encode())


def test_the_newest_for_this_machine() -> None:
    names = [str(Name.here(version)) for version in ("0.9.0", "0.10.0", "0.10.0rc1")]
    others = [str(Name.here("7")._replace(arch="sparc")), str(Name.here("8")._replace(system="plan9")), "federation_9.deb"]
    assert sums.newest(dict.fromkeys((*names, *others), HASH)) == Name.here("0.10.0")
    assert sums.newest(dict.fromkeys(others, HASH)) is None


def test_a_list_is_signed_or_it_is_not() -> None:
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    signature = key.sign(b"list")
    sums.check_signature(b"list", signature, public)
    sums.check_signature(b"list", base64.b64encode(signature) + b"\n", base64.b64encode(public) + b"\n")
    stranger = Ed25519PrivateKey.generate()
    for data, signed, by in (
        (b"lisd", signature, public),
        (b"list", stranger.sign(b"list"), public),
        (b"list", b"", public),
        (b"list", b"\xff" * 63, public),
        (b"list", signature, b"not a key"),
    ):
        with pytest.raises(NotDone, match="is not signed with the key"):
            sums.check_signature(data, signed, by)


def test_a_hash_that_a_person_gives() -> None:
    assert sums.wanted(f" {HASH.upper()}\n") == HASH
    for text in ("", HASH[:-1], "g" * 64):
        with pytest.raises(UsageError, match="64 hexadecimal digits"):
            sums.wanted(text)


def test_a_file_is_left_at_its_beginning() -> None:
    file = io.BytesIO(b"x" * 600_000)
    file.read(10)
    told: list[int] = []
    assert sums.of_file(file, told.append) == hashlib.sha256(b"x" * 600_000).hexdigest()
    assert file.tell() == 0
    assert told[-1] == 600_000
