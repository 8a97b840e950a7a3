"""A member's part in a run: the swarm, the link and the trainer side by side, from the first round to the farewell.

`volunteer` calls `take_part` when all is fetched and checked. When the network's daemon has died, or a part of the
swarm has failed, all but the work starts again, from what is on disk, after a pause that grows until a round was made.
"""

from __future__ import annotations

import contextlib
import logging
import time
from concurrent.futures import CancelledError
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peer.disk.keeper import Keeper
from peer.disk.kept import KeptRounds
from peer.disk.moments import Moments
from peer.disk.peer_folder import PeerFolder
from peer.disk.receipts import Receipts
from peer.disk.round_log import Round
from peer.disk.shown_work import ShownWork
from peer.handing_on import Outcome, hand_in, hand_on
from peer.limits.awake import Awake, Change
from peer.limits.watch import Gate
from peer.link.answers import Announcement
from peer.link.background import CoordinatorLink, Greeting
from peer.link.client import CoordinatorClient
from peer.link.newcomer import Admitted
from peer.link.notices import Notices
from peer.measuring import Measuring
from peer.net import box_bytes
from peer.net.opening import Opening
from peer.net.place import Place
from peer.net.swarm import Swarm, SwarmConfig
from peer.round.box import Box
from peer.round.report import RoundReport
from peer.round.state import View
from peer.round.turns import Waiting
from peer.screen.messages import Reason
from peer.screen.reminder import ExportReminder
from peer.screen.rounds import describe
from peer.screen.screen import Screen, tell_failure, tell_over
from peer.screen.standing import PeerStanding
from peer.stopping import Stopping, start_again
from peer.sync.ledger_heads import LedgerHeads
from peer.sync.shelf import Head
from peer.trainer import Ended, WorkReport, reduce, train
from peer.training.memory import MomentsKind
from peer.training.work import LocalWork
from protocol.agreement import Agreement
from protocol.errors import NetworkError
from protocol.keys import PeerIdentity
from protocol.leaving import LeaveSignals
from protocol.parts import Failure
from protocol.rpc import draw_session

logger = logging.getLogger(__name__)

LOOK_S = 0.2  # between two looks whether this peer may work again


@dataclass(frozen=True)
class PeerConfig:
    """The owner's own choices."""

    home: Path
    devices: tuple[str, ...] = ("cpu",)  # the model is on each of them
    threads: int | None = None  # CPU threads for torch; None: torch's choice
    precision: str = "auto"  # of the forward and backward passes: auto, bf16, fp16, fp32
    moments: MomentsKind = "fp32"  # how AdamW's are held: fp32, 8bit
    cache_bytes: int = 5 << 30  # that prepared data may take on disk
    limits: tuple[str, ...] = ()  # key=value, before those of limits.toml
    swarm: SwarmConfig = field(default_factory=SwarmConfig)

    @property
    def identity_path(self) -> Path:
        return self.home / "identity"


