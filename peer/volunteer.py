"""`potluck join`: from an invite to a training peer, and back out.

    1. ask the coordinator what the run is, and hold the answer against the invite
    2. show it to the owner; go on when agreed
    3. enroll, fetch genesis and data by digest, verify the genesis as the signed checkpoint it is, load it
    4. train with the others until the run is over or the owner stops

When the coordinator is away and this peer has joined before, what is on disk is enough to go on.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from peer.coordinator_client import CoordinatorClient, RunFiles
from peer.coordinator_link import Certificate, CoordinatorLink
from peer.outbox import Outbox
from peer.receipts import Receipts
from peer.run_folder import RunFolder
from peer.swarm.head import Head
from peer.swarm.rounds import RoundReport
from peer.swarm.swarm import Swarm, SwarmConfig
from peer.trainer import WorkReport, train
from peer.training.data import load_dataset
from peer.training.genesis import load_state
from peer.training.model import load_trainable
from peer.training.state import SharedState
from peer.training.work import LocalWork
from protocol import certificate as certificates
from protocol.errors import CoordinatorAway, InputError, VerificationError
from protocol.invite import Invite
from protocol.keys import PeerIdentity, fingerprint, load_public_pem
from protocol.run_card import RunCard
from protocol.trust import trust
from protocol.verify import verify_checkpoint

logger = logging.getLogger(__name__)

FAREWELL_S = 60.0  # to hand in the last claims and states after the last round
OTHERS_S = 10.0  # for the others to reach the last round


@dataclass(frozen=True)
class PeerConfig:
    """The owner's own choices."""

    home: Path
    device: str = "cpu"
    threads: int | None = None  # CPU threads for torch; None: torch's choice
    swarm: SwarmConfig = field(default_factory=SwarmConfig)


class Screen(Protocol):
    """What the owner sees."""

    def agree(self, card: RunCard) -> bool:
        """Show the run's terms; whether the owner agrees."""

    def fetching(self, name: str, done_bytes: int, size_bytes: int) -> None: ...

    def step(self, key: str) -> None:
        """One of the steps before training: a key of peer.messages."""

    def working(self, report: WorkReport) -> None: ...

    def committed(self, head: Head, report: RoundReport) -> None: ...

    def waiting(self, reason: str) -> None: ...


@dataclass(frozen=True)
class Admission:
    """What is known of the run before training."""

    card: RunCard
    certificate: Certificate
    files: RunFiles
    addresses: list[str]


