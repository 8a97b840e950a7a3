"""A run that is ready to be served: its card, ledger, checkpoints and model, in its folder. `launch` opens it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import serialization

from coordinator.checkpoints import Checkpoints
from coordinator.ledger import Ledger
from coordinator.lots import LotChain
from coordinator.run_folder import RunFolder
from coordinator.store.database import Store
from protocol import note
from protocol.errors import PotluckError
from protocol.keys import RootKey
from protocol.ledger_entry import RunEntry
from protocol.run_card import RunCard
from protocol.run_spec import RunSpec
from protocol.state import StateManifest

if TYPE_CHECKING:
    from coordinator.evaluator import Evaluator  # torch


@dataclass(frozen=True)
class Run:
    """All that the parts of a host share; whoever opened it closes it."""

    folder: RunFolder
    card: RunCard
    card_bytes: bytes  # signed
    root: RootKey
    genesis: StateManifest  # of round 0, whose checkpoint was verified, or made, by this process
    ledger: Ledger
    checkpoints: Checkpoints
    evaluator: Evaluator

    def close(self) -> None:
        self.ledger.store.close()


def make_card(folder: RunFolder, spec: RunSpec, genesis: str) -> RunCard:
    """The run card by the keys in the folder; `genesis`: the state digest of round 0."""
    raw = folder.membership_key().public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    origin = note.origin(spec.run.name, spec.digest)
    return RunCard(
        run=spec.digest,
        spec=spec,
        genesis=genesis,
        ledger_key=note.verifier_key(origin, folder.ledger_key().public_key()),
        membership_key=raw.hex(),
        audit_chain=chain.link(0) if (chain := lot_chain(folder, spec)) is not None else None,
    )


def lot_chain(folder: RunFolder, spec: RunSpec) -> LotChain | None:
    """What lots are drawn by; None: no work is audited."""
    return LotChain.of(folder.lot_seed(), spec.run.rounds) if spec.audit.share else None


def open_ledger(folder: RunFolder, card: RunCard, root: RootKey) -> Ledger:
    """The run's ledger, made if need be. Raises: InputError: it is damaged, was changed, or is of another run."""
    store = Store(folder.store)
    try:
        first = RunEntry(run=card.run, genesis=card.genesis, root_key=root.keyid)
        return Ledger(store, folder.ledger_key(), note.origin(card.spec.run.name, card.run), first)
    except PotluckError:
        store.close()
        raise
