"""Signatures: made and read here, compared with the OpenSSF model signing, and everything that must not pass."""

import base64
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bsformat
from bsformat import BstkError, MemorySource
from bsformat.errors import FormatError, IntegrityError, SignatureError, UnsupportedError, WriteError
from bsformat.statement import LIMIT, Statement, pae
from tests.servers import Scripted

CURVES = {"p256": ec.SECP256R1(), "p384": ec.SECP384R1(), "p521": ec.SECP521R1()}
Json = dict[str, Any]


def save_key(folder: Path, name: str, key: Any, password: bytes | None = None) -> tuple[Path, Path]:
    """A private and a public key in PEM."""
    lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock))
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key pairs of three curves, and a second one of P-256."""
    folder = tmp_path_factory.mktemp("keys")
    for name, curve in CURVES.items():
        save_key(folder, name, ec.generate_private_key(curve))
    save_key(folder, "other", ec.generate_private_key(ec.SECP256R1()))
    return folder


@pytest.fixture
def signature(small: Path, keys: Path, tmp_path: Path) -> Path:
    """A signature of the small file."""
    bsformat.sign(small, keys / "p256.pem", tmp_path / "small.sig")
    return tmp_path / "small.sig"


def refused(signature: bytes | Path, key: Path) -> SignatureError:
    """The error of a signature that does not pass; it is one line."""
    source = MemorySource(signature, "a.sig") if isinstance(signature, bytes) else signature
    with pytest.raises(SignatureError) as caught:
        bsformat.read_signature(source, key)
    assert "\n" not in str(caught.value)
    return caught.value


def resigned(payload: Json | bytes, keys: Path, change: Callable[[Json], object] = lambda bundle: None) -> bytes:
    """A bundle of another payload with a signature that holds."""
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    key: Any = serialization.load_pem_private_key((keys / "p256.pem").read_bytes(), None)
    from cryptography.hazmat.primitives import hashes

    signature = key.sign(pae(data), ec.ECDSA(hashes.SHA256()))
    bundle = {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(data).decode(),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }
    change(bundle)
    return json.dumps(bundle).encode()


def payload_of(signature: Path) -> Json:
    value: Json = json.loads(base64.b64decode(json.loads(signature.read_bytes())["dsseEnvelope"]["payload"]))
    return value


# --- what holds ---


@pytest.mark.parametrize("curve", CURVES)
def test_round_trip(small: Path, keys: Path, tmp_path: Path, curve: str) -> None:
    made = bsformat.sign(small, keys / f"{curve}.pem", tmp_path / "a.sig")
    assert bsformat.read_signature(tmp_path / "a.sig", keys / f"{curve}.pub") == made
    assert made.name == "small.bstk"
    with bsformat.open(small, root=made.root):
        pass


def test_the_root_of_a_remote_file_is_known_after_its_head(
    small: Path, signature: Path, keys: Path, scripted: Scripted, tmp_path: Path
) -> None:
    """And the signature may be remote too; then block digests chain to the root."""
    scripted.data = signature.read_bytes()
    signed = bsformat.read_signature(scripted.url("small.sig"), keys / "p256.pub")
    assert len(scripted.requests) == 1
    scripted.data, scripted.etag = small.read_bytes(), '"two"'
    with bsformat.open(scripted.url("small.bstk"), root=signed.root, cache=False) as file:
        assert len(scripted.requests) == 2
        file.read_block(8)
    budget = 4200
    bsformat.fetch(scripted.url("small.bstk"), tmp_path / "prefix", budget, root=signed.root)
    with bsformat.open(tmp_path / "prefix", root=signed.root) as file:
        assert file.available_blocks < len(file)


def test_every_byte_of_the_file_is_read_once_but_attachments(small: Path, keys: Path, tmp_path: Path) -> None:
    with bsformat.open(small) as file:
        attachments = file.superblock.attachments_length
        before = file.source.bytes_read
        seen: list[int] = []
        bsformat.sign(file, keys / "p256.pem", tmp_path / "a.sig", progress=seen.append)
        assert sum(seen) == file.size
        assert file.source.bytes_read - before <= file.size + attachments


def test_an_encrypted_key(small: Path, tmp_path: Path) -> None:
    private, public = save_key(tmp_path, "locked", ec.generate_private_key(ec.SECP256R1()), b"secret")
    for password in (None, b"wrong"):
        with pytest.raises(SignatureError, match="BSTK_KEY_PASSWORD") as caught:
            bsformat.sign(small, private, tmp_path / "a.sig", password=password)
        assert caught.value.reason == "signature-key"
    bsformat.sign(small, private, tmp_path / "a.sig", password=b"secret")
    bsformat.read_signature(tmp_path / "a.sig", public)


# --- with the OpenSSF model signing ---


def model_signing(*args: object) -> "subprocess.CompletedProcess[str]":
    if any(importlib.util.find_spec(name) is None for name in ("model_signing", "OpenSSL")):
        pytest.skip("the packages model-signing and pyopenssl are not installed: pip install -e '.[dev]'")
    program = [sys.executable, "-P", "-m", "model_signing", *map(str, args)]
    return subprocess.run(program, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("curve", CURVES)
def test_their_verifier_takes_our_signature_of_the_file(small: Path, keys: Path, tmp_path: Path, curve: str) -> None:
    bsformat.sign(small, keys / f"{curve}.pem", tmp_path / "a.sig")
    options = ("--signature", tmp_path / "a.sig", "--public_key", keys / f"{curve}.pub")
    done = model_signing("verify", "key", small, *options)
    assert (done.returncode, done.stdout) == (0, "Verification succeeded\n"), done.stderr
    data = bytearray(small.read_bytes())
    data[-1] ^= 1
    small.write_bytes(data)
    assert model_signing("verify", "key", small, *options).returncode == 1


def test_their_signature_holds_and_says_that_it_names_no_root(small: Path, keys: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.sig"
    done = model_signing("sign", "key", small, "--signature", path, "--private_key", keys / "p256.pem")
    assert done.returncode == 0, done.stderr
    error = refused(path, keys / "p256.pub")
    assert error.reason == "signature-format"
    assert "names no root" in str(error)
    assert refused(path, keys / "other.pub").reason == "signature-key"


# --- what must not pass ---


def test_another_key(signature: Path, keys: Path) -> None:
    error = refused(signature, keys / "other.pub")
    assert error.reason == "signature-key"
    assert refused(signature, keys / "p384.pub").reason == "signature-key"


def test_another_key_that_is_not_named(signature: Path, keys: Path) -> None:
    bundle = json.loads(signature.read_bytes())
    for hint in (None, ""):
        bundle["verificationMaterial"]["publicKey"] = {"hint": hint}
        data = json.dumps(bundle).encode()
        bsformat.read_signature(MemorySource(data), keys / "p256.pub")
        assert refused(data, keys / "other.pub").reason == "signature-invalid"
        assert refused(data, keys / "p521.pub").reason == "signature-invalid"


def test_every_truncated_signature(signature: Path, keys: Path) -> None:
    data = signature.read_bytes()
    assert len(data) < 2000
    for size in range(len(data) - 2):  # the last byte is a line feed
        assert refused(data[:size], keys / "p256.pub").reason == "signature-format"


def test_no_changed_byte_says_anything_else(signature: Path, keys: Path) -> None:
    data, signed = signature.read_bytes(), bsformat.read_signature(signature, keys / "p256.pub")
    passed = 0
    for at in range(len(data)):
        for flip in (0x01, 0x20, 0x80):
            changed = data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :]
            try:
                found = bsformat.read_signature(MemorySource(changed), keys / "p256.pub")
            except SignatureError:
                continue
            assert found == signed
            passed += 1
    assert passed < 60  # names that nobody reads, and spaces


def test_another_root_in_the_statement(signature: Path, keys: Path) -> None:
    bundle, payload = json.loads(signature.read_bytes()), payload_of(signature)
    payload["predicate"]["bstk"]["root"] = "0" * 64
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    assert refused(json.dumps(bundle).encode(), keys / "p256.pub").reason == "signature-invalid"


DELETE = object()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("_type",), "https://in-toto.io/Statement/v0.1"),
        (("_type",), DELETE),
        (("predicateType",), "https://model_signing/Digests/v0.1"),
        (("subject",), []),
        (("subject",), "a"),
        (("subject", 0), 3),
        (("subject", 0, "name"), 3),
        (("subject", 0, "digest", "sha256"), "0" * 64),
        (("subject", 0, "digest"), DELETE),
        (("predicate",), []),
        (("predicate", "resources"), []),
        (("predicate", "resources", 0, "algorithm"), "blake3"),
        (("predicate", "resources", 0, "digest"), "0" * 63),
        (("predicate", "bstk"), DELETE),
        (("predicate", "bstk"), 3),
        (("predicate", "bstk", "root"), "A" * 64),
        (("predicate", "bstk", "root"), "é" * 64),
        (("predicate", "bstk", "root"), None),
    ],
)
def test_a_statement_that_is_none_of_ours(signature: Path, keys: Path, path: tuple[Any, ...], value: object) -> None:
    payload = payload_of(signature)
    bsformat.read_signature(MemorySource(resigned(payload, keys)), keys / "p256.pub")
    item: Any = payload
    for key in path[:-1]:
        item = item[key]
    if value is DELETE:
        del item[path[-1]]
    else:
        item[path[-1]] = value
    assert refused(resigned(payload, keys), keys / "p256.pub").reason == "signature-format"


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"", "no JSON"),
        (b"[]", "no JSON object"),
        (b"\xff{}", "no JSON"),
        (b'{"_type": 1, "_type": 1}', "a key stands twice"),
        (b"[" * 200_000, "no JSON"),
        (b'{"a": ' * 100_000, "no JSON"),
    ],
)
def test_json_that_would_hurt(keys: Path, payload: bytes, words: str) -> None:
    assert words in str(refused(payload, keys / "p256.pub"))
    assert words in str(refused(resigned(payload, keys), keys / "p256.pub"))


def set_at(*path: Any, value: object) -> Callable[[Json], None]:
    def change(bundle: Json) -> None:
        item: Any = bundle
        for key in path[:-1]:
            item = item[key]
        item[path[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        set_at("mediaType", value="application/vnd.dev.sigstore.bundle+json;version=0.2"),
        set_at("verificationMaterial", value={"certificate": {"rawBytes": ""}}),
        set_at("verificationMaterial", value=None),
        set_at("verificationMaterial", "publicKey", value="a"),
        set_at("verificationMaterial", "publicKey", value={"hint": 3}),
        set_at("dsseEnvelope", value=[]),
        set_at("dsseEnvelope", "payloadType", value="text/plain"),
        set_at("dsseEnvelope", "payload", value="!!"),
        set_at("dsseEnvelope", "payload", value=3),
        set_at("dsseEnvelope", "signatures", value=[]),
        set_at("dsseEnvelope", "signatures", value=[{"sig": ""}, {"sig": ""}]),
        set_at("dsseEnvelope", "signatures", value=["a"]),
        set_at("dsseEnvelope", "signatures", 0, "sig", value="é"),
    ],
)
def test_a_bundle_that_is_none(signature: Path, keys: Path, change: Callable[[Json], None]) -> None:
    data = resigned(payload_of(signature), keys, change)
    assert refused(data, keys / "p256.pub").reason == "signature-format"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value within a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_value_anywhere_is_refused_or_changes_nothing(signature: Path, keys: Path, data: st.DataObject) -> None:
    signed = bsformat.read_signature(signature, keys / "p256.pub")
    bundle, payload = json.loads(signature.read_bytes()), payload_of(signature)
    inside = data.draw(st.booleans())
    target = payload if inside else bundle
    set_at(*data.draw(st.sampled_from(list(places(target)))), value=data.draw(VALUES))(target)
    changed = resigned(payload, keys) if inside else json.dumps(bundle).encode()
    try:
        found = bsformat.read_signature(MemorySource(changed), keys / "p256.pub")
    except SignatureError:
        return
    assert (found.root, found.sha256) == (signed.root, signed.sha256)


def test_a_signature_that_is_empty(signature: Path, keys: Path) -> None:
    data = resigned(payload_of(signature), keys, set_at("dsseEnvelope", "signatures", 0, "sig", value=""))
    assert refused(data, keys / "p256.pub").reason == "signature-invalid"


def test_a_large_signature_is_not_read(keys: Path) -> None:
    error = refused(bytes(LIMIT + 1), keys / "p256.pub")
    assert (error.reason, str(LIMIT) in str(error)) == ("signature-format", True)


def test_a_long_name_in_a_message_is_cut(signature: Path, keys: Path) -> None:
    data = resigned(payload_of(signature), keys, set_at("mediaType", value="x\n" * 100_000))
    assert len(str(refused(data, keys / "p256.pub"))) < 800


@pytest.mark.parametrize("kind", ["rsa", "ed25519", "secp256k1", "text", "empty", "public", "private"])
def test_keys_that_do_not_do(small: Path, signature: Path, keys: Path, tmp_path: Path, kind: str) -> None:
    if kind in ("text", "empty"):
        private = public = tmp_path / "key"
        private.write_bytes(b"" if kind == "empty" else b"-----BEGIN PRIVATE KEY-----\nabc\n")
    elif kind in ("public", "private"):
        private, public = keys / "p256.pub", keys / "p256.pem"  # each in the place of the other
    else:
        make = {
            "rsa": lambda: rsa.generate_private_key(65537, 2048),
            "ed25519": ed25519.Ed25519PrivateKey.generate,
            "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
        }[kind]
        private, public = save_key(tmp_path, kind, make())
    assert refused(signature, public).reason == "signature-key"
    with pytest.raises(SignatureError) as caught:
        bsformat.sign(small, private, tmp_path / "a.sig")
    assert caught.value.reason == "signature-key"
    assert not (tmp_path / "a.sig").exists()


def test_files_that_are_not_there(signature: Path, small: Path, keys: Path, tmp_path: Path) -> None:
    none = tmp_path / "none"
    for call in (
        lambda: bsformat.read_signature(none, keys / "p256.pub"),
        lambda: bsformat.read_signature(signature, none),
        lambda: bsformat.sign(none, keys / "p256.pem", tmp_path / "a"),
        lambda: bsformat.sign(small, none, tmp_path / "a"),
    ):
        with pytest.raises(BstkError) as caught:
            call()
        assert (caught.value.reason, caught.value.where) == ("not-found", str(none))
    with pytest.raises(WriteError):
        bsformat.sign(small, keys / "p256.pem", tmp_path / "no" / "a.sig")


def test_no_damaged_file_is_signed(small: Path, keys: Path, tmp_path: Path) -> None:
    data = small.read_bytes()
    for at in range(0, len(data), 61):
        changed = data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
        with pytest.raises(FormatError):
            bsformat.sign(MemorySource(changed), keys / "p256.pem", tmp_path / "a.sig")
    assert os.listdir(tmp_path) == ["small.bstk"]


def test_no_prefix_file_is_signed(small: Path, keys: Path, tmp_path: Path) -> None:
    bsformat.fetch(small, tmp_path / "prefix", 4200)
    with pytest.raises(FormatError, match="fetch the whole file") as caught:
        bsformat.sign(tmp_path / "prefix", keys / "p256.pem", tmp_path / "a.sig")
    assert caught.value.reason == "truncated"


def test_a_file_in_the_place_of_the_signed_one(small: Path, signature: Path, keys: Path, tmp_path: Path) -> None:
    signed = bsformat.read_signature(signature, keys / "p256.pub")
    bsformat.repack(small, small)
    with pytest.raises(IntegrityError) as caught:
        bsformat.open(small, root=signed.root)
    assert caught.value.reason == "root-mismatch"


def test_a_head_that_changes_while_it_is_signed(small: Path, keys: Path, tmp_path: Path) -> None:
    """The bytes that are hashed are those whose root is signed."""
    bsformat.repack(small, tmp_path / "other", order="average")
    with bsformat.open(tmp_path / "other") as other, bsformat.open(small) as file:
        file.read = other.read  # type: ignore[method-assign]
        with pytest.raises(IntegrityError) as caught:
            bsformat.sign(file, keys / "p256.pem", tmp_path / "a.sig")
    assert caught.value.reason == "root-mismatch"


def test_without_cryptography(
    small: Path, signature: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    for call in (
        lambda: bsformat.read_signature(signature, keys / "p256.pub"),
        lambda: bsformat.sign(small, keys / "p256.pem", tmp_path / "a"),
    ):
        with pytest.raises(UnsupportedError, match=r"bitstack\[sign\]") as caught:
            call()
        assert caught.value.reason == "sign-missing"


def test_the_same_file_makes_the_same_statement() -> None:
    statement = Statement("a.bstk", "0" * 64, "1" * 64)
    assert statement.encode() == statement.encode()
    assert pae(b"ab") == b"DSSEv1 28 application/vnd.in-toto+json 2 ab"
