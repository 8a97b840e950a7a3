"""The handlers of protocol/coordinator.proto: they parse a request, ask the rules, and answer. `door` calls them, in threads."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from coordinator.admission import Admission
from coordinator.beginning import Beginning
from coordinator.places import Places
from coordinator.receipts import ReceiptDesk
from coordinator.reports import Reports
from coordinator.roster import Roster
from coordinator.shelf import Shelf, ShelfFile
from coordinator.twins import Twins
from coordinator.uploads import StateInbox, Wanted
from protocol import certificate, coordinator_pb2
from protocol.agreement import MAX_AGREEMENT_BYTES
from protocol.errors import FormatError, RefusedError
from protocol.rpc import PART_BYTES, SWARM_VERSION, transfer_timeout_s
from protocol.run_card import RunCard
from protocol.status import Alarm

MEMBERS = 4096  # calls of members under way, in all
EACH = 4  # of one member
TRANSFERS_EACH = 2  # of one member, likewise
TOO_OLD = (
    "this run's members speak a newer protocol than your Potluck: update it (git pull, or pip install -U potluck) "
    "and start the same command again"
)


class UnauthenticatedError(RefusedError):
    """The certificate does not hold."""


@dataclass(frozen=True)
class Desk:
    """What the handlers need; `host` puts it together."""

    card: RunCard
    card_bytes: bytes
    root_public_pem: bytes
    genesis_files: list[ShelfFile]
    model_files: list[ShelfFile]
    admission: Admission
    shelf: Shelf
    roster: Roster
    reports: Reports
    receipts: ReceiptDesk
    wanted: Wanted
    inbox: StateInbox
    state_bytes: int  # of the largest state that the run can have
    beginning: Beginning
    worked: Callable[[], Container[str]]  # peer ids that have credit
    status: Callable[[], bytes]  # canonical JSON
    growth: Callable[[int], tuple[str, list[bytes]]]  # ledger size -> the newest head, and that it extends that ledger
    round: Callable[[], int]  # the newest in the ledger
    round_of: Callable[[str], int | None]  # state digest -> its committed round
    finished: Callable[[], bool]
    alarm: Callable[[], Alarm | None]
    swarm_addresses: Callable[[], list[str]]  # of the rendezvous
    delivered: Callable[[], None]  # a wanted state has come
    last_state: Callable[[str], None]  # of the last member, which leaves
    checkpoint: Callable[
        [int], tuple[int, list[ShelfFile]]
    ]  # a published one, 0: the newest; its round, 0: there is none


class CoordinatorService:
    """One handler for each method: of a request and the network that it came from."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._calls = Places(total=MEMBERS, each=EACH)
        self.transfers = Places(total=MEMBERS, each=TRANSFERS_EACH)
        self._twins = Twins(desk.card.run)

    @property
    def upload_s(self) -> float:
        """How long the upload of a state may take."""
        return transfer_timeout_s(self._desk.state_bytes)

    def GetRun(self, request: Any, network: str) -> Any:
        return coordinator_pb2.GetRunReply(
            run_card=self._desk.card_bytes,
            root_public_key=self._desk.root_public_pem,
            genesis_files=[_model_file(file) for file in self._desk.genesis_files],
            model_files=[_model_file(file) for file in self._desk.model_files],
            round=self._desk.round(),
            finished=self._desk.finished(),
        )

    def GetChallenge(self, request: Any, network: str) -> Any:
        return coordinator_pb2.GetChallengeReply(challenge=self._desk.admission.challenge(request.peer_id))

    def Enroll(self, request: Any, network: str) -> Any:
        issued = self._desk.admission.enroll(
            request.peer_id, request.challenge, request.signature, request.code, network
        )
        others = self._desk.roster.addresses(besides=request.peer_id, now=time.monotonic())
        addresses = [*self._desk.swarm_addresses(), *others]
        return coordinator_pb2.EnrollReply(certificate=issued, swarm_addresses=addresses, time=time.time())

    def FetchFile(self, request: Any, network: str) -> tuple[str, Iterator[bytes]]:
        """Whose call it is, and the file piece by piece."""
        return self._member(request.certificate), self._desk.shelf.read(request.sha256, request.offset)

    def Announce(self, request: Any, network: str) -> Any:
        desk, now = self._desk, time.monotonic()
        with self._call(request.certificate) as peer_id:
            if request.version < SWARM_VERSION:
                raise RefusedError(TOO_OLD)
            twin = self._twins.seen(peer_id, request.session, now)
            desk.roster.announce(
                peer_id,
                request.swarm_addresses,
                round=request.round,
                tokens_per_s=request.tokens_per_s,
                states=request.states,
                now=now,
                reduce_only=request.reduce_only,
                leaving=request.leaving,
            )
            round_number = desk.round()
            if request.leaving and request.states and desk.roster.is_last(peer_id, now):
                desk.last_state(request.states[0])
            word = desk.beginning.word(desk.roster.working(now), round_number)
            return coordinator_pb2.AnnounceReply(
                swarm_addresses=[*desk.swarm_addresses(), *desk.roster.addresses(besides=peer_id, now=now)],
                want_state=desk.wanted.ask(peer_id, request.states, now, worked=peer_id in desk.worked()),
                round=round_number,
                finished=desk.finished(),
                beginners=word if 0 in (round_number, request.round) else b"",
                time=time.time(),
                alarm=_alarm(desk.alarm()),
                twin=coordinator_pb2.Twin.Name(twin),
            )

    def Report(self, request: Any, network: str) -> Any:
        with self._call(request.certificate) as peer_id:
            if len(request.agreement) > MAX_AGREEMENT_BYTES:
                raise FormatError(f"an agreement has at most {MAX_AGREEMENT_BYTES} bytes, got {len(request.agreement)}")
            answer = self._desk.reports.submit(request.agreement, peer_id)
        return coordinator_pb2.ReportReply(accepted=answer.accepted, reason=answer.reason)

    def UploadState(self, first: Any, network: str, rest: Iterator[Any]) -> Any:
        """Take a state that was asked for; `rest` are the messages after the first."""
        peer_id = self._member(first.certificate)
        round_number = self._desk.round_of(first.state)
        if round_number is None or not self._desk.wanted.begin(peer_id, first.state):
            return coordinator_pb2.UploadStateReply(accepted=False)
        delivered = False
        try:
            manifest = self._desk.inbox.check_manifest(first.manifest, first.state, round_number)
            self._desk.inbox.receive(manifest, _pieces(first, rest))
            delivered = True
        finally:
            self._desk.wanted.end(peer_id, first.state, delivered)
        self._desk.delivered()
        return coordinator_pb2.UploadStateReply(accepted=True)

    def GetReceipts(self, request: Any, network: str) -> Any:
        with self._call(request.certificate) as peer_id:
            return coordinator_pb2.GetReceiptsReply(receipts=self._desk.receipts.for_peer(peer_id, request.after_round))

    def GetAgreement(self, request: Any, network: str) -> Any:
        with self._call(request.certificate):
            return coordinator_pb2.GetAgreementReply(agreement=self._desk.reports.agreement(request.round))

    def GetCheckpoint(self, request: Any, network: str) -> Any:
        with self._call(request.certificate):
            number, files = self._desk.checkpoint(request.round)
        return coordinator_pb2.GetCheckpointReply(round=number, files=[_model_file(file) for file in files])

    def GetStatus(self, request: Any, network: str) -> Any:
        status = self._desk.status()
        if request.ledger_size == 0:
            return coordinator_pb2.GetStatusReply(status=status)
        head, proof = self._desk.growth(request.ledger_size)
        return coordinator_pb2.GetStatusReply(status=status, ledger_head=head, consistency=proof)

    @contextmanager
    def _call(self, token: str) -> Iterator[str]:
        """One call of a member, who has a few at a time."""
        peer_id = self._member(token)
        with self._calls.taken(peer_id):
            yield peer_id

    def _member(self, token: str) -> str:
        """The peer id of a certificate that holds."""
        try:
            return certificate.check(token, self._desk.card.member_key, run=self._desk.card.run).peer_id
        except (FormatError, RefusedError) as error:
            raise UnauthenticatedError(error.message, error.hint or "enroll again") from error


def _pieces(first: Any, rest: Iterator[Any]) -> Iterator[bytes]:
    """The bytes of a state, part by part."""
    if first.data:
        yield first.data
    for part in rest:
        if not 0 < len(part.data) <= PART_BYTES:
            raise FormatError(f"a part of a state has 1 to {PART_BYTES} bytes, got {len(part.data)}")
        yield part.data


def _alarm(alarm: Alarm | None) -> Any:
    if alarm is None:
        return None
    now, before = (math.nan if loss is None else loss for loss in (alarm.held_out_loss, alarm.published_loss))
    return coordinator_pb2.Alarm(
        round=alarm.round,
        held_out_loss=now,
        published_round=alarm.published_round,
        published_loss=before,
        held_back=alarm.held_back,
    )


def _model_file(file: ShelfFile) -> Any:
    return coordinator_pb2.ModelFile(path=file.path, sha256=file.sha256, size_bytes=file.size_bytes)
