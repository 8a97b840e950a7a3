"""A peer's memory over two rounds of a run by itself, for tests/test_memory.py.

    with Probes() as probes:
        found = probes.take(folder)          # with run-spec.json, genesis/ and data in it

It does what a peer does, in that order, and drops what a peer may drop: load, train, encode, average, step, save, and
begin again. hivemind's daemon is not started: tests/test_memory.py adds what that takes.

The other half, below, is run as `python -m tests.kit.memory_probe`: for each folder that is named on its standard
input, it forks a process that has imported what all peers do, and prints what that one found as a line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from lab import REPOSITORY

if TYPE_CHECKING:
    from peer.sync.averages import Average
    from peer.training.codecs.codec import EncodedUpdate


class Probes:
    """The tests' side.

    Args:
        alone: one probe only, in a process that is no fork: a fork does not have all pages of the libraries' files.
    """

    def __init__(self, *, alone: bool = False) -> None:
        self._alone = alone

    def __enter__(self) -> Probes:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kit.memory_probe", *(["alone"] if self._alone else [])],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)

    def take(self, folder: Path, *, recompute: bool = False, steps: int = 2) -> dict[str, dict[str, int]]:
        """Two rounds of the run in this folder: stage -> what it took, bytes.

        "peak": the most in it; "after": what is left after it; "mapped": of the base model's files, beside both;
        "resident": the most in it of everything, libraries too.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps([str(folder), recompute, steps]), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        assert line, f"the probe ended with {self._process.wait(60)}"
        found: dict[str, dict[str, int]] = json.loads(line)
        return found


# ---- the other half --------------------------------------------------------------------------------------------------


class Peak:
    """The most memory of its own that the process has had since the last look, by the kernel's high-water mark.

    A thread that looks every few milliseconds misses a peak when the machine is busy; the kernel misses none. Pages of
    mapped files are not counted: of libraries, other processes have the same ones.
    """

    def take(self) -> tuple[int, int, int, int]:
        """(most since the last call, now, of weights' mapped files now, most of all that is resident), bytes."""
        fields = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
        kb = {name: int(values[0]) for name, *values in fields if name in ("VmHWM:", "RssFile:", "RssAnon:")}
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): the mark begins anew at what is resident now
        own, most = kb["VmHWM:"] - kb["RssFile:"], kb["VmHWM:"]
        return own << 10, kb["RssAnon:"] << 10, _mapped_bytes(".safetensors"), most << 10


def _mapped_bytes(ending: str) -> int:
    """What is in memory of mapped files whose names end so."""
    found, of_it = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:  # the first line of a mapping: its addresses, and at the end its file
            of_it = line.endswith(ending)
        elif of_it and line.startswith("Rss:"):
            found += int(line.split()[1]) << 10
    return found


def _average(encoded: EncodedUpdate, clip: float) -> Average:
    """Of two members that have sent the same."""
    from peer.sync.averages import Average
    from peer.training.codecs.codec import chunk_sizes
    from peer.training.reduce import average_chunk
    from peer.training.robust import aggregator

    how, sizes = aggregator(clip), chunk_sizes(encoded.values, encoded.chunk_values)
    chunks = (
        average_chunk(encoded.codec, how, [data, data], [1, 1], size)
        for data, size in zip(encoded.chunks, sizes, strict=True)
    )
    return Average(encoded.codec, encoded.values, tuple(chunks))


def probe(folder: Path, recompute: bool, steps: int) -> dict[str, tuple[int, int, int, int]]:
    """Two rounds of the run in this folder: stage -> `Peak.take` after it."""
    import torch

    from peer.sync.contribution import lossy
    from peer.sync.shelf import Head, Shelf
    from peer.training.data import load_dataset
    from peer.training.genesis import load_state
    from peer.training.model import load_trainable
    from peer.training.outer import outer_step
    from peer.training.update import keeps_own
    from peer.training.work import LocalWork
    from protocol.run_spec import RunSpec

    torch.set_num_threads(1)
    peak, found, model_dir = Peak(), {}, folder / "genesis"
    spec = RunSpec.from_bytes((folder / "run-spec.json").read_bytes())
    state = load_state(model_dir)
    found["genesis"] = peak.take()
    model = load_trainable(spec, model_dir, folder / "base-model" if spec.method.kind == "lora" else None)
    assert not recompute or model.recompute()
    found["model"] = peak.take()
    work = LocalWork(model, load_dataset(spec, model.tokenizer, folder / "data"), spec, "probe")
    found["optimizer"] = peak.take()
    shelf, residual = Shelf(Head(state)), None
    encoded: EncodedUpdate | None = None
    del state
    for number in (1, 2):
        base = shelf.head.state
        work.rebase(base, encoded)
        for _ in range(steps):
            work.step()
        found[f"work {number}"] = peak.take()
        shelf.make_room()
        update = work.finish()
        if spec.sync.overlap:
            work.carry_on()
            work.step()
        encoded, residual = lossy(update.vector, spec, residual)
        del update
        found[f"encode {number}"] = peak.take()
        average = _average(encoded, spec.sync.clip)
        averaged = average.decode()
        found[f"average {number}"] = peak.take()
        candidate = outer_step(spec, base, averaged)
        shelf.keep_average(candidate.digest, average)
        del averaged, average
        if not keeps_own(spec):
            encoded = None
        found[f"outer step {number}"] = peak.take()
        shelf.advance(Head(candidate))
        del base, candidate
        if spec.sync.overlap:
            work.step()
        found[f"ahead {number}"] = peak.take()
        with tempfile.TemporaryDirectory() as kept:
            shelf.head.state.save(Path(kept) / "state.safetensors")
            work.save_optimizer(Path(kept) / "moments.safetensors")
        found[f"save {number}"] = peak.take()
    return found


def main() -> None:
    import peer.volunteer  # noqa: F401  # hivemind and all

    imports = Peak().take()
    import transformers.models.llama.modeling_llama  # noqa: F401

    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"a process with {threads} threads cannot be forked safely"
    for line in sys.stdin:
        pid = 0 if sys.argv[1:] == ["alone"] else os.fork()
        if pid == 0:
            folder, *how = json.loads(line)
            found = {"imports": imports} | probe(Path(folder), *how)
            names = ("peak", "after", "mapped", "resident")
            print(json.dumps({name: dict(zip(names, of, strict=True)) for name, of in found.items()}), flush=True)
            return
        _, status = os.waitpid(pid, 0)
        if status:
            sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
