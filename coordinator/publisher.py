"""Publishes checkpoints: every so many rounds it gets the agreed state from a member, evaluates, writes and signs it.

One thread of the host, woken when a round is committed or a state has come. It never blocks the service: members are
asked in the answers to their announcements (`uploads.Wanted`), and what they send lies on disk when this thread looks.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from coordinator.losses import Losses
from coordinator.plot import draw_losses
from coordinator.run import Run
from coordinator.store.database import StoreError
from coordinator.uploads import MANIFEST, StateInbox, Wanted
from protocol.backoff import Backoff
from protocol.checkpoint import MODEL, Evaluation, step_name
from protocol.errors import PotluckError, VerificationError
from protocol.parts import SupervisedThread, Told
from protocol.state import StateManifest
from protocol.status import alarm_of

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0
FIRST_RETRY_S, LONGEST_RETRY_S = 5.0, 60.0  # after a failure such as a full disk
FIRST_RESTART_S = 1.0  # after a failure by a mistake of ours
FALL_BACK_S = 60.0  # then the state of a later round will do
MAX_CHOICES = 16
LAST_EVERY_S = 10.0  # for the last member, which leaves, the newest state is published out of turn, this often at most


def next_due(decided: int, tip: int, every: int, rounds: int) -> int | None:
    """The next round to publish, if it is committed.

    Args:
        decided: the newest round that was published or held back; 0 is genesis.
        tip: the newest committed round.
        every: publish.every_rounds.
        rounds: the run's last round, 0: no end.

    >>> next_due(0, 9, 10, 25), next_due(0, 10, 10, 25), next_due(20, 25, 10, 25), next_due(25, 25, 10, 25)
    (None, 10, 25, None)
    """
    if rounds and decided >= rounds:
        return None
    due = (decided // every + 1) * every
    if rounds:
        due = min(due, rounds)
    return due if tip >= due else None


class Publisher:
    """The publishing thread; use as a context manager.

    Args:
        deciding: set while a checkpoint is evaluated and written; stays set after a failure, until it is made good.
        losses: asks members to measure, if the host has named some.
        measures: whether the host measures itself where no member does.
        on_evaluation: called after each decision with (round, evaluation).
        on_failure: told when this thread fails by a mistake of ours.
    """

    def __init__(
        self,
        run: Run,
        deciding: threading.Event,
        losses: Losses,
        measures: bool,
        on_evaluation: Callable[[int, Evaluation], None],
        on_failure: Told = lambda failure: None,
    ) -> None:
        self._spec, self._folder, self._store = run.card.spec, run.folder, run.ledger.store
        self._checkpoints, self._evaluator = run.checkpoints, run.evaluator
        self.inbox, self.wanted = StateInbox(run.folder.incoming, run.genesis), Wanted()
        self.losses, self._measures = losses, measures
        self._unmeasured: set[str] = set()  # states that were waited for in vain
        self._deciding, self._on_evaluation = deciding, on_evaluation
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._due_since: tuple[int, float] = (0, 0.0)
        self._last: tuple[str, float] = ("", float("-inf"))  # see `offer_last`; and since when
        self._backoff = Backoff(FIRST_RETRY_S, LONGEST_RETRY_S)
        restarts = Backoff(FIRST_RESTART_S, LONGEST_RETRY_S)  # what a failure left half done is made good first
        self._part = SupervisedThread("publisher", self._run, self._closing, on_failure, restarts)

    def wake(self) -> None:
        """Look soon: something has happened.

        While one state is evaluated, that of the run's last round is asked for already: its members wait a minute.
        """
        if self._deciding.is_set():
            self.wanted.want(self._last_to_come())
        self._wake.set()

    def offer_last(self, state: str) -> None:
        """The last member leaves, and has this state: if it is the newest, it is published out of turn."""
        now, (known, since) = time.monotonic(), self._last
        with self._store.reading() as tables:
            is_newest = tables.rounds.state_of(tables.rounds.newest()) == state
        if is_newest and state != known and now - since >= LAST_EVERY_S:
            self._last = state, now
            self.wake()

    def check(self) -> None:
        """Raises: PartFailed: the thread has ended for good, though nobody asked it to."""
        self._part.check()

    def __enter__(self) -> Publisher:
        self._part.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._wake.set()
        self._part.join(threading.TIMEOUT_MAX)  # an evaluation or a signature that has begun is finished

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.clear()
            try:
                self.look()
                self._backoff.worked()
            except (PotluckError, OSError, StoreError) as error:
                pause_s = self._backoff.failed()
                logger.error("publishing failed, trying again in %.0f s: %s", pause_s, error)
                self._closing.wait(pause_s)
            self._wake.wait(LOOK_EVERY_S)

    def look(self) -> None:
        """Decide on the checkpoint that is due, if its state is here; the thread does so every few seconds."""
        if self._deciding.is_set():  # the last attempt failed half way
            self._checkpoints.recover()
            self.draw()
            self._deciding.clear()
        choices = self._choices()
        choices = [item for item in choices if item[1] not in self._unmeasured] or choices[-1:]
        for given_up in self._unmeasured.difference(state for _, state in choices):
            self.inbox.drop(given_up)
        for round_number, state in choices:
            if self.inbox.has(state):
                self._deciding.set()
                self.wanted.want(self._last_to_come())
                if self._decide(round_number, state):
                    self._decided()
                self._deciding.clear()
                return
        self.wanted.want([state for _, state in choices])

    def _decided(self) -> None:
        self.losses.done()
        self._unmeasured.clear()
        if self.losses.named:
            self._evaluator.let_go()
        self._wake.set()

    def _choices(self) -> list[tuple[int, str]]:
        """(round, state) that would do, the best first."""
        every, rounds = self._spec.publish.every_rounds, self._spec.run.rounds
        with self._store.reading() as tables:
            decided, tip = tables.checkpoints.newest_decided(), tables.rounds.newest()
            due = next_due(decided, tip, every, rounds)
            if due is None:
                newest = tables.rounds.state_of(tip)
                return [(tip, newest)] if newest is not None and newest == self._last[0] and tip > decided else []
            later = tables.rounds.states_after(due, every, MAX_CHOICES)  # peers keep the states of such rounds
            state = tables.rounds.state_of(due)
        assert state is not None, "what is due was committed"
        if self._due_since[0] != due:
            self._due_since = (due, time.monotonic())
        best = [(due, state)]
        if time.monotonic() - self._due_since[1] < FALL_BACK_S:
            return best
        return best + later

    def _last_state(self) -> str | None:
        """That of the run's last round, once it is committed."""
        rounds = self._spec.run.rounds
        with self._store.reading() as tables:
            return tables.rounds.state_of(rounds) if rounds else None

    def _last_to_come(self) -> list[str]:
        """The run's last state, if it is not here."""
        last = self._last_state()
        return [] if last is None or self.inbox.has(last) else [last]

    def _decide(self, round_number: int, state: str) -> bool:
        """Publish a state that is here, or hold it back; False: its held-out loss is not here yet."""
        path = self.inbox.path(state)
        manifest = StateManifest.from_bytes((path / MANIFEST).read_bytes())
        try:
            evaluation = self._evaluation(path, round_number, state)
        except VerificationError as error:
            self._hold_back(round_number, state, None, error.message)
            return True
        if evaluation is None:
            return False
        parent = self._checkpoints.parent()
        limit = self._spec.publish.max_worse
        loss, before = evaluation.held_out_loss, parent.held_out_loss if parent else None
        if parent is not None and before is not None and loss > before + limit:
            reason = f"held-out loss {loss:.4f}, and {before:.4f} at round {parent.round}: worse by more than {limit:g}"
            self._hold_back(round_number, state, evaluation, reason)
        else:
            final = self._checkpoints.publish(
                manifest, evaluation, lambda out: self._evaluator.save(manifest, path, out)
            )
            logger.info("published %s: held-out loss %.4f", final.name, loss)
        self._clear(state)
        self.draw()
        self._on_evaluation(round_number, evaluation)
        return True

    def _evaluation(self, path: Path, round_number: int, state: str) -> Evaluation | None:
        """The loss of a state that is here; None: it was asked for.

        Raises: VerificationError: the state, or its loss, is not finite.
        """
        losses, now = self.losses, time.monotonic()
        if losses.want(round_number, state, now):
            self._evaluator.check_finite(path)
        if losses.named:
            found = losses.found()
            if found is not None or not losses.is_overdue(now):
                return found
            if not self._measures:
                self._wait_on(round_number, state)
                return None
        self._evaluator.load(path)
        return self._evaluator.evaluate()

    def _wait_on(self, round_number: int, state: str) -> None:
        """Nobody has measured a state in time, and the host does not: nothing is published that nobody measured."""
        if state not in self._unmeasured:
            self._unmeasured.add(state)
            logger.warning(
                "the checkpoint of round %d waits: none of the evaluators in run.toml has measured its held-out loss. "
                "Name others, or let the host measure: evaluate_on",
                round_number,
            )

    def _hold_back(self, round_number: int, state: str, evaluation: Evaluation | None, reason: str) -> None:
        logger.warning("the checkpoint of round %d is held back: %s", round_number, reason)
        self._checkpoints.hold_back(round_number, state, evaluation, reason)
        self._clear(state)
        with self._store.reading() as tables:
            alarm = alarm_of(tables.checkpoints.all())
        if alarm is not None:
            logger.warning(
                "%s. Members may be sending harmful updates, or the learning rate is too high; a new run can begin "
                "from the last published checkpoint, %s",
                alarm,
                self._folder.checkpoints / step_name(alarm.published_round) / MODEL,
            )

    def _clear(self, decided: str) -> None:
        last = self._last_state()
        self.inbox.clear(keep=None if last == decided else last)

    def draw(self) -> None:
        """Draw loss.png anew."""
        with self._store.reading() as tables:
            rows = tables.evaluations.all()
        draw_losses(
            self._folder.path / "loss.png",
            self._spec.run.name,
            [(row.round, row.tokens, row.held_out_loss) for row in rows],
        )
