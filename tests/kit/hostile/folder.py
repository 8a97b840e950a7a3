"""What anyone can do who may write to a published folder."""

from __future__ import annotations

import base64
import json
import os
import shutil
from pathlib import Path

from protocol import checkpoint
from tests.kit.builders import Run, edit_info, fixed_ed25519, fixed_root_key
from tests.kit.hostile.cases import ANYONE, Cases, flip

CASES = Cases()


@CASES.add("one bit of the weights flipped", ANYONE)
def _(run: Run, step: Path) -> None:
    flip(step / "model/model.safetensors", -1)


@CASES.add("one bit of config.json flipped", ANYONE)
def _(run: Run, step: Path) -> None:
    flip(step / "model/config.json", 3)


@CASES.add("held-out loss in checkpoint.json improved", ANYONE)
def _(run: Run, step: Path) -> None:
    edit_info(step, evaluation={"held_out_loss": 1.0, "sequences": 4, "tokens": 64})


@CASES.add("a file added", ANYONE)
def _(run: Run, step: Path) -> None:
    (step / "model/notes.txt").write_text("hello\n")


@CASES.add("a file removed", ANYONE)
def _(run: Run, step: Path) -> None:
    (step / "model/LICENSE").unlink()


@CASES.add("a file renamed", ANYONE)
def _(run: Run, step: Path) -> None:
    (step / "model/LICENSE").rename(step / "model/LICENCE")


@CASES.add("two files swapped", ANYONE)
def _(run: Run, step: Path) -> None:
    model = step / "model"
    (model / "LICENSE").rename(model / "x")
    (model / "README.md").rename(model / "LICENSE")
    (model / "x").rename(model / "README.md")


@CASES.add("a file replaced by a link to its copy", ANYONE)
def _(run: Run, step: Path) -> None:
    shutil.move(step / "model/README.md", run.folder / "README.md")
    (step / "model/README.md").symlink_to(run.folder / "README.md")


@CASES.add("a folder replaced by a link to its copy", ANYONE)
def _(run: Run, step: Path) -> None:
    shutil.move(step / "model/ledger", run.folder / "ledger")
    (step / "model/ledger").symlink_to(run.folder / "ledger")


@CASES.add("an empty folder added", ANYONE)
def _(run: Run, step: Path) -> None:
    (step / "model/extra").mkdir()


@CASES.add("a hidden .git folder added", ANYONE)
def _(run: Run, step: Path) -> None:
    (step / "model/.git").mkdir()
    (step / "model/.git/config").write_text("[core]\n")


@CASES.add("a named pipe added", ANYONE)
def _(run: Run, step: Path) -> None:
    os.mkfifo(step / "model/pipe")


@CASES.add("a file added beside model/", ANYONE)
def _(run: Run, step: Path) -> None:
    (step / "pytorch_model.bin").write_bytes(b"\x80\x04.")


@CASES.add("the signature removed", ANYONE)
def _(run: Run, step: Path) -> None:
    (step / "model.sig").unlink()


@CASES.add("the log proof removed", ANYONE)
def _(run: Run, step: Path) -> None:
    (step / "model.tlog-proof").unlink()


@CASES.add("checkpoint.json removed", ANYONE)
def _(run: Run, step: Path) -> None:
    (step / "model/checkpoint.json").unlink()


@CASES.add("the signature of another checkpoint of the run", ANYONE)
def _(run: Run, step: Path) -> None:
    shutil.copy(run.step(2) / "model.sig", step / "model.sig")


@CASES.add("one bit of the signature flipped", ANYONE)
def _(run: Run, step: Path) -> None:
    bundle = json.loads((step / "model.sig").read_bytes())
    raw = bytearray(base64.b64decode(bundle["dsseEnvelope"]["signatures"][0]["sig"]))
    raw[-1] ^= 1
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(raw).decode()
    (step / "model.sig").write_text(json.dumps(bundle))


@CASES.add("a JSON key twice in model.sig", ANYONE)
def _(run: Run, step: Path) -> None:
    text = (step / "model.sig").read_text()
    (step / "model.sig").write_text('{"mediaType": "application/x",' + text[1:])


@CASES.add("model.sig of 17 MB", ANYONE)
def _(run: Run, step: Path) -> None:
    text = (step / "model.sig").read_text()
    (step / "model.sig").write_text(text + " " * (17 << 20))


@CASES.add("the log proof of another checkpoint of the run", ANYONE)
def _(run: Run, step: Path) -> None:
    shutil.copy(run.step(2) / "model.tlog-proof", step / "model.tlog-proof")


@CASES.add("one bit of a hash in the log proof flipped", ANYONE)
def _(run: Run, step: Path) -> None:
    lines = (step / "model.tlog-proof").read_text().split("\n")
    raw = bytearray(base64.b64decode(lines[2]))
    raw[0] ^= 1
    lines[2] = base64.b64encode(raw).decode()
    (step / "model.tlog-proof").write_text("\n".join(lines))


@CASES.add("the log proof cut short", ANYONE)
def _(run: Run, step: Path) -> None:
    lines = (step / "model.tlog-proof").read_text().split("\n")
    del lines[2]
    (step / "model.tlog-proof").write_text("\n".join(lines))


@CASES.add("a log proof whose ledger head another key signed", ANYONE)
def _(run: Run, step: Path) -> None:
    run.ledger_key = fixed_ed25519("someone else's ledger")
    checkpoint.write_log_proof(step, run.proof(run.tree.size - 1))


@CASES.add("a log proof of 1 MB", ANYONE)
def _(run: Run, step: Path) -> None:
    path = step / "model.tlog-proof"
    path.write_text(path.read_text() + "\n" * (1 << 20))


@CASES.add("the folder renamed to another round's", ANYONE)
def _(run: Run, step: Path) -> Path:
    return step.rename(step.with_name("step-000009"))


@CASES.add("one bit of an ancestor's weights flipped", ANYONE)
def _(run: Run, step: Path) -> None:
    flip(run.step(1) / "model/model.safetensors", -1)


@CASES.add("an ancestor removed", ANYONE)
def _(run: Run, step: Path) -> None:
    shutil.rmtree(run.step(1))


@CASES.add("an ancestor replaced by a link to its copy", ANYONE)
def _(run: Run, step: Path) -> None:
    shutil.move(run.step(2), run.folder / "copy")
    run.step(2).symlink_to(run.folder / "copy")


@CASES.add("a maintainer's signature moved here from another checkpoint", ANYONE)
def _(run: Run, step: Path) -> None:
    path = checkpoint.add_maintainer_signature(run.step(2), fixed_root_key(7))
    shutil.copytree(path.parent, step / "signatures")


@CASES.add("an ancestor's log proof removed", ANYONE)
def _(run: Run, step: Path) -> None:
    (run.step(1) / "model.tlog-proof").unlink()
