"""A host: everything that `potluck host run.toml` runs, started and stopped together.

    with Host(Path("run.toml")) as running:
        print(running.invite)
        while not running.wait(timeout_s=1.0):
            show(running.status())

A later start with the same folder goes on with the run. Every part is opened in `start` and closed in the reverse
order; a kill closes nothing and loses nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from coordinator import tls
from coordinator.addresses import check_addresses, host_of, public_address
from coordinator.admission import Admission, Policy
from coordinator.auditor import Auditor
from coordinator.audits import AuditDesk
from coordinator.beginning import Beginning
from coordinator.board import Board
from coordinator.evaluator import check_audits, check_evaluation
from coordinator.launch import open_run
from coordinator.ledger_export import LedgerCopies
from coordinator.losses import Losses
from coordinator.metrics import Metrics
from coordinator.publisher import Publisher
from coordinator.receipts import ReceiptDesk
from coordinator.rendezvous import Rendezvous
from coordinator.reports import CommittedRound, Reports
from coordinator.roster import Announcements
from coordinator.run import Run, lot_chain
from coordinator.run_config import RunConfig
from coordinator.run_data import TO_LOG, Telling
from coordinator.run_folder import RunFolder
from coordinator.server import Server
from coordinator.service import CoordinatorService, Desks
from coordinator.shelf import Offer
from coordinator.ticking import TICK_S, Ticking
from protocol import checkpoint, disk
from protocol.backoff import Backoff
from protocol.disk import write_file
from protocol.invite import VERSION as INVITE_VERSION
from protocol.invite import Invite
from protocol.leaving import LeaveSignals
from protocol.parts import Failure, SupervisedThread
from protocol.status import RunStatus

logger = logging.getLogger(__name__)

FAILURE_SHOWN_S = 600.0  # that the status tells of a part that failed and was started again
LONGEST_PAUSE_S = 60.0  # before the ticker, when it has failed, is started again
REVEALED, SLOWEST_BYTES_S = 12, 125_000  # times the trained parameters that are shown of a claim; by such a line
RENDEZVOUS_WAIT_S = 20.0  # at start; it goes on without


class Host:
    """One run, served from one folder.

    Args:
        config_path: run.toml.
        folder: the run's folder; default: runs/<name> where the host was started.
        rendezvous: whether to start one beside the coordinator.
        telling: hears of the start.
        evaluate_on: instead of run.toml's.
    """

    def __init__(
        self,
        config_path: Path,
        folder: Path | None = None,
        *,
        rendezvous: bool = True,
        telling: Telling = TO_LOG,
        evaluate_on: str | None = None,
    ) -> None:
        config = RunConfig.load(config_path)
        own = config.host if evaluate_on is None else config.host.model_copy(update={"evaluate_on": evaluate_on})
        self._config = config.model_copy(update={"host": own})
        self._config_path = config_path.resolve()
        self._folder_path = folder or Path("runs") / self._config.run.name
        self._with_rendezvous, self._telling = rendezvous, telling
        self._stack = contextlib.ExitStack()
        self._closing = threading.Event()
        self._board: Board | None = None
        self._publisher: Publisher | None = None
        self._server: Server | None = None
        self._ticker: SupervisedThread | None = None
        self._failures: dict[str, tuple[float, Failure]] = {}  # part -> its newest failure, and when that was
        self._invite: Invite | None = None
        self.reducer_invite: Invite | None = None  # for `potluck join --reduce-only`; None: no host.reducer_code

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(os.path.realpath(self._folder_path))

    @property
    def invite(self) -> Invite:
        """What to pass on; known once started."""
        assert self._invite is not None, "start() first"
        return self._invite

    def status(self) -> RunStatus:
        """How the run stands now."""
        assert self._board is not None, "start() first"
        return self._board.status()

    def _failed(self, failure: Failure) -> None:
        self._failures[failure.part] = time.monotonic(), failure

    def _parts_failed(self) -> tuple[str, ...]:
        """What the status, which strangers read, says of parts that failed: the kind of error; the log has the rest."""
        since = time.monotonic() - FAILURE_SHOWN_S
        recent = [failure for when, failure in list(self._failures.values()) if when >= since or failure.is_final]
        return tuple(f"{failure.part}: {failure.reason.partition(':')[0]}" for failure in recent)

    def start(self) -> None:
        """Open everything; returns when volunteers can join.

        Raises:
            RunSpecError: run.toml is wrong, or is not the run in the folder.
            InputError: the folder, the model, the data or the listening address cannot be used, or the disk is full.
            NetworkError: the model's hub cannot be reached.
        """
        is_new = not os.path.isdir(self.folder)
        if is_new:
            self._check_own()  # before a folder is made
        with disk.writing(self.folder), contextlib.ExitStack() as stack:
            folder = RunFolder(self._folder_path)
            stack.enter_context(folder.locked())
            if not is_new:
                self._check_own()  # another host that runs in this very folder was told as that
            rendezvous = self._open_rendezvous(folder, stack)  # takes seconds, as does what follows
            run = open_run(self._config_path, self._config, folder, self._telling)
            stack.callback(run.close)
            self._serve(run, rendezvous, stack)
            self._stack = stack.pop_all()

    def _check_own(self) -> None:
        check_evaluation(self._config.host)
        check_audits(self._config.host, self._config.audit)
        check_addresses(self._config.host)

    def stop(self) -> None:
        """Close everything; harmless twice."""
        self._closing.set()
        self._stack.close()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the run has finished or the time is over; says whether it has finished.

        Raises:
            PartFailed: a thread has ended for good by a mistake of ours.
        """
        assert self._board is not None and self._publisher is not None and self._ticker is not None, "start() first"
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._publisher.check()
            self._ticker.check()
            if self._server is not None:
                self._server.check()
            if self._board.finished():
                return True
            left = TICK_S if end is None else min(TICK_S, end - time.monotonic())
            if left <= 0 or self._closing.wait(left):
                return self._board.finished()

    def __enter__(self) -> Host:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _serve(self, run: Run, rendezvous: Rendezvous | None, stack: contextlib.ExitStack) -> None:
        """Put the parts together and open them."""
        folder, store = run.folder, run.ledger.store
        roster = Announcements(lambda: board.worked(), rendezvous.addresses if rendezvous else tuple)
        board = self._board = Board(run.ledger, run.card, roster, folder.path, self._parts_failed)
        key, code = folder.membership_key(), self.code(folder)
        beginning = Beginning(store, key, run.card.run, run.card.spec.sync.min_peers, time.monotonic())
        metrics = Metrics(folder.path / "metrics.jsonl")
        own, losses = self._config.host, self._losses(run)
        publisher = self._publisher = Publisher(
            run, board.deciding, losses, own.measures, metrics.evaluation, self._failed
        )

        def committed(item: CommittedRound) -> None:
            metrics.round(item)
            publisher.wake()

        chain = lot_chain(folder, run.card.spec)
        reports = Reports(run.ledger, run.card, committed, lambda: beginning.named, chain)
        if rendezvous is not None:
            rendezvous.wait_ready(RENDEZVOUS_WAIT_S)
        offer = Offer.of(run)
        admission = Admission(
            run.ledger,
            key,
            run.card.run,
            code,
            int(own.certificate_hours * 3600),
            own.reducer_code,
            Policy(own.max_members, own.joins_per_minute, own.approve),
        )
        desks = self._desks(run, offer, admission, stack)
        publisher.draw()
        stack.enter_context(publisher)
        identity = folder.before_invite(lambda: tls.load_or_create(folder.path), "tls.key", "tls.crt")
        service = CoordinatorService(offer, admission, roster, beginning, reports, desks, board, publisher)
        server = self._server = Server(service, identity, own.listen, told=self._failed)
        stack.enter_context(server)
        self._invite = Invite(
            addresses=(public_address(own, server.port),),
            run=run.card.run,
            tls=identity.digest,
            root=run.root.keyid,
            code=code,
            version=INVITE_VERSION,
        )
        self._write_invites(folder)
        ticking = Ticking(reports, board, beginning, admission, roster, self.invite)
        ticker = self._ticker = SupervisedThread(
            "ticker",
            lambda: ticking.go(folder.path, self._closing),
            self._closing,
            self._failed,
            Backoff(TICK_S, LONGEST_PAUSE_S),
        )
        ticker.start()
        stack.callback(ticker.join, 10.0)
        stack.callback(self._closing.set)

    def _desks(self, run: Run, offer: Offer, admission: Admission, stack: contextlib.ExitStack) -> Desks:
        """What members are served of their own; where work is audited, that begins here."""
        ledger, folder = run.ledger, run.folder.path
        copies = LedgerCopies(folder / "public", ledger.store, run.card_bytes, offer.root_public_pem, offer.shelf)
        receipts = ReceiptDesk(ledger, run.card_bytes, offer.root_public_pem, copies)
        show_s = 60 * self._config.host.reveal_minutes + REVEALED * run.genesis.parameter_bytes / SLOWEST_BYTES_S
        audits = AuditDesk(ledger, run.card, folder / "reveals", show_s)
        if audits.is_on:
            evaluator = run.evaluator.another(self._config.host.auditing_device)
            stack.enter_context(Auditor(ledger, audits, admission.bans, evaluator, self._failed))
        return Desks(receipts, audits)

    def _losses(self, run: Run) -> Losses:
        """Who measures held-out losses; where members do, the host holds no model after its start."""
        own = self._config.host
        if own.evaluators:
            run.evaluator.let_go()
        genesis = checkpoint.read_info(run.folder.genesis).evaluation
        return Losses(own.evaluators, 60 * own.evaluation_minutes, run.card.run, genesis)

    def _write_invites(self, folder: RunFolder) -> None:
        write_file(folder.path / "invite.txt", f"{self.invite}\n".encode(), private=True)
        if self._config.host.reducer_code is not None:
            self.reducer_invite = self.invite.model_copy(update={"code": self._config.host.reducer_code})
            write_file(folder.path / "reducer-invite.txt", f"{self.reducer_invite}\n".encode(), private=True)

    def code(self, folder: RunFolder) -> str | None:
        """What a new member must know; None: the run is open."""
        own = self._config.host
        return own.code or (None if own.open else folder.before_invite(folder.admission_code, "admission.code"))

    def _open_rendezvous(self, folder: RunFolder, stack: contextlib.ExitStack) -> Rendezvous | None:
        if not self._with_rendezvous:
            return None
        folder.rendezvous_key()
        rendezvous = Rendezvous.for_run(
            folder.rendezvous_identity,
            self._config.host.swarm_listen,
            host_of(self._config.host.public_address),
            folder.path / "rendezvous.log",
            self._failed,
        )
        stack.enter_context(rendezvous)
        return rendezvous


