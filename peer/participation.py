"""A member's part in a run: the swarm, the link and the trainer side by side, from the first round to the farewell.

`volunteer` calls `take_part` when all is fetched and checked. When the network's daemon has died, or a part of the
swarm has failed, all but the work starts again, from what is on disk, after a pause that grows until a round was made.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from peer.disk.keeper import Keeper
from peer.disk.kept_states import KeptStates
from peer.disk.moments import Moments
from peer.disk.outbox import Outbox
from peer.disk.peer_folder import PeerFolder
from peer.disk.receipts import Receipts
from peer.disk.round_log import Round
from peer.handing_on import Outcome, hand_in, hand_on
from peer.link.answers import Announcement
from peer.link.background import CoordinatorLink, Greeting
from peer.link.client import CoordinatorClient
from peer.link.newcomer import Admitted
from peer.link.notices import Notices
from peer.measuring import Measuring
from peer.net import box_bytes
from peer.net.opening import Opening
from peer.net.place import Place
from peer.net.swarm import DaemonEnded, Swarm, SwarmConfig
from peer.round.box import Box
from peer.round.report import RoundReport
from peer.round.turns import Waiting
from peer.screen.messages import Reason
from peer.screen.rounds import describe
from peer.screen.screen import Screen, tell_failure, tell_over
from peer.sync.shelf import Head
from peer.trainer import WorkReport, reduce, train
from peer.training.genesis import load_state
from peer.training.memory import MomentsKind
from peer.training.work import LocalWork
from protocol.agreement import Agreement
from protocol.backoff import Backoff
from protocol.errors import NetworkError, PartFailed, RefusedError
from protocol.keys import PeerIdentity
from protocol.leaving import LeaveSignals
from protocol.parts import MOST_FAILURES, Failure
from protocol.rpc import Twin, draw_session

logger = logging.getLogger(__name__)

OVER_S = 5.0  # the run is over by the coordinator's word: this peer may be about to commit the last round, too
LAST_STATE_S = 60.0  # all rounds are made, the last state is still to be handed in: this peer may be about to fetch it
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0  # before the network part is started again


@dataclass(frozen=True)
class PeerConfig:
    """The owner's own choices."""

    home: Path
    device: str = "cpu"
    threads: int | None = None  # CPU threads for torch; None: torch's choice
    precision: str = "auto"  # of the forward and backward passes: auto, bf16, fp16, fp32
    moments: MomentsKind = "fp32"  # how AdamW's are held: fp32, 8bit
    cache_bytes: int = 5 << 30  # that prepared data may take on disk
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
        self._rounds = admitted.card.spec.run.rounds
        self._session = draw_session(identity, admitted.card.run)
        self._notices, self._stopping = Notices(screen.problem), Stopping(leaving.stop, self._rounds)
        self._swarm: Swarm | None = None
        self._link: CoordinatorLink | None = None
        self._measuring: Measuring | None = None
        self._tokens_per_s = 0.0
        self._kept_round = 0  # the newest whose state and claims are on disk
        self.outcome = Outcome.DONE  # of leaving

    def take_part(self, work: LocalWork | None) -> None:
        """Train, or reduce for the others (without work), until the run is over or the owner stops.

        Raises:
            PartFailed: a part of the swarm fails again and again.
            RefusedError: another computer uses this identity.
        """
        self._leaving.graceful = True  # from here on there are others
        start_again(lambda: self._once(work), lambda: self._kept_round, self._screen.problem, self._leaving.stop)

    def _once(self, work: LocalWork | None) -> None:
        """Raises: DaemonEnded, PartFailed: all but the work must start again."""
        with ExitStack() as stack:
            stack.callback(self._forget)
            outbox = Outbox(self._folder.path / "outbox")
            self._screen.credited(*self._receipts.credit())
            genesis = self._admitted.files.genesis / "model"
            states = KeptStates(self._folder, self._admitted.card, lambda: load_state(genesis))
            swarm = self._swarm = stack.enter_context(self._make_swarm(states, outbox))
            swarm.add_addresses(self._admitted.addresses)
            certificate = self._admitted.certificate
            link = CoordinatorLink(self._client, certificate, outbox, self._receipts, states, self, self._failed)
            self._link = stack.enter_context(link)
            if work is None:
                reduce(swarm, self._rounds, self._leaving.stop)
            else:
                moments = Moments(work, self._folder.place("optimizer.safetensors"), self._failed)
                moments.load()
                stop = self._leaving.stop
                self._measuring = measuring = Measuring(work, states, self._identity, self._screen.problem)
                train(
                    swarm,
                    work,
                    self._rounds,
                    stop,
                    self,
                    moments,
                    between_rounds=lambda: measuring.between_rounds(stop.is_set),
                )
            self._tokens_per_s = 0.0
            self._leave(swarm, link)

    def _make_swarm(self, states: KeptStates, outbox: Outbox) -> Swarm:
        return Swarm(
            self._place(states),  # not held here: its head is as large as the model
            self._config.identity_path,
            Keeper(states, self._folder.round_log(), outbox, self._kept),
            states.keep_candidate,
            self._screen.stage,
            self._failed,
        )

    def _place(self, states: KeptStates) -> Place:
        admitted, folder, head = self._admitted, self._folder, states.resume()
        opening = Opening(admitted.card.run, admitted.card.member_key)
        return Place(
            self._identity,
            admitted.card,
            lambda: admitted.certificate.token,
            head,
            folder.ballots(lambda data: box_bytes.from_bytes(data, opening)) or Box(),
            folder.save_ballots,
            states.candidate(head),
            self._config.swarm,
        )

    def _forget(self) -> None:
        self._swarm = self._link = self._measuring = None  # what they hold is as large as the model

    def _leave(self, swarm: Swarm, link: CoordinatorLink) -> None:
        if self._stopping.is_twin:
            swarm.keep_quiet()  # its word would be taken for the other's
            raise RefusedError(
                "this peer's identity is in use on another computer, which was there first",
                "for both to take part, give this one an identity of its own: potluck identity new; "
                "to move the peer to this one, stop it there first",
            )
        if self._stopping.is_over:
            with contextlib.suppress(NetworkError):
                swarm.begin_leaving()
        if self._stopping.is_over or not self._leaving.stop.is_set():
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

    def _kept(self, head: Head, report: RoundReport, kept: bool) -> None:
        """A round was committed; `kept` says whether all that must be on disk is there."""
        if kept:
            self._kept_round = head.round
        logger.info("%s", describe(Round.of(report)))
        self._screen.committed(head, report)
        if self._link is not None:
            self._link.wake()

    # ---- what the trainer says ---------------------------------------------------------------------------------------

    def working(self, report: WorkReport) -> None:
        """How the work goes."""
        self._tokens_per_s = report.tokens_per_s
        self._screen.working(report)

    def waiting(self, reason: Waiting | None) -> None:
        """No round is made though enough is done; `reason` says what is missing; None: nothing is."""
        self._screen.waiting(self._why(reason))

    def paused(self, reason: Waiting) -> None:
        """No step is done until `reason` is gone."""
        self._tokens_per_s = 0.0
        self._screen.paused(self._why(reason))

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
        return Greeting(swarm.head.round, self._tokens_per_s, swarm.addresses, reduce_only, self._session)

    def heard(self, answer: Announcement) -> None:
        swarm = self._here()
        swarm.add_addresses(answer.swarm_addresses)
        self._folder.write_addresses(sorted({*answer.swarm_addresses, *swarm.member_addresses()}))
        swarm.set_run(answer.round, answer.beginners)
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
        self._screen.credited(*self._receipts.credit())

    def _here(self) -> Swarm:
        assert self._swarm is not None, "the link is closed before the swarm is"
        return self._swarm


