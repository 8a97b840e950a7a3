"""What a dishonest host says in checkpoint.json, and which file lists it signs."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from protocol import canonical, checkpoint
from protocol.envelope import pae
from tests.kit.builders import Run, edit_info, safetensors_bytes
from tests.kit.hostile.cases import GOOD, HOST, Cases

CASES = Cases()


@CASES.add("checkpoint.json names the state of other weights", HOST)
def _(run: Run, step: Path) -> None:
    (step / "model/model.safetensors").write_bytes(safetensors_bytes(GOOD))
    edit_info(step, state=run.state_of(step, 3).model_dump(mode="json"))
    run.resign(step)


@CASES.add("checkpoint.json of 17 MB", HOST)
def _(run: Run, step: Path) -> None:
    with open(step / "model/checkpoint.json", "ab") as file:
        file.write(b" " * (17 << 20))
    checkpoint.sign_checkpoint(step, run.root)


@CASES.add("a JSON key twice in checkpoint.json", HOST)
def _(run: Run, step: Path) -> None:
    path = step / "model/checkpoint.json"
    path.write_bytes(b'{"round":4,' + path.read_bytes()[1:])
    checkpoint.sign_checkpoint(step, run.root)


@CASES.add("checkpoint.json nested 100,000 levels deep", HOST)
def _(run: Run, step: Path) -> None:
    (step / "model/checkpoint.json").write_bytes(b'{"agreement":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    checkpoint.sign_checkpoint(step, run.root)


@CASES.add("checkpoint.json not in canonical form", HOST)
def _(run: Run, step: Path) -> None:
    path = step / "model/checkpoint.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()), indent=1))
    checkpoint.sign_checkpoint(step, run.root)


@CASES.add("an unknown key in checkpoint.json", HOST)
def _(run: Run, step: Path) -> None:
    edit_info(step, bonus=1)
    checkpoint.sign_checkpoint(step, run.root)


@CASES.add("signed, and never entered in the ledger", HOST)
def _(run: Run, step: Path) -> Path:
    (run.step(1) / "model/README.md").write_text("Another model card.\n")
    checkpoint.sign_checkpoint(run.step(1), run.root)
    return run.step(1)


def sign_list(run: Run, step: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Sign a file list that the model-signing library would not have made."""
    bundle = json.loads((step / "model.sig").read_bytes())
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    change(statement)
    digests = b"".join(bytes.fromhex(item["digest"]) for item in statement["predicate"]["resources"])
    statement["subject"][0]["digest"]["sha256"] = canonical.sha256_hex(digests)
    payload = json.dumps(statement).encode()
    signature = run.root.sign(pae("application/vnd.in-toto+json", payload))
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    (step / "model.sig").write_text(json.dumps(bundle))


@CASES.add("a path with .. in the signed file list", HOST)
def _(run: Run, step: Path) -> None:
    def change(statement: dict[str, Any]) -> None:
        extra = {"name": "../model.tlog-proof", "algorithm": "sha256"}
        extra["digest"] = canonical.sha256_hex((step / "model.tlog-proof").read_bytes())
        statement["predicate"]["resources"].append(extra)

    sign_list(run, step, change)


@CASES.add("an absolute path in the signed file list", HOST)
def _(run: Run, step: Path) -> None:
    def change(statement: dict[str, Any]) -> None:
        extra = {"name": "/etc/hostname", "algorithm": "sha256", "digest": "0" * 64}
        statement["predicate"]["resources"].append(extra)

    sign_list(run, step, change)


@CASES.add("a file twice in the signed file list", HOST)
def _(run: Run, step: Path) -> None:
    sign_list(
        run, step, lambda statement: statement["predicate"]["resources"].append(statement["predicate"]["resources"][0])
    )


@CASES.add("a signature that ignores some paths", HOST)
def _(run: Run, step: Path) -> None:
    (step / "model/.gitignore").write_text("secret\n")
    sign_list(run, step, lambda statement: statement["predicate"]["serialization"].update(ignore_paths=[".gitignore"]))


@CASES.add("a signature that allows links", HOST)
def _(run: Run, step: Path) -> None:
    def change(statement: dict[str, Any]) -> None:
        statement["predicate"]["serialization"]["allow_symlinks"] = True

    sign_list(run, step, change)
