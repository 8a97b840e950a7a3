"""`potluck join`: from an invite to a training peer, and back out.

    1. ask the coordinator what the run is, and hold the answer against the invite; if it is over, say so
    2. show it to the owner; go on when agreed
    3. enroll, fetch genesis and data by digest, verify the genesis as the signed checkpoint it is: `link.run_files`
    4. train with the others until the run is over or the owner stops

When the coordinator is away and this peer has joined before, what is on disk is enough to go on; else it waits.
"""

from __future__ import annotations

import contextlib
import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from peer.disk.keeper import Keeper
from peer.disk.kept_states import KeptStates
from peer.disk.moments import Moments
from peer.disk.outbox import Outbox
from peer.disk.receipts import Receipts
from peer.disk.round_log import Round
from peer.disk.run_folder import RunFolder
from peer.handing_on import Outcome, hand_on
from peer.link.admission import Admission, Newcomer, RunOver, tell_clock
from peer.link.background import Certificate, CoordinatorLink
from peer.link.client import CoordinatorClient
from peer.link.clock import MAX_OFFSET_S
from peer.screen.messages import Reason
from peer.screen.rounds import describe
from peer.screen.screen import Screen
from peer.swarm.head import Head
from peer.swarm.rounds import RoundReport
from peer.swarm.swarm import DaemonEnded, Swarm, SwarmConfig
from peer.trainer import WorkReport, reduce, train
from peer.training.data import load_dataset
from peer.training.genesis import load_state
from peer.training.model import load_trainable
from peer.training.work import LocalWork
from protocol.backoff import Backoff
from protocol.errors import NetworkError, PartFailed, RefusedError
from protocol.invite import Invite
from protocol.keys import PeerIdentity
from protocol.leaving import Leaving
from protocol.parts import MOST_FAILURES, Failure
from protocol.rpc import Twin, draw_session
from protocol.status import Alarm, loss_text
from protocol.trust import trust

logger = logging.getLogger(__name__)

FAREWELL_S = 60.0  # to hand in the last claims and states after the last round
OTHERS_S = 10.0  # for the others to reach the last round
OVER_S = 5.0  # the run is over by the coordinator's word: this peer may be about to commit the last round, too
LAST_STATE_S = (
    60.0  # all rounds are made, and the last state is still to be handed in: this peer may be about to fetch it
)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0  # before the network part is started again


@dataclass(frozen=True)
class PeerConfig:
    """The owner's own choices."""

    home: Path
    device: str = "cpu"
    threads: int | None = None  # CPU threads for torch; None: torch's choice
    precision: str = "auto"  # of the forward and backward passes: auto, bf16, fp16, fp32
    swarm: SwarmConfig = field(default_factory=SwarmConfig)


