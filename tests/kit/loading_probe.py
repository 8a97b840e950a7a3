"""The most memory of its own that a process takes while it loads a model, and while it publishes a state.

`python -m tests.kit.loading_probe load|publish FOLDER DATA` reads FOLDER/run-spec.json and FOLDER/genesis, and prints a
line of JSON: stage -> bytes beyond what the imports took. Mapped files are not counted: their pages are the disk's, and
given up when memory is short. The kernel keeps no high-water mark of that, so a thread looks every millisecond.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from lab import REPOSITORY


def take(what: str, folder: Path, data: Path) -> dict[str, int]:
    """The stages of "load" or "publish", and the most that each took."""
    output = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.kit.loading_probe", what, str(folder), str(data)],
        cwd=REPOSITORY, env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=600, check=True,
    ).stdout  # fmt: skip
    found: dict[str, int] = json.loads(output)
    return found


class _Watch:
    """Inside its block the process's own memory is watched."""

    def __enter__(self) -> _Watch:
        self.most, self._ended = _own_bytes(), threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._ended.wait(0.001):
            self.most = max(self.most, _own_bytes())

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def _own_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise RuntimeError("this kernel does not say how much memory is a process's own")


def main(what: str, folder: Path, data: Path) -> None:
    import peft  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    from coordinator.evaluator import Evaluator
    from coordinator.uploads import PARAMETERS
    from peer.training.genesis import load_state
    from peer.training.model import load_trainable
    from peer.training.vectors import bytes_of
    from protocol.run_spec import RunSpec

    spec = RunSpec.from_bytes((folder / "run-spec.json").read_bytes())
    found, start = {}, _own_bytes()
    if what == "load":
        with _Watch() as watch:
            load_trainable(spec, folder / "genesis")
        found["load"] = watch.most - start
    else:
        with tempfile.TemporaryDirectory() as name:
            state = load_state(folder / "genesis")
            (Path(name) / PARAMETERS).write_bytes(bytes_of(state.parameters))
            manifest = state.manifest()
            del state
            start = _own_bytes()
            evaluator = Evaluator(spec, folder / "genesis", None, data)
            with _Watch() as watch:
                evaluator.save(manifest, Path(name), Path(name) / "alone")
            found["save alone"] = watch.most - start
            with _Watch() as watch:
                evaluator.evaluate()
            found["evaluate"] = watch.most - start
            for stage, work in (
                ("take over", lambda: evaluator.load(Path(name))),
                ("save", lambda: evaluator.save(manifest, Path(name), Path(name) / "model")),
            ):
                with _Watch() as watch:
                    work()
                found[stage] = watch.most - start
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
