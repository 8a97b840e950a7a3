"""The arms of `scripts/bench wan`, and their training without a network: the ideal arm, and what tunes the others.

    ideal                one machine does the four peers' batches of each step together: AdamW on the mean gradient of
                         all four, as DDP would. No network: a step takes what a card takes for its quarter.
    hivemind             stock hivemind.Optimizer as in its ALBERT example: fp16, delayed averaging, 4096 sequences
    hivemind-256         the same with a target batch that suits a short fine-tune
    opendiloco-50, -500  H local AdamW steps; fp16 pseudo-gradients averaged; Nesterov SGD, lr 0.7, momentum 0.9
    potluck-...          a run.toml of ours: see PRESETS

`simulate` trains an arm in this process, as fast as it goes: the same local steps, optimizers and codecs, nothing lost
or late. Its final held-out loss tunes the arm's learning rate, over the same grid for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from coordinator.presets import NEW
from peer.training.codecs.codec import EncodedUpdate
from peer.training.data import Dataset
from peer.training.outer import step as outer_step
from protocol.run_spec import OuterOptimizer, Sync
from scripts.wan.scale import PEERS, REAL_BATCH
from scripts.wan.training import Bench, Gradients, Task, average

GRID = {"lora": (1e-3, 2e-3, 3e-3, 5e-3, 1e-2), "full": (1e-4, 3e-4, 1e-3, 3e-3)}  # the same for all arms

# run.toml sections of Potluck's presets, for each method; `round_steps`: local steps of each peer in a round, and where
# a peer chooses its rounds itself, about what that comes to. In real time (--compress 1) "potluck" is the preset to the
# letter, which makes rounds of 4 to 6; where times are divided, what an exchange takes beside its bytes is not.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "potluck": {
        "lora": {"round_steps": 4, "sync": {"wire": "int2", "overlap": True}},
        "full": {"round_steps": 6, "sync": {"wire": "int2", "fragments": 6, "overlap": True}, "outer": {"lr": 1.3}},
    },
    "potluck-less": {  # rounds half as often
        "lora": {"round_steps": 8, "sync": {"wire": "int2", "overlap": True}},
        "full": {"round_steps": 12, "sync": {"wire": "int2", "fragments": 6, "overlap": True}, "outer": {"lr": 1.3}},
    },
    "potluck-int4": {  # what the preset of LoRA was until 2026-12-02
        "lora": {"round_steps": 8, "sync": {"wire": "int4", "overlap": True}},
        "full": {"round_steps": 12, "sync": {"wire": "int4", "fragments": 6, "overlap": True}, "outer": {"lr": 1.3}},
    },
    "potluck-auto": {  # nothing overlaps: what it costs to wait
        "lora": {"round_steps": 80, "sync": {"wire": "int4", "round_seconds": "auto"}},
        "full": {"round_steps": 200, "sync": {"wire": "topk", "round_seconds": "auto"}},
    },
    "potluck-int8": {
        "lora": {"round_steps": 25, "sync": {"wire": "int8"}},
        "full": {"round_steps": 100, "sync": {"wire": "int8"}},
    },
    "potluck-fp16": {
        "lora": {"round_steps": 25, "sync": {"wire": "fp16"}},
        "full": {"round_steps": 100, "sync": {"wire": "fp16"}},
    },
}
HIVEMIND = {"hivemind": 4096, "hivemind-256": 256}  # target batch, sequences of the real case
DILOCO = {"opendiloco-50": 50, "opendiloco-500": 500}  # H
DILOCO_OUTER = OuterOptimizer(lr=0.7, momentum=0.9, nesterov=True)
ARMS = ("ideal", *HIVEMIND, *DILOCO, *PRESETS)


@dataclass(frozen=True)
class Averaging:
    """A method of local steps and averaged updates."""

    local_steps: int
    outer: OuterOptimizer
    sync: Sync


def averaging(arm: str, kind: str) -> Averaging:
    """What an arm of this sort does, without its network."""
    if arm in DILOCO:
        return Averaging(DILOCO[arm], DILOCO_OUTER, Sync(wire="fp16", round_seconds="auto"))
    preset = PRESETS[arm][kind]
    sync = Sync(**NEW["sync"] | preset["sync"] | {"round_seconds": "auto"})
    return Averaging(preset["round_steps"], OuterOptimizer(**preset.get("outer", {})), sync)


def batches_of(arm: str) -> int:
    """How many batches of a card one AdamW step takes, as this arm's spec has it."""
    return PEERS if arm == "ideal" else 1


