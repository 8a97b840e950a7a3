"""The handlers of protocol/coordinator.proto: they parse a request, ask the rules, and answer. `door` calls them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from coordinator.admission import Admission
from coordinator.audits import AuditDesk
from coordinator.beginning import Beginning
from coordinator.board import Board
from coordinator.gap import Gap
from coordinator.line import LineDesk
from coordinator.places import Places
from coordinator.publisher import Publisher
from coordinator.receipts import ReceiptDesk
from coordinator.reports import Reports
from coordinator.roster import Announcements
from coordinator.shelf import Offer, ShelfFile
from coordinator.twins import Twins
from protocol import certificate, coordinator_pb2
from protocol.agreement import MAX_AGREEMENT_BYTES
from protocol.errors import FormatError, RefusedError
from protocol.release import this_release
from protocol.rpc import (
    MAX_CHAIN_BYTES,
    MAX_CHAIN_ROUNDS,
    PART_BYTES,
    SWARM_VERSION,
    UNTOLD_VERSION,
    transfer_timeout_s,
)
from protocol.status import Alarm

MEMBERS = 4096  # calls of members under way, in all
EACH = 4  # of one member
TRANSFERS_EACH = 2  # of one member, likewise
TOO_OLD = (
    "this run's members speak a newer protocol than your Potluck: update it (git pull, or from where you "
    "got it) and start the same command again"
)


class UnauthenticatedError(RefusedError):
    """The certificate does not hold."""


@dataclass(frozen=True)
class Desks:
    """Where members are served what is theirs alone."""

    receipts: ReceiptDesk
    audits: AuditDesk


class CoordinatorService:
    """One handler for each method: of a request and the network that it came from. They run in threads."""

    def __init__(
        self,
        offer: Offer,
        admission: Admission,
        roster: Announcements,
        beginning: Beginning,
        reports: Reports,
        desks: Desks,
        board: Board,
        publisher: Publisher,
    ) -> None:
        self._offer, self._admission, self._bans, self._roster = offer, admission, admission.bans, roster
        self._beginning = beginning
        self._reports, self._board, self._publisher = reports, board, publisher
        self._receipts, self._audits = desks.receipts, desks.audits
        self._calls = Places(total=MEMBERS, each=EACH)
        self.transfers = Places(total=MEMBERS, each=TRANSFERS_EACH)
        self._twins, self._gap, self._line = Twins(offer.card.run), Gap(), LineDesk()

    @property
    def upload_s(self) -> float:
        """How long the upload of a state may take."""
        return transfer_timeout_s(self._publisher.inbox.most_bytes)

    @property
    def reveal_s(self) -> float:
        """Likewise of a reveal, which holds the base and two own states of a few vectors each."""
        return transfer_timeout_s(4 * self._publisher.inbox.most_bytes)

    def GetRun(self, request: Any, network: str) -> Any:
        return coordinator_pb2.GetRunReply(
            run_card=self._offer.card_bytes,
            root_public_key=self._offer.root_public_pem,
            genesis_files=[_model_file(file) for file in self._offer.genesis_files],
            model_files=[_model_file(file) for file in self._offer.model_files],
            round=self._board.round(),
            finished=self._board.finished(),
            model_config=self._offer.model_config,
            version=SWARM_VERSION,
            release=str(this_release()),
        )

    def GetChallenge(self, request: Any, network: str) -> Any:
        return coordinator_pb2.GetChallengeReply(challenge=self._admission.challenge(request.peer_id))

    def Enroll(self, request: Any, network: str) -> Any:
        if (request.version or UNTOLD_VERSION) < SWARM_VERSION:
            raise RefusedError(TOO_OLD)  # before it downloads anything
        issued = self._admission.enroll(request.peer_id, request.challenge, request.signature, request.code, network)
        addresses = self._roster.addresses(besides=request.peer_id, now=time.monotonic())
        return coordinator_pb2.EnrollReply(certificate=issued, swarm_addresses=addresses, time=time.time())

    def FetchFile(self, request: Any, network: str) -> tuple[str, Iterator[bytes]]:
        """Whose call it is, and the file piece by piece."""
        peer_id = self._member(request.certificate)
        self._bans.check(peer_id)
        return peer_id, self._offer.shelf.read(request.sha256, request.offset)

    def Announce(self, request: Any, network: str) -> Any:
        board, roster, now = self._board, self._roster, time.monotonic()
        banned = self._bans.data if request.bans < self._bans.number else b""
        with self._call(request.certificate, banned_too=True) as peer_id:
            if (reason := self._bans.why(peer_id)) is not None:
                return coordinator_pb2.AnnounceReply(time=time.time(), banned=banned, expelled=reason)
            if request.version < SWARM_VERSION:
                raise RefusedError(TOO_OLD)
            twin = self._twins.seen(peer_id, request.session, now)
            roster.announce(
                peer_id,
                request.swarm_addresses,
                round=request.round,
                tokens_per_s=request.tokens_per_s,
                states=request.states,
                now=now,
                reduce_only=request.reduce_only,
                leaving=request.leaving,
            )
            round_number, worked = board.round(), peer_id in board.worked()
            if request.leaving and request.states and roster.is_last(peer_id, now):
                self._publisher.offer_last(request.states[0])
            word, asked = self._beginning.word(roster.working(now), round_number), self._audits.ask(peer_id)
            return coordinator_pb2.AnnounceReply(
                swarm_addresses=roster.addresses(besides=peer_id, now=now),
                want_state=self._publisher.wanted.ask(peer_id, request.states, now, worked=worked),
                round=round_number,
                finished=board.finished(),
                beginners=word if 0 in (round_number, request.round) else b"",
                time=time.time(),
                alarm=_alarm(board.alarm),
                twin=coordinator_pb2.Twin.Name(twin),
                want_chain=self._gap.ask(peer_id, request.round, round_number, now, worked=worked),
                want_loss=self._publisher.losses.ask(peer_id, () if request.reduce_only else request.states, now),
                banned=banned,
                ledger_head=self._receipts.head,
                drawn_until=asked.drawn_until,
                want_reveals=asked.claims,
            )

    def Report(self, request: Any, network: str) -> Any:
        with self._call(request.certificate, banned_too=True) as peer_id:
            if (reason := self._bans.why(peer_id)) is not None:
                return coordinator_pb2.ReportReply(accepted=False, reason=f"banned: {reason}")
            if len(request.agreement) > MAX_AGREEMENT_BYTES:
                raise FormatError(f"an agreement has at most {MAX_AGREEMENT_BYTES} bytes, got {len(request.agreement)}")
            answer = self._reports.submit(request.agreement, peer_id)
        return coordinator_pb2.ReportReply(accepted=answer.accepted, reason=answer.reason)

    def ReportChain(self, request: Any, network: str) -> Any:
        with self._call(request.certificate) as peer_id:
            count, size_bytes = len(request.agreements), sum(map(len, request.agreements))
            if count > MAX_CHAIN_ROUNDS or size_bytes > MAX_CHAIN_BYTES:
                raise FormatError(
                    f"a chain has at most {MAX_CHAIN_ROUNDS} agreements and {MAX_CHAIN_BYTES} bytes, "
                    f"got {count} and {size_bytes}"
                )
            answer = self._reports.submit_chain(request.agreements, peer_id)
        return coordinator_pb2.ReportReply(accepted=answer.accepted, reason=answer.reason)

    def ReportLoss(self, request: Any, network: str) -> Any:
        with self._call(request.certificate) as peer_id:
            answer = self._publisher.losses.submit(request.measured, peer_id)
        if answer.accepted:
            self._publisher.wake()
        return coordinator_pb2.ReportReply(accepted=answer.accepted, reason=answer.reason)

    def UploadState(self, first: Any, network: str, rest: Iterator[Any]) -> Any:
        """Take a state that was asked for; `rest` are the messages after the first."""
        peer_id, inbox, wanted = self._member(first.certificate), self._publisher.inbox, self._publisher.wanted
        self._bans.check(peer_id)
        round_number = self._board.round_of(first.state)
        if round_number is None or not wanted.begin(peer_id, first.state):
            return coordinator_pb2.UploadStateReply(accepted=False)
        delivered = False
        try:
            manifest = inbox.check_manifest(first.manifest, first.state, round_number)
            inbox.receive(manifest, _pieces(first, rest))
            delivered = True
        finally:
            wanted.end(peer_id, first.state, delivered)
        self._publisher.wake()
        return coordinator_pb2.UploadStateReply(accepted=True)

    def Reveal(self, first: Any, network: str, rest: Iterator[Any]) -> Any:
        """Take the work of a claim that was drawn; `rest` as of `UploadState`."""
        peer_id = self._member(first.certificate)
        self._bans.check(peer_id)
        taken = self._audits.receive(peer_id, first.claim, first.head, _pieces(first, rest))
        return coordinator_pb2.RevealReply(accepted=taken)

    def GetReceipts(self, request: Any, network: str) -> Any:
        with self._call(request.certificate, banned_too=True) as peer_id:
            return coordinator_pb2.GetReceiptsReply(receipts=self._receipts.for_peer(peer_id, request.after_round))

    def GetAgreement(self, request: Any, network: str) -> Any:
        with self._call(request.certificate):
            return coordinator_pb2.GetAgreementReply(agreement=self._reports.agreement(request.round))

    def GetCheckpoint(self, request: Any, network: str) -> Any:
        with self._call(request.certificate):
            number, folder = self._board.published(request.round) or (0, None)
            files = [] if folder is None else self._offer.shelf.add_checkpoint(folder)
            ledger = _model_file(self._receipts.copies.newest()) if request.ledger else None
        return coordinator_pb2.GetCheckpointReply(
            round=number, files=[_model_file(file) for file in files], ledger=ledger
        )

    def GetStatus(self, request: Any, network: str) -> Any:
        status = self._board.status_bytes()
        if request.ledger_size == 0:
            return coordinator_pb2.GetStatusReply(status=status)
        head, proof = self._receipts.growth(request.ledger_size)
        return coordinator_pb2.GetStatusReply(status=status, ledger_head=head, consistency=proof)

    def Measure(self, request: Any, network: str) -> Any:
        return self._line.measure(request, network)

    @contextmanager
    def _call(self, token: str, *, banned_too: bool = False) -> Iterator[str]:
        """One call of a member, who has a few at a time."""
        peer_id = self._member(token)
        if not banned_too:
            self._bans.check(peer_id)
        with self._calls.taken(peer_id):
            yield peer_id

    def _member(self, token: str) -> str:
        """The peer id of a certificate that holds."""
        try:
            return certificate.check(token, self._offer.card.member_key, run=self._offer.card.run).peer_id
        except (FormatError, RefusedError) as error:
            raise UnauthenticatedError(error.message, error.hint or "enroll again") from error


def _pieces(first: Any, rest: Iterator[Any]) -> Iterator[bytes]:
    """The bytes of an upload, part by part."""
    if first.data:
        yield first.data
    for part in rest:
        if not 0 < len(part.data) <= PART_BYTES:
            raise FormatError(f"a part of an upload has 1 to {PART_BYTES} bytes, got {len(part.data)}")
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
