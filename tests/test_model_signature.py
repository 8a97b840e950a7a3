"""Model signatures: what ours accepts, the stock command accepts too, whatever was changed in the bundle."""

from __future__ import annotations

import base64
import copy
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol import canonical, files
from protocol.envelope import pae
from protocol.errors import PotluckError
from protocol.keys import public_pem
from protocol.model_signature import ModelSignature
from tests.kit.builders import Run, build_run
from tests.test_hostile_checkpoints import stock_verdict

REPLACEMENTS = (None, 0, True, "", "x", "AA==", [], [1], {}, {"a": 1})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return build_run(tmp_path_factory.mktemp("run"), rounds=0)


def changes_of(tree: Any, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """Every tree that differs from `tree` in one place: removed, replaced, doubled or joined by another."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        for change in ("remove", "add", *REPLACEMENTS):
            other = copy.deepcopy(tree)
            if change == "remove":
                del other[key]
            elif change == "add" and isinstance(other[key], dict):
                other[key]["another"] = 1
            elif change == "add" and isinstance(other[key], list) and other[key]:
                other[key].append(copy.deepcopy(other[key][0]))
            elif change != "add":
                other[key] = change
            if other != tree:
                yield (*path, key, str(change)), other
        for where, inner in changes_of(tree[key], (*path, key)):
            yield where, (tree | {key: inner} if isinstance(tree, dict) else [*tree[:key], inner, *tree[key + 1 :]])


def ours_accepts(run: Run, step: Path) -> bool:
    """The signature and the files: what the stock command looks at."""
    try:
        signature = ModelSignature.read(step / "model.sig")
        signature.verify(run.root.public_key)
    except PotluckError:
        return False
    return signature.files == {name: digest for name, (digest, _) in files.hash_folder(step / "model").items()}


def test_a_signature_by_the_library_is_accepted_by_both(run: Run) -> None:
    assert ours_accepts(run, run.step(0))
    assert stock_verdict(run.step(0), run) == "accepts"


def test_what_ours_accepts_of_a_changed_bundle_the_stock_command_accepts(run: Run, tmp_path: Path) -> None:
    step = shutil.copytree(run.step(0), tmp_path / "step-000000")
    bundle = json.loads((step / "model.sig").read_bytes())
    tried = 0
    for where, changed in changes_of(bundle):
        (step / "model.sig").write_text(json.dumps(changed))
        tried += 1
        if ours_accepts(run, step):
            assert stock_verdict(step, run) == "accepts", where
    assert tried > 100


def test_what_ours_accepts_of_a_changed_and_signed_statement_the_stock_command_accepts(
    run: Run, tmp_path: Path
) -> None:
    step = shutil.copytree(run.step(0), tmp_path / "step-000000")
    bundle = json.loads((step / "model.sig").read_bytes())
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    tried = 0
    for where, changed in changes_of(statement):
        try:
            payload = canonical.dumps(changed)
        except PotluckError:
            continue
        signature = run.root.sign(pae("application/vnd.in-toto+json", payload))
        bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
        bundle["dsseEnvelope"]["signatures"] = [{"sig": base64.b64encode(signature).decode(), "keyid": ""}]
        (step / "model.sig").write_text(json.dumps(bundle))
        tried += 1
        if ours_accepts(run, step):
            assert stock_verdict(step, run) == "accepts", where
    assert tried > 200


def test_openssl_alone_can_check_who_signed(run: Run, tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    envelope = json.loads((run.step(0) / "model.sig").read_bytes())["dsseEnvelope"]
    payload = base64.b64decode(envelope["payload"])
    (tmp_path / "signed").write_bytes(b"DSSEv1 28 application/vnd.in-toto+json %d %b" % (len(payload), payload))
    (tmp_path / "sig").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    (tmp_path / "coordinator.pub").write_bytes(public_pem(run.root.public_key))
    command = [openssl, "dgst", "-sha256", "-verify", "coordinator.pub", "-signature", "sig", "signed"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "Verified OK", done.stderr
