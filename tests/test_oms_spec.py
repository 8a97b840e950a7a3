"""OpenSSF Model Signing v1.0: what we sign is what its schemas say, and what its verifiers must accept, ours accepts.

tests/vectors/oms holds the schemas and the test vectors of the specification. Where the stock command refuses what a
schema allows, so do we; what must be refused is refused by all three.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import model_signing
import pytest
import referencing

from protocol import checkpoint
from protocol.envelope import pae
from protocol.errors import FormatError, PotluckError, UnsupportedError
from protocol.keys import public_der, public_pem
from protocol.model_signature import ModelSignature
from protocol.report import Report
from protocol.verify import verify_checkpoint
from tests.kit.builders import Run, build_run, fixed_root_key
from tests.test_hostile_checkpoints import stock_verdict

VECTORS = Path(__file__).parent / "vectors"
OMS = VECTORS / "oms"
BUNDLES = OMS / "test-vectors" / "v1.0"
TYPE = "application/vnd.in-toto+json"
GIT = [".git", ".gitattributes", ".github", ".gitignore"]

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return build_run(tmp_path_factory.mktemp("run"), rounds=1)


def validator(name: str) -> jsonschema.Draft202012Validator:
    schemas = [json.loads(path.read_bytes()) for path in (OMS / "schemas").glob("*.schema.json")]
    assert len(schemas) == 4
    registry = referencing.Registry().with_contents([(schema["$id"], schema) for schema in schemas])
    wanted = f"https://model_signing/{name}/v1.0/schema"
    return jsonschema.Draft202012Validator(next(item for item in schemas if item["$id"] == wanted), registry=registry)


def holds(bundle: bytes) -> bool:
    """Whether the four schemas allow a bundle: bundle and envelope, then the statement and predicate inside."""
    try:
        value = json.loads(bundle)
    except ValueError:
        return False
    if not validator("bundle").is_valid(value):
        return False
    return validator("statement").is_valid(json.loads(base64.b64decode(value["dsseEnvelope"]["payload"])))


def accepts(bundle: bytes) -> bool:
    try:
        ModelSignature.from_bytes(bundle)
    except PotluckError:
        return False
    return True


def vectors(folder: str) -> list[Path]:
    found = sorted((BUNDLES / folder).glob("*.json"))
    assert found
    return found


# ---- what we sign ----------------------------------------------------------------------------------------------------


def test_what_we_sign_is_what_the_schemas_say(run: Run, tmp_path: Path) -> None:
    step = shutil.copytree(run.step(1), tmp_path / "step-000001")
    further = checkpoint.add_maintainer_signature(step, fixed_root_key(7))
    for path in (run.step(0) / "model.sig", step / "model.sig", further):
        assert holds(path.read_bytes()), path
        names = list(ModelSignature.read(path).files)
        assert names == sorted(names), "section 5.2.1: by name"


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_what_was_once_signed_is_what_the_schemas_say(kind: str) -> None:
    paths = list((VECTORS / "checkpoints" / kind).glob("*/model.sig"))
    assert len(paths) == 2 and all(holds(path.read_bytes()) for path in paths)


# ---- the specification's own bundles ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", vectors("valid"), ids=lambda path: path.name)
def test_the_schemas_allow_their_valid_vectors_and_we_read_those_by_a_key(path: Path) -> None:
    assert holds(path.read_bytes())
    if path.name == "key.bundle.json":
        assert list(ModelSignature.read(path).files) == ["signme-1", "signme-2"]
    else:
        with pytest.raises(UnsupportedError, match="by a certificate"):
            ModelSignature.read(path)


@pytest.mark.parametrize("path", [*vectors("invalid"), *vectors("invalid-payload")], ids=lambda path: path.name)
def test_what_the_specification_calls_invalid_we_refuse(path: Path) -> None:
    assert not holds(path.read_bytes())
    assert not accepts(path.read_bytes())


# ---- what must be accepted -------------------------------------------------------------------------------------------


def of(bundle: dict[str, Any]) -> dict[str, Any]:
    return bundle["dsseEnvelope"]["signatures"][0]


def with_bundle(run: Run, folder: Path, change: Change) -> Path:
    """A copy of genesis whose bundle says it differently."""
    step = shutil.copytree(run.step(0), folder / "step-000000")
    bundle = json.loads((step / "model.sig").read_bytes())
    change(bundle)
    (step / "model.sig").write_text(json.dumps(bundle))
    return step


def with_statement(run: Run, folder: Path, change: Change) -> Path:
    """A copy of genesis whose signed statement is another; signed by the run's key."""

    def again(bundle: dict[str, Any]) -> None:
        statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
        change(statement)
        payload = json.dumps(statement).encode()
        bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
        of(bundle)["sig"] = base64.b64encode(run.root.sign(pae(TYPE, payload))).decode()

    return with_bundle(run, folder, again)


