"""Vectors of signatures (``signing.md``): sound ones with what they say, and those that a verifier refuses."""

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .changes import Change, at, edit, nested, nothing, without
from .ecdsa import P256, P384, P521, Key, pem, public_key

KEYS = {
    "p256": Key(P256, 0x1F0C3A5B7D9E2468ACE013579BDF0246813579BDF0ECA8642 << 32 | 7),
    "p384": Key(P384, 0x5DEECE66D << 300 | 0xB),
    "p521": Key(P521, 0x9E3779B97F4A7C15 << 400 | 0x1234567),
    "other": Key(P256, 0x123456789),
}
#: What is signed unless something else is said: this file, under this name.
SIGNED = "valid/smallest.bstk"


@dataclass(frozen=True)
class Signature:
    """A signature, and what a verifier makes of it.

    Attributes:
        reason: the code of §9.10, or None. section: of ``signing.md``.
        of: the file that is signed, and its volumes. key: which signs. verified_with: whose public key is given, or
            its text.
        statement, bundle: change what is signed, and what it is wrapped in.
        payload: replaces the bytes that are signed. sent: changes the payload after it was signed.
        data: changes the finished bytes.
        file: what is opened with the root that is said; ``demands``: why that is refused, or None.
    """

    name: str
    reason: str | None
    section: str
    shows: str
    of: tuple[str, ...] = (SIGNED,)
    key: str = "p256"
    verified_with: str | bytes = ""
    statement: Change = nothing
    bundle: Change = nothing
    payload: Callable[[bytes], bytes] = lambda payload: payload
    sent: Callable[[bytes], bytes] = lambda payload: payload
    der: Callable[[bytes], bytes] = lambda signature: signature
    data: Callable[[bytes], bytes] = lambda data: data
    file: str = ""
    demands: str | None = None
    says: Mapping[str, Any] = field(default_factory=dict)

    def make(self, files: Mapping[str, bytes]) -> tuple[dict[str, Any], dict[str, bytes]]:
        """The JSON, and the files that it names, all by name."""
        key, root = KEYS[self.key], files[self.of[0]][96:128].hex()
        digests = {path.rpartition("/")[2]: hashlib.sha256(files[path]).hexdigest() for path in self.of}
        name = next(iter(digests))
        several = len(digests) > 1
        statement = _statement(name, root, sorted(digests.items()) if several else [(".", digests[name])])
        self.statement(statement)
        payload = self.payload(compact(statement))
        signature = self.der(key.sign(pae(payload)))
        bundle = _bundle(self.sent(payload), signature, key.hint())
        self.bundle(bundle)
        made = {f"{self.name}.sig": self.data(compact(bundle) + b"\n")}
        if isinstance(self.verified_with, bytes):
            shown = f"{self.name}.pub"
            made[shown] = self.verified_with
        else:
            shown = f"{self.verified_with or self.key}.pub"
            made[shown] = KEYS[self.verified_with or self.key].public_pem()
        facts: dict[str, Any] = {"name": self.name, "section": self.section, "shows": self.shows}
        facts |= {"signature": f"{self.name}.sig", "key": shown, "reason": self.reason}
        if self.reason is None:
            says = {"name": name, "root": root, "sha256": None if several else digests[name], "volumes": {}}
            says |= {"volumes": digests if several else {}, "key": key.hint()} | self.says
            facts |= {"says": says, "file": self.file or self.of[0], "demands": self.demands}
        return facts, made


def compact(value: Any) -> bytes:
    """JSON without spaces."""
    return json.dumps(value, separators=(",", ":")).encode()


def pae(payload: bytes) -> bytes:
    """What is signed (DSSE 1.0)."""
    return b"DSSEv1 28 application/vnd.in-toto+json %d %s" % (len(payload), payload)


def _statement(name: str, root: str, digests: list[tuple[str, str]]) -> dict[str, Any]:
    resources = [{"name": own, "algorithm": "sha256", "digest": digest} for own, digest in digests]
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": subject(digest for _, digest in digests)}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": []},
            "resources": resources,
            "bstk": {"root": root},
        },
    }


def subject(digests: Iterator[str]) -> str:
    """SHA-256 of digests, one after the other."""
    return hashlib.sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()


def _bundle(payload: bytes, signature: bytes, hint: str) -> dict[str, Any]:
    return {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }


VOLUMES = ("valid/volumes-2.bstk", "valid/volumes-2.00002.bstk")
HINT, SIG = ("verificationMaterial", "publicKey", "hint"), ("dsseEnvelope", "signatures", 0, "sig")
RESOURCES = ("predicate", "resources")


