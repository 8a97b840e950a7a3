"""The run's status, put together from store and roster. `service` answers with it, `host` writes and shows it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Container
from pathlib import Path

from coordinator.ledger import Ledger
from coordinator.roster import Announcements
from coordinator.store.database import Tables
from protocol.run_card import RunCard
from protocol.status import Alarm, CheckpointStatus, EvaluatedRound, LedgerStatus, PeerStatus, RunStatus, alarm_of

FRESH_S = 1.0  # an answer to strangers is at most this old, and is not made more often
MAX_PEERS = 1000  # in a status
MAX_EVALUATIONS = 10_000


class Board:
    """Knows how the run stands.

    Args:
        folder: the run's.
        parts_failed: what the status says of the coordinator's own parts.
    """

    def __init__(
        self,
        ledger: Ledger,
        card: RunCard,
        roster: Announcements,
        folder: Path,
        parts_failed: Callable[[], tuple[str, ...]] = tuple,
    ) -> None:
        self._ledger, self._store = ledger, ledger.store
        self._card, self._roster, self._folder = card, roster, folder
        self._parts_failed = parts_failed
        self.deciding = threading.Event()  # set by the publisher until a checkpoint and all that goes with it lie there
        self._lock = threading.Lock()
        # counted once and for all: the ledger only grows
        self._credit: tuple[int, dict[str, tuple[int, int]]] = (0, {})  # of so many leaves: peer id -> (tokens, rounds)
        self._tokens: tuple[int, int] = (0, 0)  # up to this round
        self._counting = threading.Lock()
        self._made: tuple[float, bytes] = (float("-inf"), b"")
        self.alarm: Alarm | None = None  # as of the newest status

    def round(self) -> int:
        """The newest committed round."""
        with self._store.reading() as tables:
            return tables.rounds.newest()

    def round_of(self, state: str) -> int | None:
        """The committed round that has this state."""
        with self._store.reading() as tables:
            return tables.rounds.round_of(state)

    def published(self, round: int = 0) -> tuple[int, Path] | None:
        """The folder of a published checkpoint; 0: of the newest. None: there is none."""
        with self._store.reading() as tables:
            rows = tables.checkpoints.published(round) if round else tables.checkpoints.published(most=2)
        # the newest may stand in the ledger a moment before its folder lies there
        found = ((row.round, self._folder / row.folder) for row in rows)
        return next(((number, folder) for number, folder in found if folder.is_dir()), None)

    def worked(self) -> Container[str]:
        """The peer ids that have credit."""
        return self._credits()

    def finished(self) -> bool:
        """Whether all rounds are in the ledger and the last checkpoint is decided, its folder and plot in place."""
        rounds = self._card.spec.run.rounds
        if not rounds or self.deciding.is_set():
            return False
        with self._store.reading() as tables:
            return tables.checkpoints.is_decided(rounds)

    def status_bytes(self) -> bytes:
        """The status as canonical JSON, at most a second old."""
        with self._lock:
            now = time.monotonic()
            if now - self._made[0] > FRESH_S:
                self._made = (now, self.status().to_bytes())
            return self._made[1]

    def status(self) -> RunStatus:
        """How the run stands now."""
        head = self._ledger.head
        now = time.monotonic()
        live = self._roster.live(now)
        with self._store.reading() as tables:
            tip, tokens = self._counted(tables)
            evaluations, checkpoints = tables.evaluations.newest(MAX_EVALUATIONS), tables.checkpoints.all()
        self.alarm = alarm_of(checkpoints)
        spec = self._card.spec
        rates = spec.rates(tip + 1)  # after the last round they stay
        tip_checkpoint = (
            checkpoints[-1].round if checkpoints else 0
        )  # may stand in the ledger a moment before its folder
        return RunStatus(
            name=spec.run.name,
            run=self._card.run,
            round=tip,
            rounds=spec.run.rounds,
            inner_lr=rates.inner,
            outer_lr=rates.outer,
            tokens=tokens,
            tokens_per_s=sum(item.tokens_per_s for item in live),
            peers=self._peers(now),
            evaluations=tuple(
                EvaluatedRound(round=row.round, held_out_loss=row.held_out_loss, tokens=row.tokens, time=row.time)
                for row in evaluations
            ),
            checkpoints=tuple(
                CheckpointStatus(
                    round=row.round,
                    folder=row.folder,
                    payload=row.payload,
                    held_out_loss=row.held_out_loss,
                    published=row.published,
                    reason=row.reason,
                )
                for row in checkpoints
                if not row.published or row.round < tip_checkpoint or (self._folder / row.folder).is_dir()
            ),
            ledger=LedgerStatus(size=head.size, root=head.root.hex()),
            finished=self.finished(),
            parts_failed=self._parts_failed(),
            alarm=self.alarm,
        )

    def _peers(self, now: float) -> tuple[PeerStatus, ...]:
        """Live members first, then by credit."""
        seen, credit = self._roster.seen(), self._credits()
        with self._store.reading() as tables:
            pending, banned = tables.claims.pending(), tables.bans.peers()
        live = {item.peer_id for item in self._roster.live(now)}
        everyone = sorted(
            seen.keys() | credit.keys() | pending.keys() | banned,
            key=lambda peer: (peer not in live, -credit.get(peer, (0, 0))[0]),
        )
        peers = []
        for peer_id in everyone[:MAX_PEERS]:
            presence = seen.get(peer_id)
            tokens, rounds = credit.get(peer_id, (0, 0))
            peers.append(
                PeerStatus(
                    peer_id=peer_id,
                    round=presence.round if presence else 0,
                    tokens_per_s=presence.tokens_per_s if presence and peer_id in live else 0.0,
                    credit_tokens=tokens,
                    rounds=rounds,
                    pending_tokens=pending.get(peer_id, 0),
                    banned=peer_id in banned,
                    last_seen_s=round(now - presence.seen, 1) if presence else None,
                )
            )
        return tuple(peers)

    def _counted(self, tables: Tables) -> tuple[int, int]:
        """The newest committed round, and the tokens of all."""
        with self._counting:
            done, before = self._tokens
            newer = tables.rounds.tokens_after(done)
            if newer is not None:
                self._tokens = (newer[0], before + newer[1])
            return self._tokens

    def _credits(self) -> dict[str, tuple[int, int]]:
        """Peer id -> (granted tokens, rounds)."""
        with self._counting:
            (counted, credit), size = self._credit, self._ledger.size
            if counted < size:
                with self._store.reading() as tables:
                    newer = tables.credits.in_leaves(counted, size)
                credit = dict(credit)
                for work in newer:
                    tokens, rounds = credit.get(work.peer_id, (0, 0))
                    credit[work.peer_id] = (tokens + work.tokens, rounds + work.rounds)
                self._credit = (size, credit)
            return credit
