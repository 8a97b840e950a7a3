"""A whole run of a tiny model in one process and without a network: by the coordinator's code and by the members'.

journey = travel(base, folder, method={"kind": "lora"})
journey.checkpoint                   the signed folder of the last round
journey.logits(tokens_BT)            what the model says that the members agreed on
stock_logits(journey, tokens_BT)     what it says to transformers (and peft) alone
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from coordinator.first_start import first_start
from coordinator.reports import Reports
from coordinator.run import Run
from coordinator.run_data import RunData, Telling
from coordinator.run_folder import RunFolder
from coordinator.uploads import PARAMETERS
from lab.training_fixtures import make_config
from peer.training.codecs.codec import EncodedUpdate, average_codec, chunk_sizes
from peer.training.model import TrainableModel, load_trainable
from peer.training.outer import outer_step
from peer.training.quiet import no_progress_bars
from peer.training.reduce import average_chunk
from peer.training.robust import aggregator
from peer.training.state import NamesShapes, SharedState
from peer.training.vectors import bytes_of
from peer.training.weights import read_flat
from peer.training.work import LocalWork
from protocol import certificate, checkpoint
from protocol.beginners import Beginners
from protocol.epoch import stored_word
from protocol.keys import PeerIdentity
from protocol.run_spec import RunSpec
from protocol.succession import Last
from protocol.verify import verify_checkpoint
from tests.kit.builders import fixed_ed25519
from tests.kit.coordinator import Member, Swarm

CHUNK_VALUES = 4096
MEMBERS, STEPS = 2, 2


@dataclass(frozen=True)
class Journey:
    """What came of it."""

    spec: RunSpec
    base: Path
    said: tuple[str, ...]  # to the host
    genesis: SharedState
    state: SharedState
    model: TrainableModel  # the first member's, at the last state
    checkpoint: Path

    @property
    def layout(self) -> NamesShapes:
        return self.state.names_shapes

    @torch.no_grad()
    def logits(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.model.model(input_ids=tokens_BT, use_cache=False).logits
        return found


def travel(base: Path, folder: Path, *, rounds: int = 2, **sections: Any) -> Journey:
    """Genesis, rounds of two members, and a signed checkpoint that `potluck verify` accepts back to genesis.

    Args:
        base: the model's folder, which also holds the data, `data.txt`.
        sections: of run.toml, as `make_config` takes them.
    """
    data, said = base / "data.txt", list[str]()
    short = {"data": {"sequence_length": 16, "held_out_sequences": 4, "license": "MIT"}, "sync": {"wire": "int4"}}
    for name, section in sections.items():
        short[name] = short.get(name, {}) | section
    place = RunFolder(folder / "run")
    config = make_config(base, data, **short)
    run = first_start(folder / "run.toml", config, place, RunData(config, folder, place), Telling(said.append))
    try:
        return _go(run, base, tuple(said), rounds)
    finally:
        run.close()


def stock_logits(journey: Journey, tokens_BT: torch.Tensor) -> torch.Tensor:
    """What whoever has the published folder gets from transformers, and from peft for an adapter."""
    folder = journey.checkpoint / checkpoint.MODEL
    lora = journey.spec.method.kind == "lora"
    with no_progress_bars(), torch.no_grad():
        model: Any = AutoModelForCausalLM.from_pretrained(str(journey.base if lora else folder), dtype=torch.float32)
        if lora:
            with warnings.catch_warnings():  # peft's own, as in `peer.training.adapter`
                warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
                warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys", RuntimeWarning)
                model = PeftModel.from_pretrained(model, str(folder))
        found: torch.Tensor = model.eval()(input_ids=tokens_BT, use_cache=False).logits
    return found


def _go(run: Run, base: Path, said: tuple[str, ...], rounds: int) -> Journey:
    spec, dataset = run.card.spec, run.evaluator.dataset
    start = run.folder.genesis / checkpoint.MODEL
    served = run.evaluator.base_model  # LoRA: as members fetch it
    with no_progress_bars():
        models = [load_trainable(spec, start, served) for _ in range(MEMBERS)]
    layout = models[0].names_shapes
    genesis = SharedState(0, layout, read_flat(start, layout))
    assert genesis.digest == run.genesis.digest
    key = run.folder.membership_key()
    swarm = Swarm(spec, [_member(run, number) for number in range(MEMBERS)], genesis)
    peers = tuple(member.peer_id for member in swarm.members)
    swarm.beginners = Beginners(run=run.card.run, peers=peers).sign(PeerIdentity(key)).data
    reports = Reports(run.ledger, run.card, lambda _: None, lambda: stored_word(swarm.beginners))
    works = [LocalWork(model, dataset, spec, peer) for model, peer in zip(models, peers, strict=True)]
    states = [genesis] * MEMBERS
    for _ in range(rounds):
        states = one_round(spec, works, states)
        assert len({state.digest for state in states}) == 1, "all hold the same bytes"
        agreement = swarm.agree(states[0].digest, swarm.members)
        swarm.last, swarm.state = Last.of(agreement), states[0]
        answer = reports.submit(agreement.to_bytes(), peers[0])
        assert answer.accepted, answer
    models[0].write(states[0].parameters)
    return Journey(spec, base, said, genesis, states[0], models[0], _publish(run, states[0]))


def one_round(spec: RunSpec, works: list[LocalWork], states: list[SharedState]) -> list[SharedState]:
    """Each member with its own copy of everything; only encoded bytes pass between them."""
    updates = []
    for work, state in zip(works, states, strict=True):
        work.begin(state)
        for _ in range(STEPS):
            work.step()
        updates.append(work.finish())
    wire, how = spec.sync.wire, aggregator(spec.sync.clip)
    sent = [EncodedUpdate.encode(update.vector, wire, chunk_values=CHUNK_VALUES) for update in updates]
    weights, sizes = [update.tokens for update in updates], chunk_sizes(sent[0].values, CHUNK_VALUES)
    averages = [
        average_chunk(wire, how, [item.chunks[index] for item in sent], weights, size)
        for index, size in enumerate(sizes)
    ]
    codec = average_codec(wire)
    average = torch.cat([codec.decode(data, size) for data, size in zip(averages, sizes, strict=True)])
    return [outer_step(spec, state, average.clone()) for state in states]  # it takes the memory over


def _member(run: Run, number: int) -> Member:
    """The same each time: what is drawn depends on it."""
    identity, key = PeerIdentity(fixed_ed25519(f"member {number}")), run.folder.membership_key()
    return Member(identity, certificate.issue(key, run=run.card.run, peer_id=identity.peer_id, lifetime_s=3600))


def _publish(run: Run, state: SharedState) -> Path:
    """As `Publisher` does with a state that has come."""
    incoming = run.folder.incoming
    incoming.mkdir(exist_ok=True)
    (incoming / PARAMETERS).write_bytes(bytes_of(state.parameters))
    run.evaluator.load(incoming)
    manifest = state.manifest()
    step = run.checkpoints.publish(
        manifest, run.evaluator.evaluate(), lambda out: run.evaluator.save(manifest, incoming, out)
    )
    report = verify_checkpoint(step, trusted={run.root.keyid}, checkpoints_dir=run.folder.checkpoints)
    assert report.ok, report.to_text()
    return step
