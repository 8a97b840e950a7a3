"""What someone with a key of their own signs, and what they cannot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from protocol import checkpoint
from protocol.keys import public_pem
from tests.kit.builders import Run, build_run, edit_info, fixed_root_key, safetensors_bytes
from tests.kit.hostile.cases import EMBED, NAN, NORM, OTHER_KEY, Cases, values_of

CASES = Cases()


@CASES.add("signed again with another key", OTHER_KEY)
def _(run: Run, step: Path) -> None:
    checkpoint.sign_checkpoint(step, fixed_root_key(9))


@CASES.add("signed again with another key, which checkpoint.json names", OTHER_KEY)
def _(run: Run, step: Path) -> None:
    edit_info(step, root_public_key=public_pem(fixed_root_key(9).public_key).decode())
    checkpoint.sign_checkpoint(step, fixed_root_key(9))


@CASES.add("NaN weights, run card and folder signed with another key", OTHER_KEY)
def _(run: Run, step: Path) -> None:
    other = fixed_root_key(9)
    tensors = {EMBED: ((8, 4), [*values_of(31), NAN]), NORM: ((4,), values_of(4))}
    (step / "model/model.safetensors").write_bytes(safetensors_bytes(tensors))
    pem = public_pem(other.public_key).decode()
    edit_info(step, root_public_key=pem, run_card=json.loads(run.card.sign(other).to_bytes()))
    checkpoint.sign_checkpoint(step, other)


@CASES.add("a whole run of the same name by another host", OTHER_KEY)
def _(run: Run, step: Path) -> None:
    shutil.rmtree(run.checkpoints)
    build_run(run.folder, keys=9)