class Participation:
    """What one member does in a run, over all starts of its swarm.

    The trainer tells it how the work goes, and the link speaks for it (`peer.link.background.Peer`).
    """

    def __init__(
        self,
        client: CoordinatorClient,
        identity: PeerIdentity,
        admitted: Admitted,
        folder: PeerFolder,
        receipts: Receipts,
        config: PeerConfig,
        screen: Screen,
        leaving: LeaveSignals,
    ) -> None:
        self._client, self._identity, self._admitted = client, identity, admitted
        self._folder, self._receipts, self._config = folder, receipts, config
        self._screen, self._leaving = screen, leaving
        self._rounds, self._session = admitted.card.spec.run.rounds, draw_session(identity, admitted.card.run)
        self._notices, self._stopping = Notices(screen.problem), Stopping(leaving.stop, self._rounds)
        self.heads = LedgerHeads(admitted.card, folder.write, screen.problem)
        self._reminder = ExportReminder(screen.problem, config.home, identity.peer_id)
        self.reveals: ShownWork | None = None
        self._swarm: Swarm | None = None
        self._link: CoordinatorLink | None = None
        self._measuring: Measuring | None = None
        reduce_only = config.swarm.reduce_only
        self._standing = PeerStanding(admitted.card.spec, identity.peer_id, config.swarm.rates, reduce_only=reduce_only)
        self._kept_round = 0  # the newest whose state and claims are on disk
        self._gate, self._ended = Gate(), Ended.OVER
        self.outcome = Outcome.DONE  # of leaving

    def take_part(self, work: LocalWork | None, gate: Gate) -> None:
        """Train, or reduce for the others (without work), until the run is over or the owner stops.

        Args:
            gate: while it is closed, this peer leaves the others and keeps its model and its work.

        Raises:
            PartFailed: a part of the swarm fails again and again.
            RefusedError: another computer uses this identity.
        """
        self._leaving.graceful = True  # from here on there are others
        self._gate, stop = gate, self._leaving.stop
        moments = None
        if work is not None and not self._admitted.card.spec.audit.share:  # there `shown_work` has them
            moments = Moments(work, self._folder.place("optimizer.safetensors"), self._failed)
            moments.load()
        self._ended = Ended.ASIDE
        while self._ended is Ended.ASIDE and self._is_let_in():
            self._ended = Ended.OVER
            start_again(lambda: self._once(work, moments), lambda: self._kept_round, self._screen.problem, stop)

    def _is_let_in(self) -> bool:
        """Wait until this peer may work; False: it is to leave instead."""
        while self._gate.closed.is_set():
            self._screen.held(self._gate.verdict)
            if self._leaving.stop.wait(LOOK_S) or self._gate.finishing.is_set():
                return False
        self._screen.step("finding-members")
        return True

    def _once(self, work: LocalWork | None, moments: Moments | None) -> None:
        """Raises: DaemonEnded, PartFailed: all but the work must start again."""
        with ExitStack() as stack:
            stack.callback(self._forget)
            self.credited()
            kept = KeptRounds.open(self._folder, self._admitted.card, self._admitted.files.genesis / "model")
            self.reveals, states = kept.shown, kept.states
            swarm = self._swarm = stack.enter_context(self._make_swarm(kept))
            swarm.add_addresses(self._admitted.addresses)
            certificate = self._admitted.certificate
            link = CoordinatorLink(self._client, certificate, kept.outbox, self._receipts, states, self, self._failed)
            self._link = stack.enter_context(link)
            stack.enter_context(Awake(self._changed, self._screen.problem, self._failed))
            stop, gate = self._leaving.stop, self._gate
            if work is None:
                self._ended = reduce(swarm, self._rounds, stop, gate)
            else:
                self._measuring = measuring = Measuring(work, states, self._identity, self._screen.problem)
                self._ended = train(
                    swarm,
                    work,
                    self._rounds,
                    stop,
                    self,
                    gate,
                    moments,
                    between_rounds=lambda: measuring.between_rounds(
                        lambda: stop.is_set() or gate.closed.is_set(), gate.rest_s
                    ),
                )
            self._standing.tokens_per_s = 0.0
            self._leave(swarm, link)

    def _make_swarm(self, kept: KeptRounds) -> Swarm:
        return Swarm(
            self._place(kept),  # not held here: its head is as large as the model
            self._config.identity_path,
            Keeper(kept.states, self._folder.round_log(), kept.outbox, self._kept),
            kept.states.keep_candidate,
            self._stage,
            self._failed,
        )

    def _place(self, kept: KeptRounds) -> Place:
        admitted, folder, head = self._admitted, self._folder, kept.states.resume()
        opening = Opening(admitted.card.run, admitted.card.member_key)
        return Place(
            self._identity,
            admitted.card,
            lambda: admitted.certificate.token,
            head,
            folder.ballots(lambda data: box_bytes.from_bytes(data, opening)) or Box(),
            folder.save_ballots,
            kept.states.candidate(head),
            self._config.swarm,
            self.heads,
            kept.shown,
        )

    def _forget(self) -> None:
        self._swarm = self._link = self._measuring = None  # what they hold is as large as the model

    def _leave(self, swarm: Swarm, link: CoordinatorLink) -> None:
        if (why := self._stopping.refusal) is not None:
            swarm.keep_quiet()  # its word would be heard by nobody, or be taken for another's
            raise why
        if self._stopping.is_over:
            with contextlib.suppress(NetworkError):
                swarm.begin_leaving()
        goes_early = self._leaving.stop.is_set() or self._ended is not Ended.OVER
        if self._stopping.is_over or not goes_early:
            self._screen.step("handing-in")
            if not hand_in(link, lambda: self._is_done(swarm), lambda: self._leaving.is_asked, self._measure_last):
                self._screen.step("claims-wait")
            tell_over(self._screen, self._rounds, self._receipts)
        else:
            self.outcome = hand_on(swarm, link, self._screen.problem)
            if self.outcome is not Outcome.DONE:
                self._screen.problem(self.outcome.value, round=str(swarm.head.round))

    def _measure_last(self) -> bool:
        return self._measuring is not None and self._measuring.between_rounds(lambda: self._leaving.is_asked)

    def _is_done(self, swarm: Swarm) -> bool:
        """Whether the last round is on this disk, and the others have made it, too; or nobody waits for that now."""
        if self._stopping.is_over:
            return True
        return self._kept_round >= self._rounds and all(view.said.round > self._rounds for view in swarm.members())

    def _failed(self, failure: Failure) -> None:
        tell_failure(self._screen, failure)

    def _changed(self, change: Change) -> None:
        self._notices.changed(change)
        self._here().reconnect()
        if self._link is not None:
            self._link.reconnect()

    def _kept(self, head: Head, report: RoundReport, kept: bool) -> None:
        """A round was committed; `kept` says whether all that must be on disk is there."""
        if kept:
            self._kept_round = head.round
        logger.info("%s", describe(Round.of(report)))
        self._standing.committed(head, report)
        self._screen.committed(head, report)
        swarm = self._config.swarm
        self._notices.committed(
            head.round,
            took_part=report.took_part or swarm.reduce_only,
            waits=report.waits,
            upload_mbit=swarm.rates.up.most_mbit,
        )
        if self._link is not None:
            self._link.wake()

    # ---- what the trainer says ---------------------------------------------------------------------------------------

    def working(self, report: WorkReport) -> None:
        """How the work goes."""
        self._standing.working(report)
        self._screen.working(report)

    def waiting(self, reason: Waiting | None) -> None:
        """No round is made though enough is done; `reason` says what is missing; None: nothing is."""
        why = self._why(reason)
        self._standing.waiting(why)
        self._screen.waiting(why)

    def paused(self, reason: Waiting) -> None:
        """No step is done until `reason` is gone."""
        why = self._why(reason)
        self._standing.waiting(why, paused=True)
        self._screen.paused(why)

    def held(self) -> None:
        """No step is done by the owner's word, or by a limit's."""
        self._standing.tokens_per_s = 0.0
        self._screen.held(self._gate.verdict)

    def standing(self) -> dict[str, Any]:
        """For the owner, in another thread."""
        swarm, others = self._swarm, list[View]()
        if swarm is not None:
            with contextlib.suppress(NetworkError, RuntimeError, CancelledError):  # it may be about to close
                others = swarm.members()
        at = swarm.head.round if swarm is not None else self._kept_round
        return self._standing.to_json(at, others, self._receipts.credit(), self._receipts.granted_at())

    def _stage(self, round: int, name: str) -> None:
        self._standing.stage(name)
        self._screen.stage(round, name)

    def _why(self, reason: Waiting | None) -> str:
        """Why no round is made: who has no certificate hears nobody, which looks like the others' absence."""
        if reason is None:
            return ""
        if time.time() > self._admitted.certificate.expires:
            return Reason("certificate-ended")
        return Reason(reason.key, **reason.values)

    # ---- what the link asks and says, in its thread ------------------------------------------------------------------

    def renewed(self, token: str) -> None:
        self._folder.write("certificate", token.encode())

    def greeting(self) -> Greeting:
        swarm, reduce_only = self._here(), self._config.swarm.reduce_only
        tokens_per_s = self._standing.tokens_per_s
        return Greeting(swarm.head.round, tokens_per_s, swarm.addresses, reduce_only, self._session, swarm.bans)

    def heard(self, answer: Announcement) -> None:
        swarm = self._here()
        swarm.add_addresses(answer.swarm_addresses)
        self._folder.write_addresses(sorted({*answer.swarm_addresses, *swarm.member_addresses()}))
        swarm.set_run(answer.round, answer.beginners, answer.banned)
        self._stopping.heard(answer, swarm.head.round)
        if self._measuring is not None:
            self._measuring.asked(answer.want_loss)
        self._notices.twin(answer.twin)
        self._notices.alarm(answer.alarm)

    def clock_off(self, offset_s: float) -> None:
        self._notices.clock(offset_s)

    def wants_anchor(self) -> bool:
        return self._here().wants_anchor

    def anchored(self, agreement: Agreement) -> None:
        self._here().set_anchor(agreement)

    def chain_since(self, round: int) -> list[bytes]:
        return self._here().chain_since(round)

    def measured(self) -> bytes | None:
        return self._measuring.measured() if self._measuring is not None else None

    def credited(self) -> None:
        credit = self._receipts.credit()
        self._reminder.credit(credit[0])
        self._screen.credited(*credit)

    def _here(self) -> Swarm:
        assert self._swarm is not None, "the link is closed before the swarm is"
        return self._swarm
