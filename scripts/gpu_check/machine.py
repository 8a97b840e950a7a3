"""What is measured on: the card, the versions, and what is missing. And the models that all sections share."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from peer.training.device import device_name
from peer.training.precision import Card, choose
from scripts.gpu_check import stand_ins
from scripts.gpu_check.gauges import MIB, seconds
from scripts.gpu_check.given import Given, attempt
from scripts.gpu_check.tables import Row

PACKAGES = ("torch", "transformers", "accelerate", "peft", "bitsandbytes", "triton", "numpy")


def facts(given: Given) -> Iterator[Row]:
    yield Row("card", {"is": device_name(given.device)})
    if given.on_gpu:
        yield attempt(given, "card's memory, MiB", lambda: {"is": torch.cuda.mem_get_info(given.device)[1] / MIB})
        yield Row("compute capability", {"is": str(torch.cuda.get_device_capability(given.device))})
        yield Row("CUDA", {"is": str(torch.version.cuda)})
    yield Row("precision that `auto` takes", {"is": _auto(given)})
    yield Row("cores, threads of torch", {"is": f"{os.cpu_count()}, {torch.get_num_threads()}"})
    yield Row("system", {"is": f"{platform.platform()}, Python {sys.version.split()[0]}"})
    yield Row("packages", {"is": ", ".join(f"{name} {_version(name)}" for name in PACKAGES)})
    yield Row("stand-ins, for what is not installed", {"is": ", ".join(stand_ins.installed) or "none"})
    yield Row("checkout", {"is": _commit()})
    for shape in dict.fromkeys((given.shape, given.replayed)):
        with seconds(given) as taken:
            given.model_folder(shape)
        size = sum(path.stat().st_size for path in given.model_folder(shape).iterdir())
        words = f"{size / 4e6:,.3g} M parameters, {shape.batch} x {shape.sequence} tokens a step, {taken():.1f} s"
        yield Row(f"model {shape.name}", {"is": words})


def _auto(given: Given) -> str:
    card = Card.of(given.device)
    return "is measured" if card.capability is None else choose("auto", card, lambda precision: 1.0)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    root = Path(__file__).parents[2]
    try:
        said = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return said.stdout.strip() or "unknown"
