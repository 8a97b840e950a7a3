"""This computer, as far as taking part depends on it, and what is to be said of it. Needs no torch: `probes` looks.

>>> computer = Computer("cpu", "cpu", Room(16 << 30, 8 << 30), 16 << 30, 8 << 30, "bf16", threads=4)
>>> [finding.level for finding in of_computer(computer)]
['note', 'good', 'good']
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from peer.doctor.finding import Finding
from peer.doctor.fit import Room
from peer.screen.terms import size_text

LEAST_MAIN_BYTES = 1 << 30  # the program alone takes half of it
FEW_MAIN_BYTES = 3 << 30
LEAST_DISK_BYTES = 1 << 30
FEW_DISK_BYTES = 10 << 30


@dataclass(frozen=True)
class NvidiaCard:
    """An NVIDIA card, by its driver's word."""

    name: str
    driver: str
    watts: float | None  # that it may draw; None: it does not say


@dataclass(frozen=True)
class Computer:
    """What work would be done with."""

    kind: str  # cuda, mps or cpu
    name: str  # of the device
    room: Room  # of the device; on cpu and mps main memory
    main_bytes: int
    main_free_bytes: int
    precision: str  # that passes would be in
    threads: int
    card: NvidiaCard | None = None  # that the driver tells of, whether or not it can be used
    is_cuda_built: bool = True  # torch could use one


def of_computer(computer: Computer) -> Iterator[Finding]:
    """Device, precision and memory."""
    yield _device(computer)
    yield _precision(computer)
    yield _main_memory(computer)


def of_disk(free_bytes: int, folder: str) -> Finding:
    """What is free where runs are kept."""
    text = f"disk: {size_text(free_bytes)} free at {folder}"
    if free_bytes >= FEW_DISK_BYTES:
        return Finding("disk", "good", text)
    remedy = "free some, or name a folder on another disk with --home"
    return Finding("disk", "bad" if free_bytes < LEAST_DISK_BYTES else "note", text, remedy)


def _device(computer: Computer) -> Finding:
    card, size = computer.card, size_text(computer.room.total_bytes)
    if computer.kind == "cuda":
        free = size_text(computer.room.free_bytes)
        if card is None:
            return Finding("device", "good", f"card: {computer.name}, {size} of memory, {free} free")
        text = f"card: {computer.name}, driver {card.driver}, {size} of memory, {free} free"
        return Finding("device", "good", text)
    if card is not None:
        text = f"card: there is an NVIDIA card ({card.name}, driver {card.driver}), and it would not be used"
        if not computer.is_cuda_built:
            remedy = "this torch was built without CUDA: install the one for your card, as pytorch.org says"
        else:
            remedy = "if you did not ask for another --device: update the card's driver, then start this again"
        return Finding("device", "note", text, remedy)
    if computer.kind == "mps":
        return Finding("device", "good", f"card: Apple's, it shares {size} of memory with all else")
    remedy = "it works; small runs suit it, and a card from NVIDIA or Apple does many times as much"
    return Finding("device", "note", f"card: none; the processor would work, {computer.threads} threads of it", remedy)


def _precision(computer: Computer) -> Finding:
    text = f"precision: {computer.precision}"
    if computer.kind == "cuda" and computer.precision == "fp32":
        remedy = "it works; newer cards compute in bf16 or fp16, in half the memory and time"
        return Finding("precision", "note", text, remedy)
    return Finding("precision", "good", text)


def _main_memory(computer: Computer) -> Finding:
    total, free = computer.main_bytes, computer.main_free_bytes
    text = f"main memory: {size_text(total)}, {size_text(free)} free"
    if free >= FEW_MAIN_BYTES:
        return Finding("memory", "good", text)
    remedy = "close other programs: a browser with many tabs takes gigabytes"
    return Finding("memory", "bad" if free < LEAST_MAIN_BYTES else "note", text, remedy)
