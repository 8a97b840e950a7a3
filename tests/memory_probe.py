"""One peer's memory over two rounds of a run by itself, for tests/test_memory.py: prints one JSON object.

    python tests/memory_probe.py RUN_SPEC GENESIS_MODEL_DIR DATA

It does what a peer does, in that order, and drops what a peer may drop: load, train, encode, average, step, save, and
begin again. hivemind is imported and its daemon is not started: tests/test_memory.py adds what that takes.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil


class Peak:
    """The most resident memory that the process has had since the last look."""

    def __init__(self) -> None:
        self._process, self._most, self._ended = psutil.Process(), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.is_set():
            self._look()
            time.sleep(0.002)

    def _look(self) -> int:
        info = self._process.memory_full_info()
        self._most = max(self._most, info.uss)
        return info.uss

    def take(self) -> tuple[int, int]:
        """(most since the last call, now), bytes of this process alone."""
        now = self._look()
        most, self._most = self._most, now
        return most, now


def main(spec_path: Path, model_dir: Path, data: Path) -> None:
    peak = Peak()
    found: dict[str, tuple[int, int]] = {}

    import torch

    import peer.swarm.swarm  # noqa: F401  # hivemind and all
    from peer.swarm.averages import Average
    from peer.swarm.contribution import lossy
    from peer.swarm.head import Head, Position
    from peer.training.aggregate import aggregator
    from peer.training.codec import EncodedUpdate, average_chunk, chunk_sizes, codec
    from peer.training.data import load_dataset
    from peer.training.genesis import load_state
    from peer.training.model import load_trainable
    from peer.training.outer import outer_step
    from peer.training.work import LocalWork, keeps_own
    from protocol.run_spec import RunSpec

    torch.set_num_threads(1)
    found["imports"] = peak.take()
    spec = RunSpec.from_bytes(spec_path.read_bytes())
    state = load_state(model_dir)
    found["genesis"] = peak.take()
    model = load_trainable(spec, model_dir)
    found["model"] = peak.take()
    work = LocalWork(model, load_dataset(spec, model.tokenizer, data), spec, "probe")
    found["optimizer"] = peak.take()
    position, residual = Position(Head(state)), None
    encoded: EncodedUpdate | None = None
    del state
    for number in (1, 2):
        base = position.head.state
        work.rebase(base, encoded)
        for _ in range(2):
            work.step()
        found[f"work {number}"] = peak.take()
        position.make_room()
        update = work.finish()
        if spec.sync.overlap:
            work.carry_on()
            work.step()
        encoded, residual = lossy(update.vector, spec, residual)
        del update
        found[f"encode {number}"] = peak.take()
        sizes, coder = chunk_sizes(encoded.values, encoded.chunk_values), codec(encoded.codec)
        how = aggregator(spec.sync.clip)
        chunks = tuple(
            average_chunk(coder, how, [data, data], [1, 1], size)
            for data, size in zip(encoded.chunks, sizes, strict=True)
        )
        average = Average(encoded.codec, encoded.values, chunks)
        averaged = average.decode()
        found[f"average {number}"] = peak.take()
        candidate = outer_step(spec, base, averaged)
        position.keep_average(candidate.digest, average)
        del averaged, average, chunks
        if not keeps_own(spec):
            encoded = None
        found[f"outer step {number}"] = peak.take()
        position.advance(Head(candidate))
        del base, candidate
        if spec.sync.overlap:
            work.step()
        with tempfile.TemporaryDirectory() as folder:
            position.head.state.save(Path(folder) / "state.safetensors")
            work.save_optimizer(Path(folder) / "moments.safetensors")
        found[f"save {number}"] = peak.take()
    print(json.dumps({name: {"peak": most, "after": now} for name, (most, now) in found.items()}))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    main(*(Path(argument) for argument in sys.argv[1:4]))