def host(
    config_path: Path,
    folder: Path | None = None,
    *,
    on_start: Callable[[Host], None] | None = None,
    telling: Telling = TO_LOG,
    evaluate_on: str | None = None,
    on_status: Callable[[RunStatus], None] | None = None,
    linger_s: float | None = None,
) -> RunStatus:
    """Host a run until SIGINT or SIGTERM, and leave cleanly; the command line calls it in the main thread.

    A signal that comes before the start is over, or a second one, ends this process at once.

    Args:
        on_start: called once volunteers can join.
        telling: hears of the start.
        evaluate_on: as `Host` takes it.
        on_status: called about every second.
        linger_s: leave this long after the run has finished, so that peers get their receipts; None: stay.

    Returns:
        the last status.

    Raises: as `Host.start` and `Host.wait`.
    """
    with (
        LeaveSignals(lambda: None) as leaving,
        Host(config_path, folder, telling=telling, evaluate_on=evaluate_on) as running,
    ):
        leaving.graceful = True
        if on_start is not None:
            on_start(running)
        leave_at: float | None = None
        while not leaving.stop.wait(TICK_S):
            running.wait(timeout_s=0)
            status = running.status()
            if on_status is not None:
                on_status(status)
            if status.finished and linger_s is not None:
                leave_at = time.monotonic() + linger_s if leave_at is None else leave_at
                if time.monotonic() >= leave_at:
                    break
        return running.status()