def sound() -> Iterator[Signature]:
    """Signatures that hold."""
    for curve in ("p256", "p384", "p521"):
        yield Signature(curve, None, "2", f"a key on {curve.upper()}", key=curve)
    yield Signature("of-volumes", None, "2", "a file in two volumes", of=VOLUMES)
    one = "valid/volumes-joined.bstk"
    yield Signature("of-volumes-joined-since", None, "1", "the same root in one object", of=VOLUMES, file=one)
    part = "valid/prefix-of-5-blocks.bstk"
    yield Signature("of-a-prefix", None, "1", "a prefix file has the root", of=("valid/every-kind.bstk",), file=part)
    for name, change in (
        ("absent", without(*HINT)),
        ("null", at(*HINT, to=None)),
        ("empty", at(*HINT, to="")),
    ):
        yield Signature(f"hint-{name}", None, "2", "a signature that names no key", bundle=change)

    def more(value: dict[str, Any]) -> None:
        value |= {"later": [1, {"a": None}], "x": -1.5e300}

    yield Signature("members-unknown", None, "2", "members that nobody knows", statement=more, bundle=more)
    yield Signature("nested-64-deep", None, "2", "the deepest nesting", bundle=at("x", to=nested(63)))
    yield Signature(
        "log-entries", None, "2", "log entries are ignored", bundle=at("verificationMaterial", "tlogEntries", to=[{}])
    )
    yield Signature(
        "json-in-lines",
        None,
        "2",
        "JSON with spaces, and escapes where none are needed",
        payload=lambda p: json.dumps(json.loads(p), indent=2).replace("_type", "\\u005ftype").encode(),
        data=lambda d: b" \t\r\n" + json.dumps(json.loads(d), indent=1).encode(),
    )
    odd = 'm\u00f6del \U0001f9e9"\\\n.bstk'
    called = at("subject", 0, "name", to=odd)
    yield Signature("name-of-the-file", None, "3", "any name", statement=called, says={"name": odd})
    yield Signature(
        "of-another-file", None, "3", "it holds, and another file has another root", file="valid/every-kind.bstk",
        demands="root-mismatch",
    )  # fmt: skip


def refused() -> Iterator[Signature]:
    """Signatures that a verifier refuses."""
    yield from _invalid()
    yield from _keys()
    yield from _bundles()
    yield from _statements()


def _each(reason: str, section: str, what: str, **each: dict[str, Any]) -> Iterator[Signature]:
    for name, changes in each.items():
        title = f"{what}-{name}".replace("_", "-")
        yield Signature(title, reason, section, title.replace("-", " "), **changes)


def _invalid() -> Iterator[Signature]:
    zeros = bytes.fromhex("3006020100020100")
    yield from _each(
        "signature-invalid",
        "3",
        "signature",
        of_another_root={"sent": lambda p: p.replace(b'"root":"', b'"root":"0')},
        of_another_payload={"sent": lambda p: p + b" "},
        of_a_payload_that_is_no_json={"sent": lambda p: b"x"},
        of_the_payload_without_its_type={"sent": lambda p: pae(p)},
        bit_turned={"der": lambda s: s[:-1] + bytes([s[-1] ^ 1])},
        cut={"der": lambda s: s[:-1]},
        with_a_byte_behind_it={"der": lambda s: s + b"\0"},
        of_zeros={"der": lambda s: zeros},
        empty={"der": lambda s: b""},
        without_der={"der": lambda s: s[-64:]},
        of_another_key_that_is_not_named={"bundle": without(*HINT), "verified_with": "other"},
        of_a_key_on_another_curve={"bundle": without(*HINT), "verified_with": "p384"},
    )


def _keys() -> Iterator[Signature]:
    edwards = pem("PUBLIC KEY", public_key(bytes.fromhex("06032b6570"), b"\x58" + b"\x66" * 31))
    point = KEYS["p256"].public_pem()
    yield from _each(
        "signature-key",
        "3",
        "key",
        of_another_name={"verified_with": "other"},
        hint_of_another={"bundle": at(*HINT, to="0" * 64)},
        hint_in_capitals={"bundle": lambda b: at(*HINT, to=KEYS["p256"].hint().upper())(b)},
        no_pem={"verified_with": b"not a key\n"},
        empty={"verified_with": b""},
        private={"verified_with": point.replace(b"PUBLIC", b"PRIVATE")},
        on_another_kind_of_curve={"verified_with": edwards},
        cut={"verified_with": point[:60] + b"\n-----END PUBLIC KEY-----\n"},
    )


