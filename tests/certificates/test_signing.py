"""Claims about espalier.certificates.signing: a signature tells who made a certificate, and nothing else passes for one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from clouds import WORDS, certified
from espalier import store
from espalier.certificates import certificate
from espalier.cli.main import main


def keys(folder: Path, name: str) -> tuple[Path, Path]:
    """A pair of keys in PEM files: private, public."""
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def test_a_signed_certificate_is_known_by_its_key_and_a_forged_one_is_not(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, theirs = keys(tmp_path, "mine"), keys(tmp_path, "theirs")
    certified(run, "--sign", str(mine[0]))
    capsys.readouterr()
    assert main(["verify", str(run), "--key", str(mine[1])]) == 0
    out = capsys.readouterr().out
    assert "ok    signature: signed by the owner of mine.pub" in out
    assert "anybody can compute a checksum" not in out
    assert main(["verify", str(run), "--key", str(theirs[1])]) == 1
    assert "FAIL  signature: certificate.sig is no signature of it by theirs.pub" in capsys.readouterr().out
    path = run / "certificate.json"  # what a checksum lets pass, a signature does not
    facts = store.check_signed(path)
    facts["circumstances"]["siblings"] = 0 if facts["circumstances"]["siblings"] else 1
    store.write_bytes(path.with_suffix(".md"), certificate.page(facts).encode())
    store.write_bytes(path, store.canonical(store.signed(facts)).encode())
    assert main(["verify", str(run)]) == 0
    assert main(["verify", str(run), "--key", str(mine[1])]) == 1
    (run / "certificate.sig").write_text("{}")
    assert main(["verify", str(run), "--key", str(mine[1])]) == 1
    (run / "certificate.sig").unlink()
    capsys.readouterr()
    assert main(["verify", str(run), "--key", str(mine[1])]) == 1
    assert "FAIL  signature: there is no certificate.sig" in capsys.readouterr().out


def test_a_key_that_is_none_is_refused_before_a_look_is_spent(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private, public = keys(tmp_path, "mine")
    locked = tmp_path / "locked.pem"
    key = ec.generate_private_key(ec.SECP256R1())
    locked.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word")))
    (tmp_path / "text.pem").write_text("no key")
    for bad in (tmp_path / "nothing.pem", tmp_path / "text.pem", public, locked):
        assert main(["certify", str(run), *WORDS, "--sign", str(bad)]) == 2
        err = capsys.readouterr().err
        assert "expected a private key in PEM" in err
        assert err.count("\n") == 1
    assert not (run / "looks.json").exists()
    certified(run)
    for bad in (tmp_path / "nothing.pem", private):
        assert main(["verify", str(run), "--key", str(bad)]) == 2
        assert "expected a public key in PEM" in capsys.readouterr().err


def test_the_signature_is_a_sigstore_bundle_of_the_certificate_itself(run: Path, tmp_path: Path) -> None:
    certified(run, "--sign", str(keys(tmp_path, "mine")[0]))
    bundle = json.loads((run / "certificate.sig").read_text())
    assert bundle["mediaType"].startswith("application/vnd.dev.sigstore.bundle")
