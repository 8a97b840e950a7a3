"""Several devices side by side: the model on each of them, and a thread for each while they work; for `cards`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from peer.training.model import TrainableModel
from protocol.errors import InputError
from protocol.run_spec import RunSpec

Told = Callable[[str, str], None]  # a device's name, and why it does no more
_T = TypeVar("_T")


def load_models(
    load: Callable[[str], TrainableModel], devices: Sequence[str], spec: RunSpec, told: Told
) -> list[TrainableModel]:
    """The model on each device; one that cannot hold it is left out, and told of.

    Raises:
        InputError: what `load` raises, when no device is left; or devices of unlike kinds for a base in 4 bits.
    """
    kinds = {torch.device(device).type for device in devices}
    if spec.method.base == "nf4" and len(kinds) > 1:
        raise InputError(
            f"this run holds its base in 4 bits, which a CPU and a card do not round alike: {', '.join(devices)}",
            "use cards only, or the CPU only",
        )
    models: list[TrainableModel] = []
    for place, device in enumerate(devices):
        try:
            models.append(load(device))
        except (RuntimeError, InputError) as error:
            if not models and place == len(devices) - 1:
                raise
            told(device, error.message if isinstance(error, InputError) else str(error).partition("\n")[0])
    return models


def cpus(models: Sequence[TrainableModel]) -> int:
    """How many of them are on the CPU and divide its threads."""
    return sum(model.device.type == "cpu" for model in models)


def in_threads(tasks: Sequence[Callable[[], _T]], devices: Sequence[torch.device], cpus: int) -> list[_T]:
    """Do each task in a thread of its own, for its device, with its share of the CPU threads.

    Args:
        cpus: how many devices are the CPU and divide its threads.
    """
    count = torch.get_num_threads()

    def there(task: Callable[[], _T], device: torch.device) -> _T:
        torch.set_num_threads(max(1, count // max(1, cpus)))
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            return task()

    try:
        with ThreadPoolExecutor(len(tasks), "card") as pool:
            return list(pool.map(there, tasks, devices))
    finally:
        torch.set_num_threads(count)  # what a thread sets, later threads and MKL take over
