"""One peer alone through our loop, against a bare PyTorch loop on the same model, batches and optimizer.

The two arms take turns (A B B A A B B A ...), so that what else the machine does falls on both; each pair gives a
ratio, and the table shows their median, of wall time and (on a CPU that others use too, the better witness) of CPU
time. Our arm is a peer's whole round but for the network: take over the base, train, the update, its encoding and
Merkle tree, the outer step, the digest of the new state.

Goal: a ratio of at least 0.97.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab.small_community import real_inputs

GOAL = 0.97
Seconds = tuple[float, float]  # wall, CPU


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench alone", description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=16, help="measurements of each arm")
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps in one measurement")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", type=Path, help="a transformers folder; default: the demo's model")
    options = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options)
        results = {method: bench.compare(method) for method in ("diloco", "gradient")}
    print(f"\none peer alone, {bench.name}, {options.device}, {options.threads} thread(s), {options.pairs} pairs")
    print(
        f"{'method':10} {'time':6} {'bare tokens/s':>14} {'ours tokens/s':>14} {'median ratio':>13} {'quartiles':>15}"
    )
    for method, (bare, ours) in results.items():
        for kind, clock in (("wall", 0), ("CPU", 1)):
            pairs = [(b[clock], o[clock]) for b, o in zip(bare, ours, strict=True)]
            speeds = [bench.tokens / statistics.median(arm) for arm in zip(*pairs, strict=True)]
            low, middle, high = statistics.quantiles([b / o for b, o in pairs], n=4)
            row = f"{method:10} {kind:6} {speeds[0]:14,.0f} {speeds[1]:14,.0f} {middle:13.3f}"
            print(f"{row} {f'{low:.3f} to {high:.3f}':>15}")
    print(f"goal: at least {GOAL}")
    return 0


class Bench:
    """The model, the data, and one arm for each way of training."""

    def __init__(self, folder: Path, options: Any) -> None:
        self.folder, self.options = folder, options
        demo = real_inputs(folder)
        self.base, self.text = options.model or demo.model, demo.text
        self.name = self.base.name
        self.tokens = 0  # in one measurement

    def compare(self, method: str) -> tuple[list[Seconds], list[Seconds]]:
        """The measurements of each arm: (bare, ours)."""
        ours, rows, sequences = self._ours(method)
        bare = self._bare(method, rows, sequences)
        arms: dict[str, Callable[[], None]] = {"bare": bare, "ours": ours}
        times: dict[str, list[Seconds]] = {"bare": [], "ours": []}
        for arm in arms.values():
            arm()  # warm up
        gc.collect()
        for number in range(self.options.pairs):
            for name in ("bare", "ours") if number % 2 == 0 else ("ours", "bare"):
                wall, cpu = time.perf_counter(), time.process_time()
                arms[name]()
                times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
        return times["bare"], times["ours"]

    def _spec(self, method: str) -> Any:
        from coordinator.run_config import RunConfig
        from peer.training.genesis import count_parameters

        value = {
            "run": {"name": "bench", "seed": 1},
            "model": {"path": str(self.base), "license": "MIT"},
            "data": {"path": str(self.text), "license": "CC0-1.0", "sequence_length": 128},
            "sync": {"method": method, "round_tokens": 48_000, "wire": "int8"},
            "inner": {"lr": 1e-4, "micro_batch": 16, "batch": 16},
            "outer": {"lr": 1.0 if method == "diloco" else 1e-4},
        }
        config = RunConfig.model_validate(value)
        total, trainable = count_parameters(config.method, self.base)
        return config.pin(
            model_digest="0" * 64,
            model_name=self.name,
            parameters=total,
            trainable=trainable,
            data_digest="0" * 64,
            data_size_bytes=self.text.stat().st_size,
        )

    def _ours(self, method: str) -> tuple[Callable[[], None], list[list[int]], Any]:
        from peer.training.codecs.codec import EncodedUpdate
        from peer.training.data import draw, load_dataset
        from peer.training.genesis import build_genesis
        from peer.training.model import load_trainable
        from peer.training.outer import outer_step
        from peer.training.work import LocalWork

        spec, genesis = self._spec(method), self.folder / f"genesis-{method}"
        state = build_genesis(spec, self.base, genesis)
        model = load_trainable(spec, genesis, device=self.options.device)
        dataset = load_dataset(spec, model.tokenizer, self.text)
        work = LocalWork(model, dataset, spec, "bench")

        def measure() -> None:
            nonlocal state
            work.begin(state)
            for _ in range(self.options.steps):
                work.step()
            update = EncodedUpdate.encode(work.finish().vector, spec.sync.wire)
            update.digest  # noqa: B018  # the Merkle tree
            state = outer_step(spec, state, update.decode())
            state.digest  # noqa: B018

        size = spec.inner.batch
        drawn = draw(spec.run.seed, 1, "bench", 0, self.options.steps * size, len(dataset.train))
        rows = [drawn[i : i + size] for i in range(0, len(drawn), size)]
        self.tokens = sum(dataset.train.loss_tokens[row] for row in drawn)
        return measure, rows, dataset.train

    def _bare(self, method: str, rows: list[list[int]], sequences: Any) -> Callable[[], None]:
        """What one would write by hand, batches ready beforehand, with the fastest optimizer that torch has."""
        import torch
        from transformers import AutoModelForCausalLM

        from peer.training.quiet import no_progress_bars

        device = self.options.device
        with no_progress_bars():
            model = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32).to(device).eval()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
        batches = [sequences.tokens_ST[batch].long().to(device) for batch in rows]
        shifted = [torch.nn.functional.pad(tokens_BT[:, 1:], (0, 1), value=-100) for tokens_BT in batches]

        def backward(tokens_BT: torch.Tensor, targets_BT: torch.Tensor) -> None:
            logits_BTV = model(input_ids=tokens_BT, use_cache=False).logits
            torch.nn.functional.cross_entropy(logits_BTV.view(-1, logits_BTV.shape[-1]), targets_BT.view(-1)).backward()

        def update() -> None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        def measure() -> None:
            for tokens_BT, targets_BT in zip(batches, shifted, strict=True):
                backward(tokens_BT, targets_BT)
                if method == "diloco":
                    update()
            if method == "gradient":
                update()
            if device != "cpu":
                torch.cuda.synchronize()

        return measure
