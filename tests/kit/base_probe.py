"""What a LoRA run's frozen base takes in a process of its own, for tests/test_training_bf16.py.

`python -m tests.kit.base_probe FOLDER BASE` takes a pass with the run whose spec, genesis and data lie in FOLDER, and
prints a line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from lab import REPOSITORY


def take(folder: Path, base: Path) -> dict[str, int]:
    """Bytes: "loaded": what the model takes, mapped files included; "pass": the most that a later pass adds to that.

    Not the first pass, in which libraries are loaded; and what is freed goes back to the system at once.
    """
    output = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.kit.base_probe", str(folder), str(base)],
        cwd=REPOSITORY, env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True, text=True, timeout=600, check=True,
    ).stdout  # fmt: skip
    found: dict[str, int] = json.loads(output)
    return found


def _resident() -> tuple[int, int]:
    """(most so far, now), bytes."""
    fields = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    kb = {name: int(values[0]) for name, *values in fields if name in ("VmHWM:", "VmRSS:")}
    return kb["VmHWM:"] << 10, kb["VmRSS:"] << 10


def main(folder: Path, base: Path) -> None:
    import peft  # noqa: F401
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    from peer.training.model import load_trainable
    from protocol.run_spec import RunSpec

    spec = RunSpec.from_bytes((folder / "run-spec.json").read_bytes())
    _, before = _resident()
    model = load_trainable(spec, folder / "genesis", base)
    for parameter in model.model.parameters():
        parameter.float().sum()  # a mapped file is not there until it is read
    _, loaded = _resident()
    tokens_BT = torch.arange(64).view(1, 64)
    model.loss(tokens_BT, tokens_BT).backward()
    _, warm = _resident()
    Path("/proc/self/clear_refs").write_text("5")
    model.loss(tokens_BT, tokens_BT).backward()
    print(json.dumps({"loaded": loaded - before, "pass": _resident()[0] - warm}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
