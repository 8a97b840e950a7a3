"""The sections in their order. Each runs in a process of its own, so that nothing that one does ends another.

A section is a generator of rows. Its process is forked from one that has imported torch and has not touched the card
yet; it sends each row as it comes, and is killed when its budget is spent. Whatever the card, the driver or a library
does, all sections together end in time, and what they found by then has been shown.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import multiprocessing
import multiprocessing.connection
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.gpu_check import stand_ins, tables
from scripts.gpu_check.tables import Row

SPEED = ("arm", "tokens/s", "peak memory, MiB", "loss")
TIME = "not run: time"
PACKAGE = "scripts.gpu_check"
MODULES = ("given", "machine", "speed", "memory", "passes", "replay", "agreed", "transfer")


@dataclass(frozen=True)
class Section:
    """One table.

    Args:
        name: for `--only`.
        title: above it.
        function: "module:generator", called with a `Given` and `options`.
        budget_s: about what it may take; what others have left over is shared out.
        columns: the first one holds the rows' labels.
    """

    name: str
    title: str
    function: str
    budget_s: float
    columns: tuple[str, ...]
    options: tuple[str, ...] = ()


SECTIONS = (
    Section("machine", "Machine", f"{PACKAGE}.machine:facts", 20, ("what", "is")),
    Section("full", "Steps: all parameters", f"{PACKAGE}.speed:steps", 60, SPEED, ("full", "fp32")),
    Section("agreed", "States from members of both kinds", f"{PACKAGE}.agreed:states", 25, (
        "method, codec", "rounds", "same state digest", "read back the same", "members")),
    Section("replay", "A segment replayed", f"{PACKAGE}.replay:segments", 55, (
        "replayed against fp32", "cosine", "relative L2", "same bits", "s")),
    Section("lora", "Steps: LoRA, base in fp32", f"{PACKAGE}.speed:steps", 55, SPEED, ("lora", "fp32")),
    Section("nf4", "Steps: LoRA, base in 4 bits", f"{PACKAGE}.speed:steps", 35, SPEED, ("lora", "nf4")),
    Section("bf16", "Steps: LoRA, base in bf16", f"{PACKAGE}.speed:steps", 35, SPEED, ("lora", "bf16")),
    Section("memory", "Memory: predicted and measured", f"{PACKAGE}.memory:predictions", 35, (
        "what", "predicted, MiB", "measured, MiB", "measured / predicted")),
    Section("oom", "Where memory runs out", f"{PACKAGE}.passes:back_off", 25, (
        "memory for", "asked, sequences", "taken", "recomputing", "relative L2 of the update")),
    Section("recompute", "Activations kept and recomputed", f"{PACKAGE}.passes:recompute", 20, (
        "activations", "tokens/s", "peak memory, MiB", "relative L2 of the update")),
    Section("copies", "The update's way to the CPU", f"{PACKAGE}.transfer:copies", 17, ("way", "s", "GB/s")),
    Section("codecs", "Codecs on the way", f"{PACKAGE}.transfer:codecs", 18, (
        "codec", "encode, GB/s", "decode, GB/s", "bytes a value", "relative L2")),
)  # fmt: skip
NAMES = tuple(section.name for section in SECTIONS)


def run(
    names: list[str], device: str | None, small: bool, seconds: float, out: Path | None = None, way: str | None = None
) -> int:
    """Run the sections and print their tables; 0 when all of them ran to their end, rows that failed included.

    Args:
        device: cpu or cuda; None: as `Given.make` finds.
        seconds: for all together.
        out: a file for all rows, written after each section.
        way: fork or spawn; None: fork, where that leaves the card usable.

    Raises:
        ImportError: there is no torch, or no transformers.
    """
    started = time.monotonic()
    load()
    if device == "cpu" and importlib.util.find_spec("peft") is not None:
        importlib.import_module("peft")  # once for all; with a card it is left to those who need it: it may wake it
    gc.freeze()  # what stays need not be looked at whenever a row has ended
    way = way or ("fork" if device == "cpu" or _card_works_in_a_fork() else "spawn")
    found: dict[str, Any] = {"start_s": round(time.monotonic() - started, 1), "way": way, "sections": {}}
    left, ends, whole = [section for section in SECTIONS if section.name in names], started + seconds, True
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        while left:
            share, section = left[0].budget_s / sum(each.budget_s for each in left), left.pop(0)
            print(tables.head(section.title, section.columns), flush=True)
            began = time.monotonic()
            rows, ended = _one(section, (device, small, folder), share * (ends - began), way)
            whole = whole and ended
            took_s = round(time.monotonic() - began, 1)
            print(f"\n{took_s} s", flush=True)
            found["sections"][section.name] = {"s": took_s, "ended": ended, "rows": [row.to_json() for row in rows]}
            if out is not None:
                out.write_text(json.dumps(found, indent=1))
    gc.unfreeze()
    print(f"\n{time.monotonic() - started:.0f} s in all", flush=True)
    return 0 if whole else 1


def _one(
    section: Section, arguments: tuple[str | None, bool, str], budget_s: float, way: str
) -> tuple[list[Row], bool]:
    """A section's rows, shown as they came, and whether it ran to its end."""
    rows: list[Row] = []

    def show(row: Row) -> None:
        rows.append(row)
        print(tables.line(row, section.columns), flush=True)

    if budget_s <= 0:
        show(Row("all", {}, TIME))
        return rows, False
    here, there = multiprocessing.Pipe(duplex=False)
    sys.stdout.flush()
    context: Any = multiprocessing.get_context(way)
    process = context.Process(target=_work, args=(section, arguments, there), daemon=True)
    process.start()
    there.close()
    ends, ended = time.monotonic() + budget_s, False
    try:
        while here.poll(max(0.0, ends - time.monotonic())):
            row = here.recv()
            if isinstance(row, bool):
                ended = row
                break
            show(row)
        else:
            show(Row("the rest", {}, TIME))
    except EOFError:
        process.join(5)
        show(Row("the rest", {}, f"failed: its process ended with code {process.exitcode}"))
    finally:
        process.kill()
        process.join()
        here.close()
    return rows, ended


def _work(
    section: Section, arguments: tuple[str | None, bool, str], there: multiprocessing.connection.Connection
) -> None:
    """In the section's process: send each row, and at the end whether it was the section's own."""
    os.dup2(2, 1)  # tables stand on standard output; what libraries print does not
    load()
    from scripts.gpu_check.given import FAILED, Given

    module, _, function = section.function.partition(":")
    try:
        given = Given.make(*arguments)
        for row in getattr(importlib.import_module(module), function)(given, *section.options):
            there.send(row)
    except FAILED as error:
        there.send(Row("the rest", {}, tables.failed(error)))
        there.send(False)
        raise
    there.send(True)


def load() -> None:
    """Import everything. Raises: ImportError: there is no torch, or no transformers."""
    import torch  # noqa: F401
    from transformers import LlamaForCausalLM, Trainer  # noqa: F401  # as they are, without stand-ins

    with stand_ins.importing():
        for name in MODULES:
            importlib.import_module(f"{PACKAGE}.{name}")


def _card_works_in_a_fork() -> bool:
    """Whether what was imported has left the card alone so far; else each section has to import anew."""
    process = multiprocessing.get_context("fork").Process(target=_touch, daemon=True)
    process.start()
    process.join(30)
    process.kill()
    process.join()
    return process.exitcode == 0


def _touch() -> None:
    import torch

    if torch.cuda.is_available():
        torch.ones(8, device="cuda").sum().item()
