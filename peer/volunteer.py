"""`potluck join`: from an invite to a training peer, and back out.

    1. ask the coordinator what the run is, and hold the answer against the invite
    2. show it to the owner; go on when agreed
    3. enroll, fetch genesis and data by digest, verify the genesis as the signed checkpoint it is, load it
    4. train with the others until the run is over or the owner stops

When the coordinator is away and this peer has joined before, what is on disk is enough to go on; else it waits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from peer.admission import Admission, Newcomer, tell_clock
from peer.clock import MAX_OFFSET_S
from peer.coordinator_client import CoordinatorClient
from peer.coordinator_link import Certificate, CoordinatorLink
from peer.handing_on import Outcome, hand_on
from peer.kept_states import KeptStates
from peer.leaving import Leaving
from peer.messages import Reason
from peer.moments import Moments
from peer.outbox import Outbox
from peer.receipts import Receipts
from peer.round_log import Round, RoundLog, describe
from peer.run_folder import RunFolder
from peer.swarm.averages import Average
from peer.swarm.head import Head
from peer.swarm.rounds import RoundReport
from peer.swarm.swarm import DaemonEnded, Swarm, SwarmConfig
from peer.terms import Terms
from peer.trainer import WorkReport, reduce, train
from peer.training.data import load_dataset
from peer.training.genesis import load_state
from peer.training.model import load_trainable
from peer.training.work import LocalWork
from protocol.backoff import Backoff
from protocol.errors import InputError, PartFailed, VerificationError
from protocol.invite import Invite
from protocol.keys import PeerIdentity
from protocol.parts import MOST_FAILURES, Failure
from protocol.status import Alarm, loss_text
from protocol.trust import trust
from protocol.verify import verify_checkpoint

logger = logging.getLogger(__name__)

FAREWELL_S = 60.0  # to hand in the last claims and states after the last round
OTHERS_S = 10.0  # for the others to reach the last round
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0  # before the network part is started again


@dataclass(frozen=True)
class PeerConfig:
    """The owner's own choices."""

    home: Path
    device: str = "cpu"
    threads: int | None = None  # CPU threads for torch; None: torch's choice
    precision: str = "auto"  # of the forward and backward passes: auto, bf16, fp16, fp32
    swarm: SwarmConfig = field(default_factory=SwarmConfig)