def simulate(arm: str, kind: str, task: Task, steps: int, every: int, dataset: Dataset) -> list[tuple[int, float]]:
    """Train with this arm's method for `steps` local steps of each of four peers.

    Returns:
        (local steps of each peer, held-out loss), about every `every` steps, and at the end.
    """
    bench = task.open(dataset)
    if arm == "ideal":
        states = _ideal(bench, steps, every)
    elif arm in HIVEMIND:
        states = _delayed(bench, steps, HIVEMIND[arm])
    else:
        states = _averaged(averaging(arm, kind), task, bench, steps)
    spare = task.open(dataset)
    return [(step, spare.loss_of(state)) for step, state in _thinned(states, every, steps)]


def _thinned(states: Iterator[tuple[int, torch.Tensor]], every: int, last: int) -> Iterator[tuple[int, torch.Tensor]]:
    due = 0
    for step, state in states:
        if step >= min(due, last):
            due = step + every
            yield step, state


def _ideal(bench: Bench, steps: int, every: int) -> Iterator[tuple[int, torch.Tensor]]:
    work = bench.work("ideal")
    work.begin(bench.genesis)
    yield 0, bench.genesis.parameters
    for step in range(1, steps + 1):
        for _ in range(PEERS):
            work.step()  # the fourth makes the batch full
        if step % every == 0 or step == steps:
            yield step, bench.model.read()


def _averaged(how: Averaging, task: Task, first: Bench, steps: int) -> Iterator[tuple[int, torch.Tensor]]:
    benches = [first, *(task.open(first.dataset) for _ in range(PEERS - 1))]
    works = [bench.work(f"peer-{number}", how.sync) for number, bench in enumerate(benches)]
    state, done = first.genesis, 0
    sent: list[EncodedUpdate | None] = [None] * PEERS
    yield 0, state.parameters
    while done < steps:
        count = min(how.local_steps, steps - done)
        for work, before in zip(works, sent, strict=True):
            work.rebase(state, before)
            for _ in range(count):
                work.step()
        encoded = [EncodedUpdate.encode(work.finish().vector, how.sync.wire) for work in works]
        fragment, sent = how.sync.fragment(state.round + 1, len(state.parameters)), [*encoded]
        state = outer_step(how.outer, "diloco", state, average(encoded, how.sync.clip), fragment)
        done += count
        yield done, state.parameters


def _delayed(bench: Bench, steps: int, target: int) -> Iterator[tuple[int, torch.Tensor]]:
    """AdamW on the mean gradient of `target` sequences, taken on the parameters of one step before."""
    model, inner = bench.model, bench.spec.inner
    parameter = torch.nn.Parameter(model.flat_N.clone())
    adamw = torch.optim.AdamW([parameter], lr=inner.lr, betas=inner.betas, weight_decay=inner.weight_decay)
    gradients = [Gradients(bench, f"peer-{number}") for number in range(PEERS)]
    batches = max(1, target // (REAL_BATCH * PEERS))
    done, late = 0, None
    yield 0, parameter.detach().clone()
    while done < steps:
        total = torch.zeros_like(model.flat_N)
        for _ in range(min(batches, steps - done)):
            for source in gradients:
                source.step()
                total += model.gradient_N
            done += 1
        if late is not None:
            parameter.grad = late
            adamw.step()
            model.write(parameter.detach())
        late = total / (batches * PEERS)
        yield done, parameter.detach().clone()