def verified(run: Run, step: Path) -> Report:
    """The whole verifier; the ledger holds the payload that is there now."""
    run.copy(step.parent).log(step)
    return verify_checkpoint(step, trusted=run.trusted)


def raw_key(run: Run, form: Callable[[Any], bytes]) -> Change:
    key = {"rawBytes": base64.b64encode(form(run.root.public_key)).decode(), "keyDetails": "PKIX_ECDSA_P256_SHA_256"}
    return lambda bundle: bundle["verificationMaterial"].update(publicKey=key)


STAMP = {"timestampVerificationData": {"rfc3161Timestamps": [{"signedTimestamp": "AAAA"}]}}
BUNDLES_TO_ACCEPT: dict[str, Callable[[Run], Change]] = {
    "keyid null": lambda run: lambda bundle: of(bundle).update(keyid=None),
    "keyid absent": lambda run: lambda bundle: of(bundle).pop("keyid"),
    "keyid of any text": lambda run: lambda bundle: of(bundle).update(keyid="root"),
    "the key in place of its hint, PEM": lambda run: raw_key(run, public_pem),
    "the key in place of its hint, DER": lambda run: raw_key(run, public_der),
    "no log entries": lambda run: lambda bundle: bundle["verificationMaterial"].pop("tlogEntries", None),
    "timestamps": lambda run: lambda bundle: bundle["verificationMaterial"].update(STAMP),
    "no timestamps among them": lambda run: (
        lambda bundle: bundle["verificationMaterial"].update(timestampVerificationData={"rfc3161Timestamps": []})
    ),
    "a second signature": lambda run: (
        lambda bundle: bundle["dsseEnvelope"]["signatures"].append({"sig": "AAAA", "keyid": "somebody"})
    ),
}
STATEMENTS_TO_ACCEPT: dict[str, Change] = {
    "nothing left out": lambda statement: statement["predicate"]["serialization"].update(ignore_paths=[]),
    "git's files left out": lambda statement: statement["predicate"]["serialization"].update(ignore_paths=GIT),
    "another model name": lambda statement: statement["subject"][0].update(name="my-model"),
    "unknown fields of a file": lambda statement: statement["predicate"]["resources"][0].update(
        uri="x", annotations={}
    ),
}


@pytest.mark.parametrize("what", BUNDLES_TO_ACCEPT)
def test_bundle_that_must_be_accepted_is(what: str, run: Run, tmp_path: Path) -> None:
    step = with_bundle(run, tmp_path, BUNDLES_TO_ACCEPT[what](run))
    assert holds((step / "model.sig").read_bytes()) and stock_verdict(step, run) == "accepts"
    report = verified(run, step)
    assert report.ok, report.to_text()
    looked_away = any("were not looked at" in note for note in report.notes)
    assert looked_away == (what in ("timestamps", "no timestamps among them", "a second signature"))


@pytest.mark.parametrize("what", STATEMENTS_TO_ACCEPT)
def test_statement_that_must_be_accepted_is(what: str, run: Run, tmp_path: Path) -> None:
    step = with_statement(run, tmp_path, STATEMENTS_TO_ACCEPT[what])
    assert holds((step / "model.sig").read_bytes()) and stock_verdict(step, run) == "accepts"
    report = verified(run, step)
    assert report.ok, report.to_text()


def test_a_checkpoint_signed_by_the_stock_command_as_it_comes_is_accepted_and_what_it_leaves_out_is_not(
    run: Run, tmp_path: Path
) -> None:
    step = shutil.copytree(run.step(0), tmp_path / "step-000000")
    (tmp_path / "root.pem").write_bytes(run.root.to_pem())
    config = model_signing.signing.Config().use_elliptic_key_signer(private_key=tmp_path / "root.pem")
    config.sign(step / "model", step / "model.sig")
    signature = ModelSignature.read(step / "model.sig")
    assert {str(path) for path in signature.left_out} == set(GIT)
    assert verified(run, step).ok
    (step / "model/.gitignore").write_text("unsigned\n")
    assert "refused: files: .gitignore: not signed for" in verified(run, step).verdict


# ---- what must be refused --------------------------------------------------------------------------------------------


