"""The place of a member in a run: who it is, where it stands, and how it stands in the network."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from peer.limits.rates import LineRates
from peer.net.pace import Patience
from peer.round.box import Box
from peer.round.report import RoundReport
from peer.round.state import Timing
from peer.sync.averages import Average
from peer.sync.ledger_heads import LedgerHeads
from peer.sync.own_work import Shown
from peer.sync.shelf import Head
from peer.training.state import SharedState
from protocol.keys import PeerIdentity
from protocol.run_card import RunCard


@dataclass(frozen=True)
class SwarmConfig:
    """How this peer stands in the network; the owner's own choice."""

    listen: str = "0.0.0.0:0"
    announce: str | None = None
    can_reduce: bool = True  # others can open streams to this peer
    reduce_only: bool = False  # without a trainer; the certificate must say that the host trusts this peer
    patience: Patience = field(default_factory=Patience)
    timing: Timing = field(default_factory=Timing)
    rates: LineRates = field(default_factory=LineRates)  # of this peer's line, over all starts


@dataclass(frozen=True)
class Place:
    """What a member begins with.

    Args:
        certificate: gives its certificate of the moment.
        head: where it stands.
        box: its promises and votes, as they were on disk.
        candidate: the state that it may have voted for before a restart.
        save_box: keeps the next box; must not return before it is safe. Raises InputError or OSError.
    """

    identity: PeerIdentity
    card: RunCard
    certificate: Callable[[], str]
    head: Head
    box: Box = field(default_factory=Box)
    save_box: Callable[[bytes], None] = lambda data: None
    candidate: SharedState | None = None
    config: SwarmConfig = field(default_factory=SwarmConfig)
    heads: LedgerHeads | None = None  # of the ledger, which members show each other
    shown: Shown | None = None  # where work is audited: what is kept of it


async def _nothing(head: Head, report: RoundReport) -> None: ...


@dataclass(frozen=True)
class Callbacks:
    """Who hears of what.

    Args:
        on_commit: with each new head; whatever must be kept is kept when it returns.
        on_candidate: in a thread, before this member votes for a state: what led to it must be kept when it returns.
            Raises InputError.
        on_aborted: with (round, attempt, why): it came to nothing.
        on_stage: with (round, one of `peer.round.report.STAGES`); must return at once.
    """

    on_commit: Callable[[Head, RoundReport], Awaitable[None]] = _nothing
    on_candidate: Callable[[SharedState, Average | None], None] = lambda state, average: None
    on_stage: Callable[[int, str], None] = lambda round, name: None
    on_aborted: Callable[[int, int, str], None] = lambda round, attempt, why: None