def _bundles() -> Iterator[Signature]:
    two = {"sig": "AA==", "keyid": ""}
    yield from _each(
        "signature-format",
        "2",
        "bundle",
        empty={"data": lambda d: b""},
        no_json={"data": lambda d: b"sig\n"},
        cut={"data": lambda d: d[:-2]},
        array={"data": lambda d: b"[" + d + b"]"},
        two_values={"data": lambda d: d + b"{}"},
        not_utf_8={"data": lambda d: d.replace(b'"keyid":""', b'"keyid":"\xff"')},
        byte_order_mark={"data": lambda d: b"\xef\xbb\xbf" + d},
        comma_at_the_end={"data": lambda d: d.replace(b"}\n", b",}\n")},
        nested_65_deep={"bundle": at("x", to=nested(64))},
        not_a_number={"data": lambda d: d.replace(b"{", b'{"a":NaN,', 1)},
        control_character={"data": lambda d: d.replace(b'"keyid":""', b'"keyid":"\n"')},
        key_twice={"data": lambda d: d.replace(b"{", b'{"mediaType":"x",', 1)},
        key_twice_within={"data": lambda d: d.replace(b'"keyid":""', b'"keyid":"","keyid":""')},
        nested_without_end={"data": lambda d: b'{"a":' * 2000},
        of_another_version={"bundle": at("mediaType", to="application/vnd.dev.sigstore.bundle.v0.2+json")},
        media_type_missing={"bundle": without("mediaType")},
        certificate={"bundle": at("verificationMaterial", to={"certificate": {"rawBytes": ""}})},
        without_material={"bundle": without("verificationMaterial")},
        key_is_text={"bundle": at("verificationMaterial", "publicKey", to="key")},
        hint_number={"bundle": at(*HINT, to=1)},
        without_envelope={"bundle": without("dsseEnvelope")},
        payload_type={"bundle": at("dsseEnvelope", "payloadType", to="application/json")},
        payload_missing={"bundle": without("dsseEnvelope", "payload")},
        payload_no_base64={"bundle": at("dsseEnvelope", "payload", to="a_b-")},
        payload_base64_with_spaces={"bundle": edit(lambda text: f" {text}", "dsseEnvelope", "payload")},
        payload_base64_cut={"bundle": at("dsseEnvelope", "payload", to="YQ")},
        no_signature={"bundle": at("dsseEnvelope", "signatures", to=[])},
        two_signatures={"bundle": lambda b: b["dsseEnvelope"]["signatures"].append(two)},
        signature_is_text={"bundle": at("dsseEnvelope", "signatures", to=["AA=="])},
        sig_missing={"bundle": without(*SIG)},
        sig_no_base64={"bundle": at(*SIG, to="****")},
    )


def _statements() -> Iterator[Signature]:
    digest = "0" * 64

    def resources(*items: Any) -> dict[str, Any]:
        def change(value: dict[str, Any]) -> None:
            value["predicate"]["resources"] = list(items)
            sums = [item["digest"] for item in items if isinstance(item, dict)]
            value["subject"][0]["digest"]["sha256"] = subject(iter(sums))

        return {"statement": change}

    def own(name: Any, **more: Any) -> dict[str, Any]:
        return {"name": name, "algorithm": "sha256", "digest": digest} | more

    yield from _each(
        "signature-format",
        "2",
        "statement",
        no_json={"payload": lambda p: b"{"},
        array={"payload": lambda p: b"[]"},
        key_twice={"payload": lambda p: p.replace(b'"bstk":{', b'"bstk":{"root":"","')},
        type={"statement": at("_type", to="https://in-toto.io/Statement/v0.1")},
        type_missing={"statement": without("_type")},
        predicate_type={"statement": at("predicateType", to="https://slsa.dev/provenance/v1")},
        without_root={"statement": without("predicate", "bstk")},
        root_missing={"statement": without("predicate", "bstk", "root")},
        root_in_capitals={"statement": edit(str.upper, "predicate", "bstk", "root")},
        root_short={"statement": at("predicate", "bstk", "root", to="0" * 63)},
        root_number={"statement": at("predicate", "bstk", "root", to=0)},
        bstk_is_text={"statement": at("predicate", "bstk", to=digest)},
        without_predicate={"statement": without("predicate")},
        without_subject={"statement": at("subject", to=[])},
        two_subjects={"statement": lambda s: s["subject"].append(s["subject"][0])},
        subject_of_other_digests={"statement": at("subject", 0, "digest", "sha256", to=digest)},
        subject_without_name={"statement": without("subject", 0, "name")},
        subject_name_number={"statement": at("subject", 0, "name", to=1)},
        resources_missing={"statement": without(*RESOURCES)},
        resources_none=resources(),
        resources_twice=resources(own("a"), own("a")),
        resources_not_sorted=resources(own("b"), own("a")),
        resource_of_another_algorithm=resources(own(".", algorithm="blake3")),
        resource_name_number=resources(own(1)),
        resource_digest_short={"statement": at(*RESOURCES, 0, "digest", to="0" * 63)},
        resource_is_text={"statement": at(*RESOURCES, to=["a"])},
    )


def signatures() -> Iterator[Signature]:
    """All of them."""
    yield from sound()
    yield from refused()
