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
from peer.training.passes import Passed, Passes
from peer.training.state import SharedState
from peer.training.work import LocalWork
from scripts.gpu_check.gauges import MIB, Memory, main_memory_most
from scripts.gpu_check.given import Given, attempt, member, missing, packages
from scripts.gpu_check.tables import Row

KINDS = (("full", "fp32"), ("lora", "fp32"), ("lora", "bf16"), ("lora", "nf4"))


def predictions(given: Given) -> Iterator[Row]:
    precision = "bf16" if given.on_gpu else "fp32"
    for kind, base in KINDS:
        name = kind if kind == "full" else f"{kind}, base {base}"
        if (row := missing(name, *packages(kind, base))) is not None:
            yield row
            continue
        works: list[LocalWork] = []  # one, if there was memory for it
        yield attempt(given, f"{name}: a whole round", partial(_round, given, kind, base, precision, works))
        for recomputing in (False, True):
            for size in (1, given.shape.batch):
                how = "recomputed" if recomputing else "kept"
                label = f"{name}: activations of {size}, {how}, {precision}"
                yield attempt(given, label, partial(_pass, given, works, precision, size, recomputing))
        works.clear()


def _compared(predicted: float, measured: float) -> Mapping[str, Any]:
    return {
        "predicted, MiB": predicted / MIB,
        "measured, MiB": measured / MIB,
        "measured / predicted": measured / predicted,
    }


def _round(given: Given, kind: str, base: str, precision: str, works: list[LocalWork]) -> Mapping[str, Any]:
    memory = Memory(given)
    memory.begin()
    work = member(given, kind, base, precision, inner={"micro_batch": 1, "batch": 1})
    works.append(work)
    state = SharedState(0, work.model.names_shapes, work.model.read())
    work.begin(state)
    work.step()
    update = EncodedUpdate.encode(work.finish().vector, work.spec.sync.wire)
    work.begin(outer_step(work.spec, state, update.decode()))
    on_device = memory.most() if given.on_gpu else 0
    return _compared(memory_needed_bytes(work.spec), on_device + main_memory_most())


def _pass(given: Given, works: list[LocalWork], precision: str, size: int, recomputing: bool) -> Mapping[str, Any]:
    if not works:
        raise RuntimeError("no member; the row above says why")
    (work,) = works
    if recomputing:
        work.model.recompute()
    passes, memory = Passes(work.model, work.dataset.train, work.spec, precision), Memory(given)
    passes.attempt(range(size))  # what is only made once is made
    memory.begin()
    held = memory.held()
    if not isinstance(passes.attempt(range(size)), Passed):
        raise RuntimeError("the pass came to nothing")
    return _compared(activation_bytes(work.spec, size, recomputing), memory.most() - held)
