"""One arm of `scripts/bench step` in a process of its own: reads a line, does a turn of steps, answers with one line.

The line is {"wall_s", "cpu_s", "tokens", "peak_bytes"}. Ends when its standard input does. The arm "genesis" writes
what our arm starts from, and ends: it needs memory that no volunteer does.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import psutil
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainerCallback, TrainingArguments

from coordinator.run_config import RunConfig
from peer.training.data import Sequences, load_dataset
from peer.training.genesis import build_genesis, count_parameters, load_state
from peer.training.loading import load_tokenizer
from peer.training.model import load_trainable
from peer.training.quiet import no_progress_bars
from peer.training.work import LocalWork
from protocol.run_spec import RunSpec

LR, BETAS, CLIP, RANK, ALPHA = 1e-4, (0.9, 0.99), 1.0, 16, 32.0


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
    work = LocalWork(model, data, spec, "bench", wanted="bf16" if options.device == "cuda" else "fp32")
    while True:
        watch.begin()
        work.begin(state)
        for _ in range(options.steps):
            work.step()
        work.finish()
        watch.end()


def stock_model(options: SimpleNamespace) -> Any:
    """As one would load it by hand."""
    quantized: dict[str, Any] = {}
    if options.kind == "qlora":
        compute = torch.bfloat16 if options.device == "cuda" else torch.float32
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        )
        quantized = {"quantization_config": config, "device_map": {"": options.device}}
    with no_progress_bars():
        model = AutoModelForCausalLM.from_pretrained(options.base, dtype=torch.float32, **quantized)
    if options.kind != "full":
        config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, config)
    return model.to(options.device)


def batches(options: SimpleNamespace, sequences: Sequences) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    rows = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(0)).tolist()
    full = [row for row in rows if sequences.lengths[row] == options.sequence_length]
    while True:
        for first in range(0, len(full) - options.batch + 1, options.batch):
            yield sequences.batch(full[first : first + options.batch], options.device)


def bare(options: SimpleNamespace, sequences: Sequences, watch: Stopwatch) -> None:
    model = stock_model(options).train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LR, betas=BETAS, weight_decay=0.0, fused=True)
    source = batches(options, sequences)
    autocast: Callable[[], Any] = contextlib.nullcontext
    if options.device == "cuda":
        autocast = lambda: torch.autocast("cuda", dtype=torch.bfloat16)  # noqa: E731
    while True:
        watch.begin()
        for _ in range(options.steps):
            tokens_BT, labels_BT = next(source)
            targets_BT = torch.nn.functional.pad(labels_BT[:, 1:], (0, 1), value=-100)
            with autocast():
                logits_BTV = model(input_ids=tokens_BT, use_cache=False).logits
            flat = logits_BTV.float().view(-1, logits_BTV.shape[-1])
            torch.nn.functional.cross_entropy(flat, targets_BT.view(-1)).backward()
            torch.nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()
            optimizer.zero_grad()
        watch.end()


class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Sequences as Trainer wants them."""

    def __init__(self, sequences: Sequences, length: int) -> None:
        self._sequences = sequences
        self._rows = [row for row in range(len(sequences)) if sequences.lengths[row] == length]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens_1T, labels_1T = self._sequences.batch([self._rows[index]])
        return {"input_ids": tokens_1T[0], "labels": labels_1T[0]}


class Turns(TrainerCallback):
    """Stops Trainer before each turn until it is asked for."""

    def __init__(self, watch: Stopwatch, steps: int) -> None:
        self._watch, self._steps = watch, steps

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self._steps == 0:
            self._watch.end()
            self._watch.begin()


def trainer(options: SimpleNamespace, sequences: Sequences, watch: Stopwatch) -> None:
    arguments = TrainingArguments(
        output_dir=str(Path(options.folder) / "trainer"),
        per_device_train_batch_size=options.batch,
        max_steps=10**9,
        learning_rate=LR,
        lr_scheduler_type="constant",
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        max_grad_norm=CLIP,
        optim="adamw_torch_fused",
        bf16=options.device == "cuda",
        use_cpu=options.device == "cpu",
        dataloader_drop_last=True,
        dataloader_pin_memory=options.device == "cuda",
        remove_unused_columns=False,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    data = Rows(sequences, options.sequence_length)
    Trainer(stock_model(options), arguments, train_dataset=data, callbacks=[Turns(watch, options.steps)]).train()


if __name__ == "__main__":
    main(SimpleNamespace(**json.loads(sys.argv[1])))
