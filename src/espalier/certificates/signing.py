"""Signatures of certificates by OpenSSF model signing, with an elliptic-curve key of the user's; the extra `sign`.

A certificate binds by SHA-256 all that it rests on, so its own text is what is signed: CERTIFICATE.sig, a Sigstore bundle that
`model_signing verify key` reads as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def signer(key: Path) -> Any:
    """What signs with the private key in a PEM file, unencrypted. Raises ValueError where it is none, or the extra is missing."""
    from_key = _model_signing("signing").Config()
    return _with_key(from_key.use_elliptic_key_signer, key, "private_key", "openssl ecparam -name prime256v1 -genkey -noout")


def sign(certificate: Path, by: Any) -> Path:
    """Sign a certificate; returns the signature's file."""
    signature = certificate.with_suffix(".sig")
    by.sign(certificate, signature)
    return signature


def is_signed(certificate: Path, key: Path) -> tuple[bool, str]:
    """Was the certificate, as it is now, signed by the owner of this public key? Raises ValueError where the key is none."""
    config = _model_signing("verifying").Config()
    verifier = _with_key(config.use_elliptic_key_verifier, key, "public_key", "openssl ec -in KEY -pubout")
    signature = certificate.with_suffix(".sig")
    if not signature.is_file():
        return False, f"there is no {signature.name}"
    try:
        verifier.verify(certificate, signature)
    except Exception as error:  # noqa: BLE001 - a file that anybody could have put there; whatever it is, it is no signature
        return False, f"{signature.name} is no signature of it by {key.name}: {' '.join(str(error).split())[:120]}"
    return True, f"signed by the owner of {key.name}"


def _model_signing(part: str) -> Any:
    try:
        import model_signing.signing
        import model_signing.verifying
    except ImportError as error:
        raise ValueError('expected model-signing for signatures: pip install "espalier[sign]"') from error
    return getattr(model_signing, part)


def _with_key(use: Any, key: Path, name: str, made_by: str) -> Any:
    try:
        return use(**{name: key})
    except (OSError, ValueError, TypeError) as error:
        why = " ".join(str(error).split())[:120]
        raise ValueError(f"expected a {name.replace('_', ' ')} in PEM at {key} ({made_by}), but {why}") from error