class Volunteer:
    """One peer of one run."""

    def __init__(self, invite: Invite, config: PeerConfig, screen: Screen, leaving: Leaving) -> None:
        self._invite, self._config, self._screen = invite, config, screen
        self._reduce_only = config.swarm.reduce_only
        self._leaving, self._stop = leaving, leaving.stop
        self._identity_path = config.home / "identity"
        self._identity = PeerIdentity.load_or_create(self._identity_path)
        self._client = CoordinatorClient(invite)
        self._tokens_per_s = 0.0
        self._kept_round = 0  # the newest whose state and claims are on disk
        self._link: CoordinatorLink | None = None
        self._certificate: Certificate | None = None
        self._clock_was_wrong = False
        self.outcome = Outcome.DONE  # of leaving
        self.took_part = False  # in the run, now or earlier
        self._alarm: Alarm | None = None  # the coordinator's, that was told last
        self._session = draw_session(self._identity, invite.run)
        self._over_since: float | None = None  # the run has had all its rounds
        self._is_over = self._is_twin = False  # why `stop` was set, if by neither signal nor `potluck leave`

    def run(self) -> bool:
        """Join, train and leave.

        Returns:
            whether the owner agreed to the run's terms.

        Raises:
            PotluckError: with what to do about it.
        """
        with ExitStack() as stack:
            folder = RunFolder(self._config.home, self._invite.run)
            stack.callback(folder.close)
            newcomer = Newcomer(
                self._invite,
                self._client,
                self._identity,
                folder,
                self._screen,
                reduce_only=self._reduce_only,
            )
            admission = newcomer.admit()
            if admission is None:
                return False
            if isinstance(admission, RunOver):
                self._after(folder, admission)
                return True
            trust(
                self._invite.root, name=admission.card.spec.run.name, run=admission.card.run, folder=self._config.home
            )
            work = None if self._reduce_only else self._prepare(admission, folder.place("micro-batch.json"))
            self._screen.step("reducing" if self._reduce_only else "finding-members")
            self._train(folder, admission, work)
        return True

    def failed(self, failure: Failure) -> None:
        """A part of this program has failed by a mistake of ours: the owner is told."""
        self._screen.problem("part-failed", part=Reason(f"part-{failure.part}"), reason=failure.reason)

    # ---- when the run is over ----------------------------------------------------------------------------------------

    def _after(self, folder: RunFolder, over: RunOver) -> None:
        """Hand in what still waits, fetch the last receipts, and say that the run is over."""
        receipts: Receipts | None = None
        self.took_part = over.was_member
        if over.was_member:
            receipts = self._receipts(folder)
            token = self._client.enroll(self._identity).certificate
            Outbox(folder.path / "outbox").drain(self._client, token)
            receipts.fetch(self._client, token)
        self._tell_over(over.card.spec.run.rounds, receipts)

    def _tell_over(self, rounds: int, receipts: Receipts | None) -> None:
        if receipts is not None:
            self._screen.credited(*receipts.credit())
        self._screen.over(rounds, receipts.folder if receipts is not None and receipts.rounds() else None)

    def _receipts(self, folder: RunFolder) -> Receipts:
        return Receipts(
            folder.path / "receipts",
            run=self._invite.run,
            root=self._invite.root,
            peer_id=self._identity.peer_id,
        )

    # ---- before training ---------------------------------------------------------------------------------------------

    def _prepare(self, admission: Admission, sizes: Path) -> LocalWork:
        import torch

        self._screen.step("loading-model")
        if self._config.threads:
            torch.set_num_threads(self._config.threads)
        spec, files = admission.card.spec, admission.files
        model = load_trainable(spec, files.genesis / "model", files.base_model, self._config.device)
        self._screen.step("reading-data")
        dataset = load_dataset(spec, model.tokenizer, files.data)
        model.check_fits(dataset)
        return LocalWork(model, dataset, spec, self._identity.peer_id, wanted=self._config.precision, sizes=sizes)

    # ---- training ----------------------------------------------------------------------------------------------------

    def _train(self, folder: RunFolder, admission: Admission, work: LocalWork | None) -> None:
        """Train, or reduce for the others, until the end.

        When the network's daemon has died, or a part of the swarm has failed, all but the work starts again, from what is on
        disk, after a pause that grows until a round was made.

        Raises:
            PartFailed: that has happened `MOST_FAILURES` times without a round in between.
        """
        backoff = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        while True:
            before = self._kept_round
            ended = self._train_once(folder, admission, work)
            if ended is None:
                return
            if self._kept_round > before:
                backoff.worked()
            pause_s = backoff.failed()
            if isinstance(ended, PartFailed) and backoff.failures >= MOST_FAILURES:
                raise ended
            self._screen.problem("network-restarts" if isinstance(ended, DaemonEnded) else "swarm-restarts")
            if self._stop.wait(pause_s):
                return

    def _train_once(
        self, folder: RunFolder, admission: Admission, work: LocalWork | None
    ) -> DaemonEnded | PartFailed | None:
        """Train until the end; returns why not, when all but the work must start again."""
        try:
            with ExitStack() as stack:
                self._train_in(stack, folder, admission, work)
        except (DaemonEnded, PartFailed) as error:
            logger.warning("%s", error.message)
            return error
        return None

    def _train_in(self, stack: ExitStack, folder: RunFolder, admission: Admission, work: LocalWork | None) -> None:
        card, rounds = admission.card, admission.card.spec.run.rounds
        self.took_part = True
        outbox = Outbox(folder.path / "outbox")
        receipts = self._receipts(folder)
        self._screen.credited(*receipts.credit())
        states = KeptStates(folder, card, lambda: load_state(admission.files.genesis / "model"))
        self._certificate = admission.certificate
        self._leaving.graceful = True  # from here on there are others
        swarm = stack.enter_context(
            Swarm(
                self._identity,
                self._identity_path,
                card,
                lambda: admission.certificate.token,
                folder.ballot_box(),
                states.resume(),  # not held here: it is as large as the model
                Keeper(states, folder.round_log(), outbox, self._kept),
                self._config.swarm,
                self._screen.stage,
                self.failed,
            )
        )
        swarm.add_addresses(admission.addresses)

        def on_addresses(addresses: list[str]) -> None:
            swarm.add_addresses(addresses)
            folder.write_addresses(sorted({*addresses, *(a for view in swarm.members() for a in view.addresses)}))

        def on_run(round: int, named: bytes) -> None:
            swarm.set_run(round, named)
            if 0 < rounds <= round:
                self._finished(swarm.head.round, rounds, LAST_STATE_S)

        self._link = stack.enter_context(
            CoordinatorLink(
                self._client,
                self._identity,
                admission.certificate,
                outbox,
                receipts,
                on_certificate=lambda token: folder.write("certificate", token.encode()),
                on_addresses=on_addresses,
                on_run=on_run,
                wants_anchor=lambda: swarm.wants_anchor,
                on_anchor=swarm.set_anchor,
                on_clock=self._clock,
                on_alarm=self._alarmed,
                on_twin=self._met_twin,
                on_finished=lambda: self._finished(swarm.head.round, rounds, OVER_S),
                on_receipts=lambda: self._screen.credited(*receipts.credit()),
                position=lambda: (swarm.head.round, self._tokens_per_s, swarm.addresses),
                chain_since=swarm.chain_since,
                states=states,
                session=self._session,
                reduce_only=self._reduce_only,
                on_failure=self.failed,
            )
        )
        if work is None:
            reduce(swarm, rounds, self._stop)
        else:
            moments = Moments(work, folder.place("optimizer.safetensors"), self.failed)
            moments.load()
            train(swarm, work, rounds, self._stop, self, moments)
        self._tokens_per_s = 0.0
        if self._is_twin:
            swarm.keep_quiet()  # its word would be taken for the other's
            raise RefusedError(
                "this peer's identity is in use on another computer, which was there first",
                "for both to take part, give this one an identity of its own: potluck identity new; "
                "to move the peer to this one, stop it there first",
            )
        if self._is_over:
            with contextlib.suppress(NetworkError):
                swarm.begin_leaving()
        if self._is_over or not self._stop.is_set():
            self._farewell(swarm, rounds)
            self._tell_over(rounds, receipts)
        else:
            self.outcome = hand_on(swarm, self._link, self._screen.problem)
            if self.outcome is not Outcome.DONE:
                self._screen.problem(self.outcome.value, round=str(swarm.head.round))

    def working(self, report: WorkReport) -> None:
        """The trainer says how the work goes."""
        self._tokens_per_s = report.tokens_per_s
        self._screen.working(report)

    def waiting(self, reason: str) -> None:
        """No round is made though enough is done; `reason` says what is missing, and is empty when nothing is."""
        self._screen.waiting(self._why(reason))

    def paused(self, reason: str) -> None:
        """The trainer does no step until `reason` is gone."""
        self._tokens_per_s = 0.0
        self._screen.paused(self._why(reason))

    def _why(self, reason: str) -> str:
        """Why no round is made: members without a certificate do not hear each other, which looks like their absence."""
        if reason and self._certificate is not None and time.time() > self._certificate.expires:
            return Reason("certificate-ended")
        return reason

    def _kept(self, head: Head, report: RoundReport, kept: bool) -> None:
        """A round was committed; `kept` says whether all that must be on disk is there."""
        if kept:
            self._kept_round = head.round
        logger.info("%s", describe(Round.of(report)))
        self._screen.committed(head, report)
        if self._link is not None:
            self._link.wake()

    def _clock(self, offset_s: float) -> None:
        """How far the clock is ahead, after each visit to the coordinator."""
        if abs(offset_s) > MAX_OFFSET_S:
            tell_clock(self._screen.problem, offset_s)
        elif self._clock_was_wrong:
            self._screen.problem("clock-right")
        self._clock_was_wrong = abs(offset_s) > MAX_OFFSET_S

    def _alarmed(self, alarm: Alarm | None) -> None:
        """What the coordinator says of the run's evaluations, after each visit to it."""
        if alarm is not None and alarm != self._alarm:
            now, before = loss_text(alarm.held_out_loss), loss_text(alarm.published_loss)
            values = {"round": str(alarm.round), "published": str(alarm.published_round), "now": now, "before": before}
            self._screen.problem("run-worse", **values)
        elif alarm is None and self._alarm is not None:
            self._screen.problem("run-better")
        self._alarm = alarm

    def _finished(self, round: int, rounds: int, grace_s: float) -> None:
        """The coordinator says that the run is over: who is at an earlier round has nothing to do any more."""
        self._over_since = self._over_since or time.monotonic()
        if round < rounds and time.monotonic() - self._over_since >= grace_s:
            self._is_over = True
            self._stop.set()

    def _met_twin(self, twin: Twin) -> None:
        """What the coordinator says of another computer with this identity, after each visit to it."""
        if twin is Twin.CAME_LATER:
            self._screen.problem("identity-twin")
        elif twin is Twin.CAME_FIRST:
            self._is_twin = True
            self._stop.set()

    def _farewell(self, swarm: Swarm, rounds: int) -> None:
        """After the last round: let the others catch up, and hand in what is still here."""
        self._screen.step("handing-in")
        assert self._link is not None
        link, started = self._link, time.monotonic()
        link.wake()
        while not self._leaving.is_asked:
            time.sleep(0.2)
            passed = time.monotonic() - started
            others = self._is_over or passed > OTHERS_S or all(view.round > rounds for view in swarm.members())
            handed_in = passed > FAREWELL_S or (link.settled.is_set() and link.finished)
            away = link.away_since is not None and passed > OTHERS_S
            kept = self._is_over or self._kept_round >= rounds or passed > OTHERS_S
            if others and kept and (handed_in or away):
                break
        if not link.settled.is_set():
            self._screen.step("claims-wait")