class Stopping:
    """Why this peer stops by the coordinator's word, and not by its owner's.

    Args:
        stop: set when it is to stop.
        rounds: that the run has; 0: without end.
    """

    def __init__(self, stop: threading.Event, rounds: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._stop, self._rounds, self._clock = stop, rounds, clock
        self._over_since: float | None = None  # the run has had all its rounds
        self.is_over = False  # and this peer, at an earlier one, has nothing to do any more
        self.is_twin = False  # another computer uses this peer's identity, and was there first

    def heard(self, answer: Announcement, round: int) -> None:
        """What the coordinator said while this peer's newest round was `round`."""
        if 0 < self._rounds <= answer.round:
            self._over(round, LAST_STATE_S)
        if answer.finished:
            self._over(round, OVER_S)
        if answer.twin is Twin.CAME_FIRST:
            self.is_twin = True
            self._stop.set()

    def _over(self, round: int, grace_s: float) -> None:
        now = self._clock()
        self._over_since = self._over_since or now
        if round < self._rounds and now - self._over_since >= grace_s:
            self.is_over = True
            self._stop.set()


def start_again(
    once: Callable[[], None], kept_round: Callable[[], int], problem: Callable[..., None], stop: threading.Event
) -> None:
    """Call `once` until it returns; again, after a pause, when it could do nothing any more.

    Args:
        once: ends with DaemonEnded or PartFailed when all must start again.
        kept_round: the newest round that is on disk; while there are new ones, pauses stay short.
        problem: shows the owner a message: its key in `peer.screen.messages`.
        stop: ends it in a pause.

    Raises:
        PartFailed: that has happened `MOST_FAILURES` times without a round in between.
    """
    backoff = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
    while True:
        before = kept_round()
        try:
            return once()
        except (DaemonEnded, PartFailed) as error:
            logger.warning("%s", error.message)
            if kept_round() > before:
                backoff.worked()
            pause_s = backoff.failed()
            if isinstance(error, PartFailed) and backoff.failures >= MOST_FAILURES:
                raise
            problem("network-restarts" if isinstance(error, DaemonEnded) else "swarm-restarts")
        if stop.wait(pause_s):
            return
