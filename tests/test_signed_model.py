"""A model that the stock command signed with a key: yes where that command says yes, and plain words where not."""

from __future__ import annotations

import shutil
from pathlib import Path

import model_signing
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from protocol.errors import InputError, UnsupportedError
from protocol.keys import fingerprint
from protocol.model_signature import MAX_BUNDLE_BYTES
from protocol.report import Answer, Report
from protocol.signed_model import LIMITS, verify_model
from tests.kit.builders import build_run, fixed_root_key

CURVES = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
VECTORS = Path(__file__).parent / "vectors" / "oms" / "test-vectors" / "v1.0"
KEY = ec.derive_private_key(4, ec.SECP384R1())


def sign(model: Path, signature: Path, key: ec.EllipticCurvePrivateKey = KEY) -> None:
    """As `model_signing sign key MODEL --signature SIGNATURE --private_key …` does, with nothing else said."""
    path = model.parent / "signer.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    hashing = model_signing.hashing.Config()
    hashing.set_ignored_paths(paths=[signature.relative_to(model)] if signature.is_relative_to(model) else [])
    config = model_signing.signing.Config().use_elliptic_key_signer(private_key=path)
    config.set_hashing_config(hashing).sign(model, signature)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model-of-somebody"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "config.json").write_text("{}\n")
    (folder / "weights.bin").write_bytes(bytes(1000))
    (folder / "tokenizer" / "vocab.txt").write_text("a\nb\n")
    return folder


def verify(model: Path, signature: Path, *keys: ec.EllipticCurvePublicKey) -> Report:
    return verify_model(model, signature, keys or [KEY.public_key()])


@pytest.mark.parametrize("curve", CURVES)
def test_a_model_that_the_stock_command_signed_is_accepted_and_what_that_does_not_prove_is_said(
    curve: str, model: Path, tmp_path: Path
) -> None:
    key = ec.derive_private_key(5, CURVES[curve])
    sign(model, tmp_path / "model.sig", key)
    report = verify(model, tmp_path / "model.sig", key.public_key())
    assert report.ok, report.to_text()
    assert report.fingerprint == fingerprint(key.public_key()) and report.kind == "model"
    assert report.verdict == (
        f"verified: these are the files that {report.fingerprint} signed; of a run it says nothing"
    )
    assert report.notes == [LIMITS]
    for word in ("run", "ledger", "came from", "newest"):
        assert word in LIMITS


def test_one_of_several_keys_suffices(model: Path, tmp_path: Path) -> None:
    sign(model, tmp_path / "model.sig")
    others = [fixed_root_key(number).public_key for number in (1, 2)]
    assert verify(model, tmp_path / "model.sig", *others, KEY.public_key()).ok
    report = verify(model, tmp_path / "model.sig", *others)
    assert report.verdict == "refused: signature: made with none of the 2 keys that were given"


def test_a_model_that_is_one_file_is_accepted_and_refused_when_it_changed(tmp_path: Path) -> None:
    path = tmp_path / "weights.gguf"
    path.write_bytes(b"weights")
    sign(path, tmp_path / "weights.sig")
    assert verify(path, tmp_path / "weights.sig").ok
    path.write_bytes(b"others")
    assert "changed since it was signed" in verify(path, tmp_path / "weights.sig").verdict


def test_the_signature_may_lie_in_the_model_and_nothing_else_that_was_not_signed(model: Path) -> None:
    sign(model, model / "model.sig")
    assert verify(model, model / "model.sig").ok
    shutil.copy(model / "model.sig", model / "other.sig")
    assert verify(model, model / "model.sig").verdict == "refused: files: other.sig: not signed for"


def test_a_link_to_a_model_is_followed_and_a_link_in_it_is_not(model: Path, tmp_path: Path) -> None:
    sign(model, tmp_path / "model.sig")
    (tmp_path / "newest").symlink_to(model.name)
    (tmp_path / "newest.sig").symlink_to("model.sig")
    assert verify(tmp_path / "newest", tmp_path / "newest.sig").ok
    shutil.move(model / "config.json", tmp_path / "config.json")
    (model / "config.json").symlink_to(tmp_path / "config.json")
    assert "config.json: a symbolic link" in verify(model, tmp_path / "model.sig").verdict


def remove(model: Path) -> None:
    (model / "config.json").unlink()


def add(model: Path) -> None:
    (model / "extra.py").write_text("print()\n")


def add_what_is_left_out(model: Path) -> None:
    (model / ".git").mkdir()
    (model / ".git" / "config").write_text("\n")


def change(model: Path) -> None:
    (model / "tokenizer" / "vocab.txt").write_text("a\nc\n")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (remove, "config.json: missing"),
        (add, "extra.py: not signed for"),
        (add_what_is_left_out, ".git/config: not signed for; the signer left it out"),
        (change, "tokenizer/vocab.txt: changed since it was signed"),
    ],
)
def test_a_file_missing_added_or_changed_is_one_plain_line(what, said: str, model: Path, tmp_path: Path) -> None:
    sign(model, tmp_path / "model.sig")
    what(model)
    report = verify(model, tmp_path / "model.sig")
    assert (report.answer, report.verdict) == (Answer.REFUSED, f"refused: files: {said}")


@pytest.mark.parametrize("other", [fixed_root_key(9).public_key, ec.derive_private_key(9, ec.SECP384R1()).public_key()])
def test_another_key_is_one_plain_line(other: ec.EllipticCurvePublicKey, model: Path, tmp_path: Path) -> None:
    sign(model, tmp_path / "model.sig")
    report = verify(model, tmp_path / "model.sig", other)
    assert report.verdict == f"refused: signature: made with another key than {fingerprint(other)}"
    assert report.answer.exit_code == 1 and report.fingerprint is None


def test_what_is_no_signature_is_refused_before_it_is_read_to_its_end(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.sig"
    path.write_text("hello")
    assert "refused: signature: not JSON" in verify(model, path).verdict
    with path.open("wb") as file:
        file.truncate(MAX_BUNDLE_BYTES + 1)
    assert "expected at most" in verify(model, path).verdict


@pytest.mark.parametrize("name", ["certificate", "sigstore"])
def test_a_signature_by_a_certificate_is_no_tampering_and_not_checked_here(name: str, model: Path) -> None:
    with pytest.raises(UnsupportedError, match="only those by a key") as caught:
        verify(model, VECTORS / "valid" / f"{name}.bundle.json")
    assert caught.value.exit_code == 2 and "model_signing verify" in caught.value.hint


def test_what_is_not_there_and_a_whole_checkpoint_are_wrong_input(model: Path, tmp_path: Path) -> None:
    sign(model, tmp_path / "model.sig")
    with pytest.raises(InputError, match="no such file or folder"):
        verify(tmp_path / "absent", tmp_path / "model.sig")
    with pytest.raises(InputError, match=r"absent\.sig: no such file"):
        verify(model, tmp_path / "absent.sig")
    run = build_run(tmp_path / "run", rounds=0)
    with pytest.raises(InputError, match="a checkpoint of a run"):
        verify(run.step(0), run.step(0) / "model.sig", run.root.public_key)
    assert verify(run.step(0) / "model", run.step(0) / "model.sig", run.root.public_key).ok
