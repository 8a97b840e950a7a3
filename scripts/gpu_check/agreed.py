"""The agreed state has the same bytes whatever device a member trains on.

Two members, one on this device and one on the CPU, in precisions of their own, work through some rounds as a group
does: each encodes its update, the chunks are averaged once, and each makes the next state for itself, from the state
that it holds, with as many threads as it has. The digests must be equal; and what a member's model takes over must
come back from its device bit by bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch

from peer.training.codecs.codec import CHUNK_VALUES, EncodedUpdate, average_codec, chunk_sizes
from peer.training.outer import outer_step
from peer.training.reduce import average_chunk
from peer.training.robust import aggregator
from peer.training.state import SharedState
from peer.training.work import LocalWork
from protocol.errors import RoundAborted
from scripts.gpu_check.given import Given, attempt, member
from scripts.gpu_check.tables import Row

ROUNDS = 3
STEPS = 1
RUNS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("diloco", "int4", {"momentum": 0.9, "nesterov": True}),
    ("diloco", "topk", {}),
    ("gradient", "fp16", {"lr": 1e-3}),
)


def states(given: Given) -> Iterator[Row]:
    for way, wire, outer in RUNS:
        yield attempt(given, f"{way}, {wire}", partial(_rounds, given, way, wire, outer))


def _rounds(given: Given, way: str, wire: str, outer: dict[str, Any]) -> Mapping[str, Any]:
    devices = (given.device, torch.device("cpu"))
    precisions = ("bf16", "fp32")
    sync = {"method": way, "wire": wire, "clip": 2.0, "round_tokens": 1_000_000}
    works = [
        member(given, precision=precision, shape=given.replayed, device=device, sync=sync, outer=outer)
        for device, precision in zip(devices, precisions, strict=True)
    ]
    held = [SharedState(0, work.model.names_shapes, work.model.read()) for work in works]
    same, read_back = held[0].digest == held[1].digest, True
    for _ in range(ROUNDS):
        for work, state in zip(works, held, strict=True):
            work.begin(state)
            read_back = read_back and torch.equal(_bits(work.model.read()), _bits(state.parameters))
        held = _next(works, held, wire)
        same = same and held[0].digest == held[1].digest
    if not (same and read_back):
        raise RoundAborted(f"same digest: {same}, read back the same: {read_back}")
    names = ", ".join(f"{device.type} {precision}" for device, precision in zip(devices, precisions, strict=True))
    return {
        "rounds": ROUNDS,
        "same state digest": same,
        "read back the same": read_back,
        "members": names,
        "digest": held[0].digest[:12],
    }


def _next(works: list[LocalWork], held: list[SharedState], wire: str) -> list[SharedState]:
    """A round's end, as each member sees it."""
    sent, tokens = [], []
    for work in works:
        for _ in range(STEPS):
            work.step()
        update = work.finish()
        sent.append(EncodedUpdate.encode(update.vector, wire))
        tokens.append(update.tokens)
    how = aggregator(works[0].spec.sync.clip)
    sizes = chunk_sizes(sent[0].values, CHUNK_VALUES)
    chunks = [
        average_chunk(wire, how, [update.chunks[index] for update in sent], tokens, size)
        for index, size in enumerate(sizes)
    ]
    states = []
    threads = torch.get_num_threads()
    for number, (work, base) in enumerate(zip(works, held, strict=True)):
        torch.set_num_threads(threads if number == 0 else 1)
        average = torch.cat([average_codec(wire).decode(data, size) for data, size in zip(chunks, sizes, strict=True)])
        states.append(outer_step(work.spec, base, average))
    torch.set_num_threads(threads)
    return states


def _bits(vector: torch.Tensor) -> torch.Tensor:
    return vector.view(torch.int32)
