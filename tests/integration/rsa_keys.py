"""RSA "public keys" that cost their reader far more than their sender, as libp2p's protobuf of a key."""

from __future__ import annotations

import random

from Crypto.PublicKey import RSA
from Crypto.Util.asn1 import DerSequence
from cryptography.hazmat.primitives.asymmetric import rsa
from libp2p.crypto.pb import crypto_pb2
from libp2p.crypto.rsa import RSAPrivateKey

PRIME = 7 * 2**15494 + 1


def proth() -> bytes:
    """A private key of two factors, 3 and a prime of 15,497 bits, which pycryptodome tests for being one: for 9 s."""
    der: bytes = DerSequence([0, 3 * PRIME, 5, 2, PRIME, 3, 0, 0, 0]).encode()
    return crypto_pb2.PublicKey(key_type=crypto_pb2.KeyType.RSA, data=der).SerializeToString()


def huge_exponents(count: int) -> list[RSAPrivateKey]:
    """Genuine keys of 4096 bits whose exponents are as large as the modulus."""
    numbers = rsa.generate_private_key(65537, 4096).private_numbers()
    p, q, n = numbers.p, numbers.q, numbers.public_numbers.n
    found: list[RSAPrivateKey] = []
    while len(found) < count:
        e = random.getrandbits(4090) | 1
        try:
            d = pow(e, -1, (p - 1) * (q - 1))
        except ValueError:
            continue
        found.append(RSAPrivateKey(RSA.construct((n, e, d, p, q), consistency_check=False)))
    return found


def called_public(key: RSAPrivateKey) -> bytes:
    """The protobuf of a public key, with all of the private key in it."""
    return crypto_pb2.PublicKey(key_type=crypto_pb2.KeyType.RSA, data=key.impl.export_key("DER")).SerializeToString()
