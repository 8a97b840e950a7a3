"""All that one member keeps of a run's rounds: its folder's parts, opened together. `participation` has them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from peer.disk.kept_states import KeptStates
from peer.disk.outbox import Outbox
from peer.disk.peer_folder import PeerFolder
from peer.disk.shown_work import ShownWork
from peer.training.genesis import load_state
from protocol.run_card import RunCard


@dataclass(frozen=True)
class KeptRounds:
    """Parts of one run's folder."""

    states: KeptStates
    outbox: Outbox  # claims that wait for the coordinator
    shown: ShownWork | None  # what may be replayed; None: nothing is

    @classmethod
    def open(cls, folder: PeerFolder, card: RunCard, genesis: Path) -> KeptRounds:
        """Open them; `genesis`: the folder that holds the state of round 0."""
        states = KeptStates(folder, card, lambda: load_state(genesis))
        shown = ShownWork(folder, states.load) if card.spec.audit.share else None
        return cls(states, Outbox(folder.path / "outbox"), shown)
