"""One arm of `scripts/bench step` in a process of its own: reads a line, does a turn of steps, answers with one line.

The line is {"wall_s", "cpu_s", "tokens", "peak_bytes"}. Ends when its standard input does. The arm "genesis" writes
what our arm starts from, and ends: it needs memory that no volunteer does.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft  # noqa: F401  # all arms load it before they are asked how much they have grown since
import psutil
import torch
from transformers import TrainerCallback

from coordinator.run_config import RunConfig
from peer.training.data import Sequences, load_dataset
from peer.training.genesis import build_genesis, count_parameters, load_state
from peer.training.loading import load_tokenizer
from peer.training.model import load_trainable
from peer.training.work import LocalWork
from protocol.run_spec import RunSpec
from scripts import stock_arms
from scripts.stock_arms import ALPHA, BETAS, CLIP, LR, RANK


class Stopwatch:
    """Answers on the real standard output; what libraries print goes to standard error."""

    def __init__(self, device: str, tokens: int) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._device, self._tokens = device, tokens
        self._before = psutil.Process().memory_info().rss
        self._started: tuple[float, float] | None = None

    def begin(self) -> None:
        """Waits for a line. Raises: SystemExit: there will be none any more."""
        if not sys.stdin.readline():
            sys.exit(0)
        self._wait()
        self._started = time.perf_counter(), time.process_time()

    def end(self) -> None:
        if self._started is None:
            return
        self._wait()
        wall, cpu = self._started
        answer = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu, "tokens": self._tokens}
        print(json.dumps(answer | {"peak_bytes": self._peak()}), file=self._out, flush=True)

    def _wait(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()

    def _peak(self) -> int:
        if self._device == "cuda":
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - self._before


def main(options: SimpleNamespace) -> None:
    torch.set_num_threads(options.threads)
    if options.arm == "genesis":
        build_genesis(run_spec(options), Path(options.base), genesis_folder(options))
        return
    watch = Stopwatch(options.device, options.steps * options.batch * (options.sequence_length - 1))
    spec = run_spec(options)
    data = load_dataset(spec, load_tokenizer(Path(options.base)), Path(options.text))
    if options.arm == "ours":
        ours(options, spec, data, watch)
    elif options.arm == "bare":
        bare(options, data.train, watch)
    else:
        trainer(options, data.train, watch)


def run_spec(options: SimpleNamespace) -> RunSpec:
    """Of all arms: the data, the batch, and for ours the rest."""
    method: dict[str, Any] = {"kind": "full"}
    if options.kind != "full":
        base = "nf4" if options.kind == "qlora" else "fp32"
        method = {"kind": "lora", "rank": RANK, "alpha": ALPHA, "base": base}
    config = RunConfig.model_validate(
        {
            "run": {"name": "bench", "seed": 1},
            "model": {"path": options.base, "license": "MIT"},
            "data": {"path": options.text, "license": "CC0-1.0", "sequence_length": options.sequence_length},
            "method": method,
            "sync": {"method": "diloco", "round_tokens": 1_000_000},
            "inner": {
                "lr": LR,
                "betas": BETAS,
                "clip_norm": CLIP,
                "micro_batch": options.batch,
                "batch": options.batch,
            },
        }
    )
    total, trainable = count_parameters(config.method, Path(options.base))
    digests = {"model_digest": "0" * 64, "data_digest": "0" * 64, "data_size_bytes": 1}
    return config.pin(model_name=options.name, parameters=total, trainable=trainable, **digests)


def genesis_folder(options: SimpleNamespace) -> Path:
    return Path(options.folder) / f"genesis-{options.kind}"


def ours(options: SimpleNamespace, spec: RunSpec, data: Any, watch: Stopwatch) -> None:
    genesis = genesis_folder(options)
    state = load_state(genesis)
    model = load_trainable(spec, genesis, Path(options.base), options.device)
    work = LocalWork(model, data, spec, "bench", wanted=precision(options))
    while True:
        watch.begin()
        work.begin(state)
        for _ in range(options.steps):
            work.step()
        work.finish()
        watch.end()


def stock(options: SimpleNamespace) -> Any:
    """The model of the two other arms."""
    kind, base = ("full", "fp32") if options.kind == "full" else ("lora", "nf4" if options.kind == "qlora" else "fp32")
    return stock_arms.stock_model(options.base, kind, base, options.device, precision(options))


def precision(options: SimpleNamespace) -> str:
    return "bf16" if options.device == "cuda" else "fp32"


def bare(options: SimpleNamespace, sequences: Sequences, watch: Stopwatch) -> None:
    source = stock_arms.batches(sequences, options.batch, options.device)
    steps = stock_arms.bare_steps(stock(options), source, options.device, precision(options))
    while True:
        watch.begin()
        for _ in range(options.steps):
            next(steps)
        watch.end()


class Turns(TrainerCallback):
    """Stops Trainer before each turn until it is asked for."""

    def __init__(self, watch: Stopwatch, steps: int) -> None:
        self._watch, self._steps = watch, steps

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self._steps == 0:
            self._watch.end()
            self._watch.begin()


def trainer(options: SimpleNamespace, sequences: Sequences, watch: Stopwatch) -> None:
    stock_arms.trainer(
        stock(options),
        sequences,
        Path(options.folder) / "trainer",
        options.device,
        batch=options.batch,
        precision=precision(options),
        callbacks=[Turns(watch, options.steps)],
    ).train()


if __name__ == "__main__":
    main(SimpleNamespace(**json.loads(sys.argv[1])))