class Volunteer:
    """One peer of one run."""

    def __init__(self, invite: Invite, config: PeerConfig, screen: Screen, stop: threading.Event) -> None:
        self._invite, self._config, self._screen, self._stop = invite, config, screen, stop
        self._identity_path = config.home / "identity"
        self._identity = PeerIdentity.load_or_create(self._identity_path)
        self._client = CoordinatorClient(invite)
        self._tokens_per_s = 0.0
        self._kept_round = 0  # the newest whose state and claims are on disk
        self._link: CoordinatorLink | None = None

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
            admission = self._admit(folder)
            if admission is None:
                return False
            trust(
                self._invite.root, name=admission.card.spec.run.name, run=admission.card.run, folder=self._config.home
            )
            genesis = self._verified_genesis(admission)
            work = self._prepare(admission)
            self._screen.step("finding-members")
            self._train(stack, folder, admission, genesis, work)
        return True

    # ---- before training ---------------------------------------------------------------------------------------------

    def _admit(self, folder: RunFolder) -> Admission | None:
        self._screen.step("asking-coordinator")
        try:
            description = self._client.get_run()
        except CoordinatorAway:
            return self._admit_from_disk(folder)
        card = description.card
        known = folder.read("run-card.json") is not None
        if not known and not self._screen.agree(card):
            return None
        folder.write("root.pem", description.root_public_pem)
        enrollment = self._client.enroll(self._identity)
        folder.write("certificate", enrollment.certificate.encode())
        self._screen.step("fetching")
        files = self._client.fetch_run_files(enrollment.certificate, folder.path, self._screen.fetching)
        folder.write("run-card.json", description.card_bytes)
        token = Certificate(enrollment.certificate, enrollment.expires)
        return Admission(card, token, files, list(enrollment.swarm_addresses) + folder.read_addresses())

    def _admit_from_disk(self, folder: RunFolder) -> Admission:
        """Take part while the coordinator is away, with what an earlier start has left."""
        card_bytes, root_pem, token = folder.read("run-card.json"), folder.read("root.pem"), folder.read("certificate")
        if card_bytes is None or root_pem is None or token is None:
            raise CoordinatorAway(
                f"the coordinator cannot be reached at {', '.join(self._invite.addresses)}",
                "it is needed the first time; try again later, or ask the host whether it is running",
            )
        root = load_public_pem(root_pem)
        if fingerprint(root) != self._invite.root:
            raise VerificationError("the root key on disk is not the invite's", f"move {folder.path} away")
        card = RunCard.open(card_bytes, root)
        member = certificates.check(token.decode(), card.member_key, run=card.run)
        self._screen.step("coordinator-away")
        base = folder.path / "base-model"
        files = RunFiles(folder.path / "step-000000", base if base.is_dir() else None, folder.path / "data" / "data")
        return Admission(card, Certificate(token.decode(), member.expires), files, folder.read_addresses())

    def _verified_genesis(self, admission: Admission) -> SharedState:
        self._screen.step("verifying-genesis")
        report = verify_checkpoint(admission.files.genesis, trusted={self._invite.root})
        if not report.ok:
            raise VerificationError(f"the genesis does not check out: {report.verdict}", "do not train; tell the host")
        state = load_state(admission.files.genesis / "model")
        if state.digest != admission.card.genesis:
            raise VerificationError("the genesis is not the one in the run card", "do not train; tell the host")
        return state

    def _prepare(self, admission: Admission) -> LocalWork:
        import torch

        self._screen.step("loading-model")
        if self._config.threads:
            torch.set_num_threads(self._config.threads)
        spec, files = admission.card.spec, admission.files
        model = load_trainable(spec, files.genesis / "model", files.base_model, self._config.device)
        self._screen.step("reading-data")
        dataset = load_dataset(spec, model.tokenizer, files.data)
        return LocalWork(model, dataset, spec, self._identity.peer_id)

    # ---- training ----------------------------------------------------------------------------------------------------

    def _train(
        self, stack: ExitStack, folder: RunFolder, admission: Admission, genesis: SharedState, work: LocalWork
    ) -> None:
        card, rounds = admission.card, admission.card.spec.run.rounds
        outbox = Outbox(folder.path / "outbox")
        receipts = Receipts(
            folder.path / "receipts", run=card.run, root=self._invite.root, peer_id=self._identity.peer_id
        )

        unsaved: dict[int, bytes] = {}

        def on_commit(head: Head, report: RoundReport) -> None:
            assert head.agreement is not None
            unsaved[head.round] = head.agreement.to_bytes()
            try:
                for number in sorted(unsaved):
                    outbox.put(number, unsaved[number])
                    del unsaved[number]
                # every one: a member that has voted in a round never works on an earlier one again, so when all are
                # killed at once, the run goes on only from states that are on disk
                folder.save_head(head, card.spec.publish.every_rounds)
                self._kept_round = head.round
            except InputError as error:  # a full disk does not end the training; what was not written is tried again
                logger.warning("%s; %s", error.message, error.hint)
            logger.info(
                "round %d committed: %d members, %d tokens, %.2f s between work and work",
                head.round, report.members, report.tokens, report.waited_s,
            )  # fmt: skip
            self._screen.committed(head, report)
            if self._link is not None:
                self._link.wake()

        head = folder.resume(card, genesis)
        swarm = stack.enter_context(
            Swarm(
                self._identity,
                self._identity_path,
                card,
                lambda: admission.certificate.token,
                folder.ballot_box(),
                head,
                on_commit,
                self._config.swarm,
            )
        )
        swarm.set_founder(0, "")
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
                on_founder=swarm.set_founder,
                position=lambda: (swarm.head.round, self._tokens_per_s, swarm.addresses),
                saved_states=folder.saved_states,
            )
        )
        train(swarm, work, rounds, self._stop, self)
        self._tokens_per_s = 0.0
        if not self._stop.is_set():
            self._farewell(swarm, rounds)

    def working(self, report: WorkReport) -> None:
        """The trainer says how the work goes."""
        self._tokens_per_s = report.tokens_per_s
        self._screen.working(report)

    def waiting(self, reason: str) -> None:
        """No round is made though enough is done; `reason` says what is missing, and is empty when nothing is."""
        self._screen.waiting(reason)

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
