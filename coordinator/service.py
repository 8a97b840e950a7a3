"""The gRPC service of protocol/coordinator.proto: thin handlers that parse, ask the rules, and answer. `server` runs it.

Errors of ours become status codes here and nowhere else; the hint travels as trailing metadata.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import unquote

import grpc
from sqlalchemy.exc import OperationalError

from coordinator.admission import Admission
from coordinator.receipts import ReceiptDesk
from coordinator.reports import Reports
from coordinator.roster import Roster
from coordinator.shelf import Shelf, ShelfFile
from coordinator.streams import Streams
from coordinator.uploads import StateInbox, Wanted
from protocol import certificate, coordinator_pb2, coordinator_pb2_grpc
from protocol.claim import MAX_AGREEMENT_BYTES
from protocol.errors import FormatError, InputError, NetworkError, PotluckError, RefusedError
from protocol.rpc import HINT_KEY, PART_BYTES, transfer_timeout_s
from protocol.run_card import RunCard

FETCH_LIMIT_S = 300.0  # of one call; the client resumes
REPORTS_AT_ONCE = 4  # checking one costs up to a second of CPU
REPORT_WAIT_S = 20.0


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
    streams: Streams
    status: Callable[[], bytes]  # canonical JSON
    round: Callable[[], int]  # the newest in the ledger
    round_of: Callable[[str], int | None]  # state digest -> its committed round
    finished: Callable[[], bool]
    swarm_addresses: Callable[[], list[str]]  # of the rendezvous
    delivered: Callable[[], None]  # a wanted state has come
    last_state: Callable[[str], None]  # of the last member, which leaves


_CODES: list[tuple[type[PotluckError], grpc.StatusCode]] = [
    (UnauthenticatedError, grpc.StatusCode.UNAUTHENTICATED),
    (FormatError, grpc.StatusCode.INVALID_ARGUMENT),
    (RefusedError, grpc.StatusCode.PERMISSION_DENIED),
    (InputError, grpc.StatusCode.NOT_FOUND),
    (NetworkError, grpc.StatusCode.RESOURCE_EXHAUSTED),
]


def _abort(context: grpc.ServicerContext, error: PotluckError) -> NoReturn:
    code = next((code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)
    if error.hint:
        context.set_trailing_metadata(((HINT_KEY, error.hint.encode()),))
    context.abort(code, error.message)
    raise AssertionError("abort raises")


def _unary(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler whose errors of ours become status codes."""

    @functools.wraps(handler)
    def answer(self: CoordinatorService, request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return handler(self, request, context)
        except OperationalError as error:
            _abort(context, NetworkError(f"the ledger cannot be written now: {error.orig}", "try again later"))
        except PotluckError as error:
            _abort(context, error)

    return answer


class CoordinatorService(coordinator_pb2_grpc.CoordinatorServicer):
    """Handlers; each is called in a thread of the server's pool."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._report_slots = threading.BoundedSemaphore(REPORTS_AT_ONCE)

    @_unary
    def GetRun(self, request: Any, context: grpc.ServicerContext) -> Any:
        return coordinator_pb2.GetRunReply(
            run_card=self._desk.card_bytes,
            root_public_key=self._desk.root_public_pem,
            genesis_files=[_model_file(file) for file in self._desk.genesis_files],
            model_files=[_model_file(file) for file in self._desk.model_files],
        )

    @_unary
    def GetChallenge(self, request: Any, context: grpc.ServicerContext) -> Any:
        return coordinator_pb2.GetChallengeReply(challenge=self._desk.admission.challenge(request.peer_id))

    @_unary
    def Enroll(self, request: Any, context: grpc.ServicerContext) -> Any:
        issued = self._desk.admission.enroll(
            request.peer_id, request.challenge, request.signature, request.code, _address(context)
        )
        others = self._desk.roster.addresses(besides=request.peer_id, now=time.monotonic())
        addresses = [*self._desk.swarm_addresses(), *others]
        return coordinator_pb2.EnrollReply(certificate=issued, swarm_addresses=addresses, time=time.time())

    def FetchFile(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        try:
            peer_id = self._member(request.certificate)
            pieces = self._desk.shelf.read(request.sha256, request.offset)
            with self._desk.streams.open(peer_id, context.cancel, FETCH_LIMIT_S) as touch:  # type: ignore[attr-defined]
                for piece in pieces:
                    touch()
                    yield coordinator_pb2.FilePart(data=piece)
        except PotluckError as error:
            _abort(context, error)

    @_unary
    def Announce(self, request: Any, context: grpc.ServicerContext) -> Any:
        peer_id, now = self._member(request.certificate), time.monotonic()
        self._desk.roster.announce(
            peer_id,
            request.swarm_addresses,
            round=request.round,
            tokens_per_s=request.tokens_per_s,
            states=request.states,
            now=now,
            reduce_only=request.reduce_only,
            leaving=request.leaving,
        )
        round_number = self._desk.round()
        if request.leaving and request.states and self._desk.roster.is_last(peer_id, now):
            self._desk.last_state(request.states[0])
        return coordinator_pb2.AnnounceReply(
            swarm_addresses=[*self._desk.swarm_addresses(), *self._desk.roster.addresses(besides=peer_id, now=now)],
            want_state=self._desk.wanted.ask(peer_id, request.states, now),
            round=round_number,
            finished=self._desk.finished(),
            founder="" if round_number else self._desk.roster.founder(now),
            time=time.time(),
        )

    @_unary
    def Report(self, request: Any, context: grpc.ServicerContext) -> Any:
        peer_id = self._member(request.certificate)
        if len(request.agreement) > MAX_AGREEMENT_BYTES:
            raise FormatError(f"an agreement has at most {MAX_AGREEMENT_BYTES} bytes, got {len(request.agreement)}")
        if not self._report_slots.acquire(timeout=REPORT_WAIT_S):
            raise NetworkError("the coordinator is busy with other reports", "keep the report and try again")
        try:
            answer = self._desk.reports.submit(request.agreement, peer_id)
        finally:
            self._report_slots.release()
        return coordinator_pb2.ReportReply(accepted=answer.accepted, reason=answer.reason)

    @_unary
    def UploadState(self, request_iterator: Iterator[Any], context: grpc.ServicerContext) -> Any:
        """Counted and watched before its first message: a stranger may open a stream and say nothing."""
        cancel, size = context.cancel, self._desk.state_bytes  # type: ignore[attr-defined]
        with self._desk.streams.open(_address(context), cancel, transfer_timeout_s(size)) as touch:
            first = next(request_iterator, None)
            if first is None:
                raise FormatError("expected a certificate, a state digest and a manifest, got nothing")
            peer_id = self._member(first.certificate)
            round_number = self._desk.round_of(first.state)
            if round_number is None or not self._desk.wanted.begin(peer_id, first.state):
                return coordinator_pb2.UploadStateReply(accepted=False)
            delivered = False
            try:
                manifest = self._desk.inbox.check_manifest(first.manifest, first.state, round_number)
                self._desk.inbox.receive(manifest, _pieces(first, request_iterator, touch))
                delivered = True
            finally:
                self._desk.wanted.end(peer_id, first.state, delivered)
        self._desk.delivered()
        return coordinator_pb2.UploadStateReply(accepted=True)

    @_unary
    def GetReceipts(self, request: Any, context: grpc.ServicerContext) -> Any:
        peer_id = self._member(request.certificate)
        return coordinator_pb2.GetReceiptsReply(receipts=self._desk.receipts.for_peer(peer_id, request.after_round))

    @_unary
    def GetAgreement(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._member(request.certificate)
        return coordinator_pb2.GetAgreementReply(agreement=self._desk.reports.agreement(request.round))

    @_unary
    def GetStatus(self, request: Any, context: grpc.ServicerContext) -> Any:
        return coordinator_pb2.GetStatusReply(status=self._desk.status())

    def _member(self, token: str) -> str:
        """The peer id of a certificate that holds."""
        try:
            return certificate.check(token, self._desk.card.member_key, run=self._desk.card.run).peer_id
        except (FormatError, RefusedError) as error:
            raise UnauthenticatedError(error.message, error.hint or "enroll again") from error


def _pieces(first: Any, rest: Iterator[Any], touch: Callable[[], None]) -> Iterator[bytes]:
    """The bytes of a state, part by part."""
    if first.data:
        yield first.data
    for part in rest:
        touch()
        if not 0 < len(part.data) <= PART_BYTES:
            raise FormatError(f"a part of a state has 1 to {PART_BYTES} bytes, got {len(part.data)}")
        yield part.data


def _model_file(file: ShelfFile) -> Any:
    return coordinator_pb2.ModelFile(path=file.path, sha256=file.sha256, size_bytes=file.size_bytes)


def _address(context: grpc.ServicerContext) -> str:
    """The caller's network address without its port.

    gRPC writes it as ipv4:203.0.113.7:40000 or ipv6:%5B2001:db8::1%5D:40000.
    """
    return unquote(context.peer()).rpartition(":")[0]