class Screen(Protocol):
    """What the owner sees."""

    def agree(self, terms: Terms) -> bool:
        """Show the run's terms; whether the owner agrees."""

    def fetching(self, name: str, done_bytes: int, size_bytes: int) -> None: ...

    def step(self, key: str) -> None:
        """One of the steps before training: a key of peer.messages."""

    def working(self, report: WorkReport) -> None: ...

    def committed(self, head: Head, report: RoundReport) -> None: ...

    def waiting(self, reason: str) -> None: ...

    def paused(self, reason: str) -> None:
        """No step is done until the reason is gone; what was done is kept."""

    def problem(self, key: str, **values: str) -> None:
        """Something that the owner may have to see to, and that goes on by itself then: a key of peer.messages."""

    def stage(self, round: int, name: str) -> None:
        """Where in the round this peer is: one of `peer.swarm.rounds.STAGES`. Called in another thread."""


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
        self._alarm: Alarm | None = None  # the coordinator's, that was told last

    def run(self) -> bool:
        """Join, train and leave.

        Returns:
            whether the owner agreed to the run's terms.

        Raises:
            PotluckError: with what to do about it.
            KeyboardInterrupt: stopped before it met the others.
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
                self._stop,
                reduce_only=self._reduce_only,
            )
            admission = newcomer.admit()
            if admission is None:
                return False
            trust(
                self._invite.root, name=admission.card.spec.run.name, run=admission.card.run, folder=self._config.home
            )
            self._verify_genesis(admission)
            work = None if self._reduce_only else self._prepare(admission, folder.place("micro-batch.json"))
            self._screen.step("reducing" if self._reduce_only else "finding-members")
            self._train(folder, admission, work)
        return True

    def failed(self, failure: Failure) -> None:
        """A part of this program has failed by a mistake of ours: the owner is told."""
        self._screen.problem("part-failed", part=Reason(f"part-{failure.part}"), reason=failure.reason)

    # ---- before training ---------------------------------------------------------------------------------------------

    def _verify_genesis(self, admission: Admission) -> None:
        self._screen.step("verifying-genesis")
        report = verify_checkpoint(admission.files.genesis, trusted={self._invite.root})
        if not report.ok:
            raise VerificationError(f"the genesis does not check out: {report.verdict}", "do not train; tell the host")
        if load_state(admission.files.genesis / "model").digest != admission.card.genesis:
            raise VerificationError("the genesis is not the one in the run card", "do not train; tell the host")

    def _prepare(self, admission: Admission, sizes: Path) -> LocalWork:
        import torch

        self._screen.step("loading-model")
        if self._config.threads:
            torch.set_num_threads(self._config.threads)
        spec, files = admission.card.spec, admission.files
        model = load_trainable(spec, files.genesis / "model", files.base_model, self._config.device)
        self._screen.step("reading-data")
        dataset = load_dataset(spec, model.tokenizer, files.data)
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
        outbox = Outbox(folder.path / "outbox")
        receipts = Receipts(
            folder.path / "receipts", run=card.run, root=self._invite.root, peer_id=self._identity.peer_id
        )
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
                _Keeper(states, folder.round_log(), outbox, self._kept),
                self._config.swarm,
                self._screen.stage,
                self.failed,
            )
        )
        swarm.add_addresses(admission.addresses)

        def on_addresses(addresses: list[str]) -> None:
            swarm.add_addresses(addresses)
            folder.write_addresses(sorted({*addresses, *(a for view in swarm.members() for a in view.addresses)}))

        self._link = stack.enter_context(
            CoordinatorLink(
                self._client,
                self._identity,
                admission.certificate,
                outbox,
                receipts,
                on_certificate=lambda token: folder.write("certificate", token.encode()),
                on_addresses=on_addresses,
                on_run=swarm.set_run,
                wants_anchor=lambda: swarm.wants_anchor,
                on_anchor=swarm.set_anchor,
                on_clock=self._clock,
                on_alarm=self._alarmed,
                position=lambda: (swarm.head.round, self._tokens_per_s, swarm.addresses),
                states=states,
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
        if self._stop.is_set():
            self.outcome = hand_on(swarm, self._link, self._screen.problem)
            if self.outcome is not Outcome.DONE:
                self._screen.problem(self.outcome.value, round=str(swarm.head.round))
        else:
            self._farewell(swarm, rounds)

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

    def _farewell(self, swarm: Swarm, rounds: int) -> None:
        """After the last round: let the others catch up, and hand in what is still here."""
        self._screen.step("handing-in")
        assert self._link is not None
        link, started = self._link, time.monotonic()
        link.wake()
        while not self._stop.wait(0.2):
            passed = time.monotonic() - started
            others = passed > OTHERS_S or all(view.round > rounds for view in swarm.members())
            handed_in = passed > FAREWELL_S or (link.settled.is_set() and link.finished)
            away = link.away_since is not None and passed > OTHERS_S
            kept = self._kept_round >= rounds or passed > OTHERS_S
            if others and kept and (handed_in or away):
                break
        if not link.settled.is_set():
            self._screen.step("claims-wait")


class _Keeper:
    """Writes down what each round came to, before the swarm goes on; called in a thread of the swarm's.

    Args:
        tell: called with each round, and whether all of it is on disk.
    """

    def __init__(
        self,
        states: KeptStates,
        log: RoundLog,
        outbox: Outbox,
        tell: Callable[[Head, RoundReport, bool], None],
    ) -> None:
        self._states, self._log, self._outbox, self._tell = states, log, outbox, tell
        self._unsaved: dict[int, bytes] = {}

    def __call__(self, head: Head, report: RoundReport, average: Average | None) -> None:
        assert head.agreement is not None
        self._unsaved[head.round] = head.agreement.to_bytes()
        kept, item = False, Round.of(report)
        try:
            for number in sorted(self._unsaved):
                self._outbox.put(number, self._unsaved[number])
                del self._unsaved[number]
            self._states.keep(head, average)
            kept = True
            self._log.append(item)
        except InputError as error:  # a full disk does not end the training; what was not written is tried again
            logger.warning("%s; %s", error.message, error.hint)
        logger.info("%s", describe(item))
        self._tell(head, report, kept)
