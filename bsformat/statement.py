"""What is signed, as the OpenSSF model signing does it: an in-toto statement in a DSSE envelope in a sigstore bundle.

All of it is JSON, read strictly, since it comes from strangers: see `spec/signing.md`. Nothing here does cryptography.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from .errors import SignatureError

#: Bytes of the largest signature that is read: some thousand times what one takes.
LIMIT: Final = 1 << 20
#: Objects and arrays in each other, at most.
MAX_DEPTH: Final = 64
BUNDLE_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://model_signing/signature/v1.0"
#: The member of the predicate that is ours. Verifiers of that predicate ignore members that they do not know.
MEMBER: Final = "bstk"


@dataclass(frozen=True, slots=True)
class Statement:
    """What a signature says of a file.

    Attributes:
        name: the name that the file had when it was signed.
        root: its root digest, 64 hexadecimal digits.
        sha256: SHA-256 of the whole file, 64 hexadecimal digits; "" where the file lies in volumes.
        volumes: the name of each volume and its SHA-256, in the order of the names; none where the file is one object.
    """

    name: str
    root: str
    sha256: str
    volumes: tuple[tuple[str, str], ...] = ()

    def encode(self) -> bytes:
        """The in-toto statement; the same statement gives the same bytes."""
        digests = sorted(self.volumes) or [(".", self.sha256)]
        resources = [{"name": name, "algorithm": "sha256", "digest": sha256} for name, sha256 in digests]
        value = {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": self.name, "digest": {"sha256": _subject(sha256 for _, sha256 in digests)}}],
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "serialization": {
                    "method": "files",
                    "hash_type": "sha256",
                    "allow_symlinks": False,
                    "ignore_paths": [],
                },
                "resources": resources,
                MEMBER: {"root": self.root},
            },
        }
        return json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class Envelope:
    """A signed payload that has not been checked.

    Attributes:
        payload: the statement as it was signed. signature: DER of an ECDSA signature over `pae` of it.
        hint: SHA-256 of the PEM of the public key, 64 hexadecimal digits; "" where the bundle names none.
    """

    payload: bytes
    signature: bytes
    hint: str

    def encode(self) -> bytes:
        """The sigstore bundle."""
        value = {
            "mediaType": BUNDLE_TYPE,
            "verificationMaterial": {"publicKey": {"hint": self.hint}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": base64.b64encode(self.payload).decode(),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{"sig": base64.b64encode(self.signature).decode(), "keyid": ""}],
            },
        }
        return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def pae(payload: bytes) -> bytes:
    """What is signed: the pre-authentication encoding of DSSE 1.0."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def read_bundle(data: bytes, where: str) -> Envelope:
    """The envelope of a bundle that was made with a key.

    Raises:
        SignatureError: reason ``signature-format``.
    """
    bundle = _json(data, "it", where)
    _expect(bundle, "mediaType", BUNDLE_TYPE, where)
    material = _member(bundle, "verificationMaterial", dict, where)
    if "publicKey" not in material:
        raise _malformed("it was made with a certificate, not with a key: verify it with model_signing", where)
    hint = _member(material, "publicKey", dict, where).get("hint") or ""
    envelope = _member(bundle, "dsseEnvelope", dict, where)
    _expect(envelope, "payloadType", PAYLOAD_TYPE, where)
    signatures = _member(envelope, "signatures", list, where)
    if len(signatures) != 1 or not isinstance(signatures[0], dict) or not isinstance(hint, str):
        raise _malformed("it has not exactly one signature of one key", where)
    return Envelope(_base64(envelope, "payload", where), _base64(signatures[0], "sig", where), hint)


def read_statement(payload: bytes, where: str) -> Statement:
    """What a payload says, whose signature has been checked.

    Raises:
        SignatureError: reason ``signature-format``.
    """
    value = _json(payload, "what it signs", where)
    _expect(value, "_type", STATEMENT_TYPE, where)
    _expect(value, "predicateType", PREDICATE_TYPE, where)
    subject = _only(_member(value, "subject", list, where), "subject", where)
    predicate = _member(value, "predicate", dict, where)
    resources = _resources(_member(predicate, "resources", list, where), where)
    if MEMBER not in predicate:
        raise _malformed(
            "it is sound, but names no root: verify it with model_signing, or sign the file with bstk sign", where
        )
    root = _hex(_member(predicate, MEMBER, dict, where), "root", where)
    if _hex(_member(subject, "digest", dict, where), "sha256", where) != _subject(sha256 for _, sha256 in resources):
        raise _malformed("its subject is not what its resources make", where)
    one = len(resources) == 1
    name = _member(subject, "name", str, where)
    return Statement(name, root, resources[0][1] if one else "", () if one else resources)


def _resources(items: list[Any], where: str) -> tuple[tuple[str, str], ...]:
    """The name and digest of each object: of a file, or of each of its volumes."""
    out = []
    for item in items:
        if not isinstance(item, dict):
            raise _malformed("a resource is no object", where)
        _expect(item, "algorithm", "sha256", where)
        out.append((_member(item, "name", str, where), _hex(item, "digest", where)))
    if not out or any(a[0] >= b[0] for a, b in pairwise(out)):
        raise _malformed("its resources are none, or not in the order of their names", where)
    return tuple(out)


def _subject(digests: Iterable[str]) -> str:
    """The digest of a subject: SHA-256 of the digests of all resources."""
    return hashlib.sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()


def _json(data: bytes, what: str, where: str) -> dict[str, Any]:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(items)
        if len(out) != len(items):
            raise ValueError("a key stands twice")
        return out

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=pairs, parse_constant=_no_number)
        _check_depth(value)
    except (ValueError, RecursionError) as error:
        raise _malformed(f"{what} is no JSON ({str(error) or type(error).__name__})", where) from None
    if not isinstance(value, dict):
        raise _malformed(f"{what} is no JSON object", where)
    return value


def _no_number(text: str) -> object:
    raise ValueError(f"{text} is no number of JSON")


def _check_depth(value: object) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        held = [v.values() if isinstance(v, dict) else v for v in level if isinstance(v, (dict, list))]
        level = [item for items in held for item in items]
    if any(isinstance(item, (dict, list)) for item in level):
        raise ValueError(f"it is nested deeper than {MAX_DEPTH}")


def _member(value: dict[str, Any], name: str, kind: type, where: str) -> Any:
    if not isinstance(value.get(name), kind):
        raise _malformed(f"{name} is not there, or no {kind.__name__}", where)
    return value[name]


def _only(items: list[Any], name: str, where: str) -> dict[str, Any]:
    if len(items) != 1 or not isinstance(items[0], dict):
        raise _malformed(f"it does not name exactly one {name}", where)
    return items[0]


def _expect(value: dict[str, Any], name: str, expected: str, where: str) -> None:
    if value.get(name) != expected:
        raise _malformed(f"{name} is {value.get(name)!r}, expected {expected!r}", where)


def _base64(value: dict[str, Any], name: str, where: str) -> bytes:
    try:
        return base64.b64decode(_member(value, name, str, where), validate=True)
    except (binascii.Error, ValueError):
        raise _malformed(f"{name} is no base64", where) from None


def _hex(value: dict[str, Any], name: str, where: str) -> str:
    text: str = _member(value, name, str, where)
    if len(text) != 64 or set(text) - set("0123456789abcdef"):
        raise _malformed(f"{name} is not 64 hexadecimal digits", where)
    return text


def _malformed(message: str, where: str) -> SignatureError:
    return SignatureError(f"not a signature that can be read: {message}", where=where, reason="signature-format")
