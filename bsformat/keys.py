"""Keys that sign and verify: elliptic curves as the OpenSSF model signing takes them. Needs the extra ``sign``."""

import hashlib
from typing import Any

from .errors import SignatureError, UnsupportedError

_CURVES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}


def sign_bytes(private_key: bytes, data: bytes, password: bytes | None, where: str) -> tuple[bytes, str]:
    """An ECDSA signature over ``data``.

    Args:
        private_key: PEM of a key on P-256, P-384 or P-521. password: of an encrypted one, or None.

    Returns:
        The signature in DER, and the hint of the public key.

    Raises:
        SignatureError: reason ``signature-key``. UnsupportedError: the package cryptography is missing.
    """
    serialization, ec, hashes, _ = _cryptography(where)
    try:
        key = serialization.load_pem_private_key(private_key, password)
    except (ValueError, TypeError) as error:
        if "password" in str(error).lower():
            what = "needs a password" if password is None else "is not encrypted, or the password is not its own"
            raise _unusable(f"the private key {what}; BSTK_KEY_PASSWORD gives it", where) from None
        raise _unusable(
            "not a private key in PEM: make one with openssl ecparam -name prime256v1 -genkey", where
        ) from None
    except Exception as error:
        raise _unusable(f"the private key cannot be used: {error}", where) from None
    _check(key, ec.EllipticCurvePrivateKey, where)
    signature: bytes = key.sign(data, ec.ECDSA(_hash(key, hashes)))
    return signature, _hint(key.public_key(), serialization)


def check_bytes(public_key: bytes, data: bytes, signature: bytes, hint: str, where: str, signed: str) -> str:
    """Refuse a signature over ``data`` that the key did not make.

    Args:
        public_key: PEM; it came from ``where``.
        hint: of the key that the signature names; "" if it names none.
        signed: where the signature came from, for messages.

    Returns:
        The hint of the key.

    Raises:
        SignatureError: reasons ``signature-key`` and ``signature-invalid``. UnsupportedError: cryptography is missing.
    """
    serialization, ec, hashes, invalid = _cryptography(where)
    try:
        key = serialization.load_pem_public_key(public_key)
    except Exception:
        raise _unusable("not a public key in PEM: openssl ec -in KEY -pubout makes it", where) from None
    _check(key, ec.EllipticCurvePublicKey, where)
    own = _hint(key, serialization)
    if hint and hint != own:
        raise _unusable(f"made with another key: it names {hint[:16]}…, the public key is {own[:16]}…", signed)
    try:
        key.verify(signature, data, ec.ECDSA(_hash(key, hashes)))
    except invalid:
        raise SignatureError(
            "the signature does not hold: it, or what it signs, was changed, or it was made with another key",
            where=signed,
        ) from None
    return own


def _hint(public_key: Any, serialization: Any) -> str:
    pem = public_key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()


def _hash(key: Any, hashes: Any) -> Any:
    return getattr(hashes, _CURVES[key.curve.name])()


def _check(key: Any, kind: type, where: str) -> None:
    if not isinstance(key, kind) or key.curve.name not in _CURVES:  # type: ignore[attr-defined]
        what = getattr(getattr(key, "curve", None), "name", type(key).__name__)
        raise _unusable(f"a key of {what}; keys are elliptic curves P-256, P-384 or P-521", where)


def _unusable(message: str, where: str) -> SignatureError:
    return SignatureError(message, where=where, reason="signature-key")


def _cryptography(where: str) -> tuple[Any, Any, Any, Any]:
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError:
        raise UnsupportedError(
            "signatures need the package cryptography: pip install 'bitstack[sign]'", where=where, reason="sign-missing"
        ) from None
    return serialization, ec, hashes, InvalidSignature