BUNDLES_TO_REFUSE: dict[str, Change] = {
    "a field more": lambda bundle: bundle.update(more=1),
    "a field more in the envelope": lambda bundle: bundle["dsseEnvelope"].update(more=1),
    "a field more in a signature": lambda bundle: of(bundle).update(more=1),
    "no key": lambda bundle: bundle["verificationMaterial"].pop("publicKey"),
    "no hint": lambda bundle: bundle["verificationMaterial"].update(publicKey={}),
    "a hint that is no text": lambda bundle: bundle["verificationMaterial"].update(publicKey={"hint": None}),
    "a keyid that is no text": lambda bundle: of(bundle).update(keyid=7),
    "no signature": lambda bundle: bundle["dsseEnvelope"].update(signatures=[]),
    "a second signature that is none": lambda bundle: bundle["dsseEnvelope"]["signatures"].append("x"),
    "log entries that are none": lambda bundle: bundle["verificationMaterial"].update(tlogEntries=["x"]),
    "timestamps that are none": lambda bundle: bundle["verificationMaterial"].update(timestampVerificationData=[]),
    "another payload type": lambda bundle: bundle["dsseEnvelope"].update(payloadType="application/json"),
    "another bundle": lambda bundle: bundle.update(mediaType="application/vnd.example"),
}
STATEMENTS_TO_REFUSE: dict[str, Change] = {
    "a field more": lambda statement: statement.update(more=1),
    "a field more in the predicate": lambda statement: statement["predicate"].update(more=1),
    "a field more in the serialization": lambda statement: statement["predicate"]["serialization"].update(more=1),
    "no model name": lambda statement: statement["subject"][0].update(name=""),
    "two subjects": lambda statement: statement["subject"].append(statement["subject"][0]),
    "nothing said of links": lambda statement: statement["predicate"]["serialization"].pop("allow_symlinks"),
    "links that are no yes or no": lambda statement: statement["predicate"]["serialization"].update(
        allow_symlinks="false"
    ),
    "left out, and no path": lambda statement: statement["predicate"]["serialization"].update(ignore_paths=[""]),
    "left out, and no list": lambda statement: statement["predicate"]["serialization"].update(ignore_paths=".git"),
    "parts without their size": lambda statement: statement["predicate"]["serialization"].update(method="shards"),
    "another hash": lambda statement: statement["predicate"]["serialization"].update(hash_type="md5"),
    "a digest in capitals": lambda statement: statement["predicate"]["resources"][0].update(
        digest=statement["predicate"]["resources"][0]["digest"].upper()
    ),
}


@pytest.mark.parametrize("what", BUNDLES_TO_REFUSE)
def test_bundle_that_the_schemas_refuse_is_refused(what: str, run: Run, tmp_path: Path) -> None:
    data = (with_bundle(run, tmp_path, BUNDLES_TO_REFUSE[what]) / "model.sig").read_bytes()
    assert not holds(data)
    assert not accepts(data)


@pytest.mark.parametrize("what", STATEMENTS_TO_REFUSE)
def test_statement_that_the_schemas_refuse_is_refused(what: str, run: Run, tmp_path: Path) -> None:
    data = (with_statement(run, tmp_path, STATEMENTS_TO_REFUSE[what]) / "model.sig").read_bytes()
    assert not holds(data)
    assert not accepts(data)


@pytest.mark.parametrize("path", ["model.safetensors", ".", "./config.json", "ledger"])
def test_a_file_that_is_signed_for_and_left_out_is_refused(path: str, run: Run, tmp_path: Path) -> None:
    """The schemas cannot say it; the stock command does not find the file that it leaves out."""

    def leave_out(statement: dict[str, Any]) -> None:
        statement["predicate"]["serialization"]["ignore_paths"] = [path]

    step = with_statement(run, tmp_path, leave_out)
    assert stock_verdict(step, run) == "refuses"
    with pytest.raises(FormatError, match="is signed for and left out"):
        ModelSignature.read(step / "model.sig")


@pytest.mark.parametrize("change", [{"method": "shards", "shard_size": 100}, {"hash_type": "blake3"}])
def test_what_only_the_stock_command_checks_is_said_to_be_that(
    change: dict[str, Any], run: Run, tmp_path: Path
) -> None:
    step = with_statement(run, tmp_path, lambda statement: statement["predicate"]["serialization"].update(change))
    with pytest.raises(UnsupportedError, match="only whole files by SHA-256 are checked here"):
        ModelSignature.read(step / "model.sig")
