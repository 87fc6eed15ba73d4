"""ECDSA on the curves of NIST, in plain integers and without chance (RFC 6979), and keys as PEM."""

import base64
import hashlib
import hmac
from dataclasses import dataclass
from typing import Any

Point = tuple[int, int] | None


@dataclass(frozen=True)
class Curve:
    """y² = x³ − 3x + b over the integers modulo p, with a base point of order n (SEC 2)."""

    oid: bytes
    hash: str
    p: int
    b: int
    n: int
    base: tuple[int, int]

    @property
    def width(self) -> int:
        """Bytes of a coordinate."""
        return (self.p.bit_length() + 7) // 8


def _curve(oid: str, name: str, p: int, *numbers: str) -> Curve:
    b, n, x, y = (int(number, 16) for number in numbers)
    return Curve(bytes.fromhex(oid), name, p, b, n, (x, y))


P256 = _curve(
    "06082a8648ce3d030107",
    "sha256",
    2**256 - 2**224 + 2**192 + 2**96 - 1,
    "5ac635d8aa3a93e7b3ebbd55769886bc651d06b0cc53b0f63bce3c3e27d2604b",
    "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551",
    "6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296",
    "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5",
)
P384 = _curve(
    "06052b81040022",
    "sha384",
    2**384 - 2**128 - 2**96 + 2**32 - 1,
    "b3312fa7e23ee7e4988e056be3f82d19181d9c6efe8141120314088f5013875ac656398d8a2ed19d2a85c8edd3ec2aef",
    "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973",
    "aa87ca22be8b05378eb1c71ef320ad746e1d3b628ba79b9859f741e082542a385502f25dbf55296c3a545e3872760ab7",
    "3617de4a96262c6f5d9e98bf9292dc29f8f41dbd289a147ce9da3113b5f0b8c00a60b1ce1d7e819d7a431d7c90ea0e5f",
)
P521 = _curve(
    "06052b81040023",
    "sha512",
    2**521 - 1,
    "51953eb9618e1c9a1f929a21a0b68540eea2da725b99b315f3b8b489918ef109e156193951ec7e937b1652c0bd3bb1bf073573df883d2c34f1ef"
    "451fd46b503f00",
    "1" + 65 * "f" + "a51868783bf2f966b7fcc0148f709a5d03bb5c9b8899c47aebb6fb71e91386409",
    "c6858e06b70404e9cd9e3ecb662395b4429c648139053fb521f828af606b4d3dbaa14b5e77efe75928fe1dc127a2ffa8de3348b3c1856a429bf97e"
    "7e31c2e5bd66",
    "11839296a789a3bc0045c8a5fb42c7d1bd998f54449579b446817afbd17273e662c97ee72995ef42640c550b9013fad0761353c7086a272c24088b"
    "e94769fd16650",
)


def _add(curve: Curve, one: Point, two: Point) -> Point:
    if one is None or two is None:
        return one or two
    if one[0] == two[0] and (one[1] + two[1]) % curve.p == 0:
        return None
    if one == two:
        slope = (3 * one[0] ** 2 - 3) * pow(2 * one[1], -1, curve.p)
    else:
        slope = (two[1] - one[1]) * pow(two[0] - one[0], -1, curve.p)
    x = (slope**2 - one[0] - two[0]) % curve.p
    return x, (slope * (one[0] - x) - one[1]) % curve.p


def _times(curve: Curve, factor: int) -> tuple[int, int]:
    out: Point = None
    point: Point = curve.base
    while factor:
        if factor & 1:
            out = _add(curve, out, point)
        point, factor = _add(curve, point, point), factor >> 1
    if out is None:
        raise ValueError("a multiple of n")
    return out


@dataclass(frozen=True)
class Key:
    """A private key: a number from 1 to n − 1."""

    curve: Curve
    secret: int

    def sign(self, data: bytes) -> bytes:
        """A signature in DER, the same for the same bytes."""
        curve, n = self.curve, self.curve.n
        hashed = hashlib.new(curve.hash, data).digest()
        z = int.from_bytes(hashed, "big") >> max(0, 8 * len(hashed) - n.bit_length())
        k = self._nonce(z % n)
        r = _times(curve, k)[0] % n
        s = pow(k, -1, n) * (z + r * self.secret) % n
        return sequence(_integer(r), _integer(s))

    def _nonce(self, z: int) -> int:
        """RFC 6979, section 3.2."""
        n, name = self.curve.n, self.curve.hash
        width = (n.bit_length() + 7) // 8
        seed = self.secret.to_bytes(width, "big") + z.to_bytes(width, "big")
        size = hashlib.new(name).digest_size
        v, k = b"\1" * size, bytes(size)
        for mark in (b"\0", b"\1"):
            k = hmac.digest(k, v + mark + seed, name)
            v = hmac.digest(k, v, name)
        while True:
            out = b""
            while len(out) < width:
                v = hmac.digest(k, v, name)
                out += v
            nonce = int.from_bytes(out[:width], "big") >> 8 * width - n.bit_length()
            if 0 < nonce < n:
                return nonce
            k = hmac.digest(k, v + b"\0", name)
            v = hmac.digest(k, v, name)

    def public_pem(self) -> bytes:
        """SubjectPublicKeyInfo of an uncompressed point."""
        x, y = _times(self.curve, self.secret)
        width = self.curve.width
        point = b"\4" + x.to_bytes(width, "big") + y.to_bytes(width, "big")
        return pem("PUBLIC KEY", public_key(bytes.fromhex("06072a8648ce3d0201") + self.curve.oid, point))

    def hint(self) -> str:
        """SHA-256 of the public key as PEM."""
        return hashlib.sha256(self.public_pem()).hexdigest()


def public_key(algorithm: bytes, bits: bytes) -> bytes:
    """SubjectPublicKeyInfo."""
    return sequence(sequence(algorithm), b"\3" + _length(len(bits) + 1) + b"\0" + bits)


def pem(label: str, data: bytes) -> bytes:
    """Lines of 64 characters between two others."""
    text = base64.b64encode(data).decode()
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""]).encode()


def sequence(*parts: bytes) -> bytes:
    """A sequence in DER."""
    data = b"".join(parts)
    return b"\x30" + _length(len(data)) + data


def _integer(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "big")
    return b"\2" + _length(len(data)) + data


def _length(count: int) -> bytes:
    if count < 128:
        return bytes([count])
    data: Any = count.to_bytes((count.bit_length() + 7) // 8, "big")
    return bytes([0x80 | len(data)]) + data
