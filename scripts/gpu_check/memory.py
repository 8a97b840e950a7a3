"""What `peer.training.memory` says that a run needs, and what it takes here.

Activations: what a pass holds beside weights, gradients and moments, for one sequence and for a batch, kept and
recomputed. All of it: a whole round of one member, device and main memory together, from the base to the next state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from peer.training.codecs.codec import EncodedUpdate
from peer.training.memory import activation_bytes, memory_needed_bytes
from peer.training.outer import outer_step
from peer.training.state import SharedState
from peer.training.work import LocalWork
from scripts.gpu_check.given import MIB, Given, Memory, attempt, main_memory_most, member, missing, packages
from scripts.gpu_check.tables import Row

KINDS = (("full", "fp32"), ("lora", "fp32"), ("lora", "bf16"), ("lora", "nf4"))


def predictions(given: Given) -> Iterator[Row]:
    memory = Memory(given.device)
    precision = "bf16" if given.on_gpu else "fp32"
    for kind, base in KINDS:
        name = kind if kind == "full" else f"{kind}, base {base}"
        if (row := missing(name, *packages(kind, base))) is not None:
            yield row
            continue
        yield attempt(given, f"{name}: a whole round", partial(_round, given, memory, kind, base, precision))
        for size in (1, given.shape.batch):
            for recomputing in (False, True):
                how = "recomputed" if recomputing else "kept"
                label = f"{name}: activations of {size}, {how}, {precision}"
                yield attempt(given, label, partial(_pass, given, memory, kind, base, precision, size, recomputing))


def _compared(predicted: float, measured: float) -> Mapping[str, Any]:
    return {
        "predicted, MiB": predicted / MIB,
        "measured, MiB": measured / MIB,
        "measured / predicted": measured / predicted,
    }


def _member(given: Given, kind: str, base: str, precision: str, size: int) -> LocalWork:
    return member(given, kind, base, precision, inner={"micro_batch": size, "batch": size})


def _pass(
    given: Given, memory: Memory, kind: str, base: str, precision: str, size: int, recomputing: bool
) -> Mapping[str, Any]:
    work = _member(given, kind, base, precision, size)
    if recomputing:
        work.model.recompute()
    work.step()  # what is only made once is made
    memory.begin()
    held = memory.held()
    work.step()
    return _compared(activation_bytes(work.spec, size, recomputing), memory.most() - held)


def _round(given: Given, memory: Memory, kind: str, base: str, precision: str) -> Mapping[str, Any]:
    memory.begin()
    work = _member(given, kind, base, precision, 1)
    state = SharedState(0, work.model.names_shapes, work.model.read())
    work.begin(state)
    work.step()
    update = EncodedUpdate.encode(work.finish().vector, work.spec.sync.wire)
    work.begin(outer_step(work.spec, state, update.decode()))
    on_device = memory.most() if given.on_gpu else 0
    return _compared(memory_needed_bytes(work.spec), on_device + main_memory_most())
