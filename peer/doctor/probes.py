"""Looks at this computer for `computer`: torch, the NVIDIA driver's own program, psutil."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import psutil
import torch

from peer.doctor.computer import Computer, NvidiaCard
from peer.doctor.fit import Room
from peer.training.device import Stopwatch, device_name
from peer.training.precision import Card, choose

SMI_S = 8.0  # it takes seconds where the driver is not held loaded
_ASKED = "name,driver_version,power.limit"


def nvidia_smi() -> str | None:
    """What the driver says of its cards, a line each; None: there is no driver, or it does not answer."""
    command = ["nvidia-smi", f"--query-gpu={_ASKED}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SMI_S, check=False)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return done.stdout if done.returncode == 0 else None


def cards_of(told: str | None) -> list[NvidiaCard]:
    """The cards in what `nvidia-smi` says.

    >>> cards_of("NVIDIA GeForce RTX 3060, 550.54.14, 170.00\\nTesla K80, 470.1, [N/A]\\n")[1]
    NvidiaCard(name='Tesla K80', driver='470.1', watts=None)
    """
    rows = [[part.strip() for part in line.split(",")] for line in (told or "").splitlines()]
    return [NvidiaCard(row[0][:80], row[1][:40], _number(row[2])) for row in rows if len(row) == 3 and row[0]]


def room_of(device: str) -> Room:
    """The memory that work on a torch device would have."""
    place = torch.device(device)
    if place.type == "cuda":
        free, total = torch.cuda.mem_get_info(place)
        return Room(total, free, is_own=True)
    main = psutil.virtual_memory()
    return Room(main.total, main.available)


def look_at(device: str, wanted: str, ask: Callable[[], str | None] = nvidia_smi) -> Computer:
    """This computer, with work on a torch device.

    Args:
        wanted: the owner's precision, one of `precision.WANTED`.
    """
    place, cards, room, main = torch.device(device), cards_of(ask()), room_of(device), psutil.virtual_memory()
    name = device_name(place)
    if place.type == "cuda":
        cards = [card for card in cards if card.name == name] or cards
    return Computer(
        kind=place.type,
        name=name,
        room=room,
        main_bytes=main.total,
        main_free_bytes=main.available,
        precision=choose(wanted, Card.of(place), lambda used: _product_s(place, used)),
        threads=torch.get_num_threads(),
        card=cards[0] if cards else None,
        is_cuda_built=torch.version.cuda is not None,
    )


def _product_s(device: torch.device, precision: str) -> float:
    """Seconds of a matrix product; infinite where it cannot be done."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    fastest = float("inf")
    try:
        matrix = torch.ones(512, 512, device=device, dtype=dtype)
        for _ in range(3):
            clock = Stopwatch(device, True)
            matrix @ matrix
            fastest = min(fastest, clock.seconds())
    except (RuntimeError, TypeError):  # what torch says where it has no such kernels
        return fastest
    return fastest


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
