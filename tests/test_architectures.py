"""Each of the architectures that people fine-tune most, from a tiny base to a signed checkpoint that others load.

docs/architectures.md holds what came of it. After a change, write it anew:

    python -m tests.test_architectures > docs/architectures.md
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from lab import REPOSITORY
from peer.training.adapter import passed_over
from protocol.errors import InputError
from tests.kit.architectures import ARCHITECTURES, Architecture, write_base
from tests.kit.journey import Journey, stock_logits, travel

TABLE = REPOSITORY / "docs" / "architectures.md"
TOKENS_BT = (torch.arange(24) * 7 % 270).view(2, 12)
INTRO = """# Which models can be trained

Any causal LM of transformers, in a folder or on a hub: what cannot is refused by `potluck host` in one line, before
anything is copied or built. These are the architectures that are tried with each change: a tiny random model of each
goes through a whole run of two members, genesis, two rounds in 4 bits, a signed checkpoint that `potluck verify`
accepts, and is then loaded by transformers alone, an adapter by peft. *yes* means that its logits were ours, to
rounding, and that a full checkpoint's tensors have the names and shapes of the base's own files.

The adapter is on all linear layers save the head, and on the experts, as peft's `all-linear` has it.

`tests/test_architectures.py` holds this page to what the code does; `python -m tests.test_architectures` prints it.

| architecture | `model_type` | full | LoRA | stock load | why not, and what else |
|---|---|---|---|---|---|
"""


def tensors_of(folder: Path) -> dict[str, list[int]]:
    """What the files of a model hold."""
    found = {}
    for path in folder.glob("model*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    return found


def check_loads(journey: Journey) -> None:
    """What others load says what ours says; training has moved every tensor of the state that is trained."""
    ours, theirs = journey.logits(TOKENS_BT), stock_logits(journey, TOKENS_BT)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-6 * float(ours.abs().max()))
    moved = (journey.state.parameters != journey.genesis.parameters).split(
        [torch.Size(shape).numel() for _, shape in journey.layout]
    )
    still = journey.spec.model.untrained
    beginnings = tuple(name for name in still if name.endswith("."))
    for piece, (name, _) in zip(moved, journey.layout, strict=True):
        if not name.endswith("k_proj.bias"):  # without rotary positions it cancels out: no gradient, only rounding
            assert piece.any() != (name in still or name.startswith(beginnings)), name
    if journey.spec.method.kind == "full":
        assert tensors_of(journey.checkpoint / "model") == tensors_of(journey.base)


def row(architecture: Architecture, folder: Path) -> str:
    """What the table says of one."""
    base, said, notes = write_base(folder / "base", architecture), [], []
    for kind in ("full", "lora"):
        try:
            journey = travel(base, folder / kind, method={"kind": kind, "rank": 2})
            check_loads(journey)
            said.append("yes")
            if still := journey.spec.model.untrained:
                notes.append(f"{kind}: {' and '.join(still)} stay as they are")
        except InputError as error:
            assert "\n" not in error.message and error.hint
            assert not list(folder.glob("lora/run/base-model*")) and not list(folder.glob("*/run/genesis*"))
            said.append("refused")
            notes.append(f"{kind}: {error.message}")
    with torch.device("meta"):
        over = passed_over(AutoModelForCausalLM.from_config(architecture.config()))
    if over:
        notes.append(f"lora: not on {' and '.join(over)}, which the model does not use as linear layers")
    loads = "yes" if "yes" in said else "-"
    return f"| {architecture.title} | `{architecture.kind}` | {said[0]} | {said[1]} | {loads} | {'; '.join(notes)} |"


def rows() -> list[str]:
    return [line for line in TABLE.read_text().splitlines() if re.match(r"\| .*`\w+` \|", line)][1:]


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda item: item.kind)
def test_a_whole_run_of_this_architecture_is_as_the_page_says(architecture: Architecture, tmp_path: Path) -> None:
    assert row(architecture, tmp_path) in rows(), "python -m tests.test_architectures > docs/architectures.md"


def test_the_page_has_a_row_for_each_and_no_other() -> None:
    named = [[cell.strip(" `") for cell in line.strip("|").split(" | ")][1] for line in rows()]
    assert named == [architecture.kind for architecture in ARCHITECTURES]
    assert TABLE.read_text().startswith(INTRO)


def main() -> None:
    print(INTRO, end="")
    for architecture in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            print(row(architecture, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
