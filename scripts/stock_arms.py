"""What our step is compared with: a bare PyTorch loop, and transformers' Trainer; needs torch and transformers only.

Same model, batch, fused AdamW and clipping. `scripts/bench step` and `scripts/gpu-check` call these.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainerCallback, TrainingArguments

from peer.training.data import Sequences
from peer.training.quiet import no_progress_bars

LR, BETAS, CLIP, RANK, ALPHA = 1e-4, (0.9, 0.99), 1.0, 16, 32.0
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Batch = tuple[torch.Tensor, torch.Tensor]  # tokens_BT, labels_BT


def stock_model(folder: str, kind: str, base: str, device: str, precision: str) -> Any:
    """A model as one would load it by hand.

    Args:
        kind: full or lora.
        base: how it is held: fp32, bf16 or nf4.
        precision: of the passes: a base in 4 bits has to know it.
    """
    options: dict[str, Any] = {}
    if base == "nf4":
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=DTYPES[precision],
        )
        options = {"quantization_config": config, "device_map": {"": device}}
    dtype = torch.bfloat16 if base == "bf16" else torch.float32
    with no_progress_bars():
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)
    if kind != "full":
        import peft

        adapter = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, adapter)
    return model.to(device)


def batches(sequences: Sequences, size: int, device: str) -> Iterator[Batch]:
    """Full sequences in a fixed random order, over and over."""
    rows = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(0)).tolist()
    full = [row for row in rows if sequences.lengths[row] == sequences.longest]
    while True:
        for first in range(0, len(full) - size + 1, size):
            yield sequences.batch(full[first : first + size], device)


def bare_steps(model: Any, source: Iterator[Batch], device: str, precision: str, lr: float = LR) -> Iterator[Any]:
    """The losses of a bare loop's steps, on the device: the mean of each batch's tokens."""
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=BETAS, weight_decay=0.0, fused=True)
    scaler = torch.amp.GradScaler(device) if precision == "fp16" else None
    for tokens_BT, labels_BT in source:
        targets_BT = torch.nn.functional.pad(labels_BT[:, 1:], (0, 1), value=-100)
        lower: Any = contextlib.nullcontext()
        if precision != "fp32":
            lower = torch.autocast(device, dtype=DTYPES[precision])
        with lower:
            logits_BTV = model(input_ids=tokens_BT, use_cache=False).logits
        flat = logits_BTV.float().view(-1, logits_BTV.shape[-1])
        loss = torch.nn.functional.cross_entropy(flat, targets_BT.view(-1))
        if scaler is None:
            loss.backward()
        else:
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad()
        yield loss.detach()


class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Full sequences as Trainer wants them."""

    def __init__(self, sequences: Sequences) -> None:
        self._sequences = sequences
        self._rows = [row for row in range(len(sequences)) if sequences.lengths[row] == sequences.longest]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens_1T, labels_1T = self._sequences.batch([self._rows[index]])
        return {"input_ids": tokens_1T[0], "labels": labels_1T[0]}


def trainer(
    model: Any,
    sequences: Sequences,
    folder: Path,
    device: str,
    *,
    batch: int,
    precision: str,
    callbacks: Sequence[TrainerCallback],
    steps: int = 10**9,
    lr: float = LR,
) -> Trainer:
    """transformers' Trainer, ready to train; needs accelerate.

    Args:
        folder: for what it writes.
    """
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        max_steps=steps,
        learning_rate=lr,
        lr_scheduler_type="constant",
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        max_grad_norm=CLIP,
        optim="adamw_torch_fused",
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=device == "cpu",
        dataloader_drop_last=True,
        dataloader_pin_memory=device == "cuda",
        remove_unused_columns=False,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    return Trainer(model, arguments, train_dataset=Rows(sequences), callbacks=list(callbacks))
