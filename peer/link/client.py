"""The volunteer's side of the coordinator's gRPC service. `potluck join` and the peer's background tasks call it.

Calls are synchronous, each has a deadline, and none retries: `CoordinatorAway` tells the caller to try again later,
with jitter, while training goes on. What comes back is believed only as far as the invite, the run card or a digest
vouch for it. One client may be shared by threads. Close it (or use `with`) before forking.

    with CoordinatorClient(Invite.parse(text)) as client:
        run = client.get_run()
        enrollment = client.enroll(identity)
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from peer.limits.rates import LineRates
from peer.link.answers import (
    MAX_WANTED,
    Announcement,
    Enrollment,
    RemoteFile,
    RunDescription,
    RunFiles,
    parse_addresses,
    parse_alarm,
    parse_description,
    parse_files,
    parse_twin,
)
from peer.link.clock import Clock, ClockWrong
from peer.link.connection import Connection
from peer.link.downloads import Progress, fetch
from peer.link.run_files import fetch_run_files
from peer.link.versions import open_card
from protocol import certificate, coordinator_pb2
from protocol.agreement import Agreement
from protocol.errors import FormatError, SignatureError
from protocol.invite import Invite
from protocol.keys import PeerIdentity, fingerprint, load_public_pem
from protocol.ledger_entry import MAX_REASON_CHARS
from protocol.newest import RunNow
from protocol.rpc import (
    MAX_CHALLENGE_BYTES,
    PART_BYTES,
    SWARM_VERSION,
    ReportAnswer,
    enroll_message,
    transfer_timeout_s,
)
from protocol.state import StateManifest
from protocol.status import RunStatus


class CoordinatorClient:
    """Talks to the coordinator of one run.

    Args:
        invite: says where it is, and which keys to believe.
        timeout_s: deadline of each short call.
        rates: how fast files and states may go.
    """

    def __init__(self, invite: Invite, *, timeout_s: float = 15.0, rates: LineRates | None = None) -> None:
        self._invite, self.rates, self.timeout_s = invite, rates or LineRates(), timeout_s
        self.connection = Connection(invite.addresses, invite.tls, timeout_s)
        self._run: RunDescription | None = None
        self.clock = Clock()  # measured on the way

    def get_run(self) -> RunDescription:
        """The run card and the lists of files, held against the invite.

        Raises:
            CoordinatorAway: it cannot be reached.
            SignatureError: it is not the coordinator, or not the run, of the invite.
            FormatError: an answer that does not parse, or one that only a newer Potluck understands.
        """
        reply = self.connection.call("GetRun", coordinator_pb2.GetRunRequest())
        root = load_public_pem(reply.root_public_key)
        if fingerprint(root) != self._invite.root:
            raise SignatureError(
                f"the run's root key is {fingerprint(root)[:16]}…, the invite names {self._invite.root[:16]}…",
                "ask the host for a fresh invite",
            )
        card = open_card(reply.run_card, root)
        if card.run != self._invite.run:
            raise SignatureError(
                f"the coordinator serves run {card.run[:16]}…, the invite is for {self._invite.run[:16]}…",
                "the host has started another run; ask for its invite",
            )
        self._run = parse_description(reply, card)
        return self._run

    def enroll(self, identity: PeerIdentity) -> Enrollment:
        """Become a member, or renew the membership of the same identity.

        Raises:
            CoordinatorAway: it cannot be reached.
            ClockWrong: this computer's clock is so far off that certificates mean nothing here.
            RefusedError: wrong or missing admission code, or the challenge came too late.
        """
        request = coordinator_pb2.GetChallengeRequest(peer_id=identity.peer_id)
        challenge = self.connection.call("GetChallenge", request).challenge
        if len(challenge) > MAX_CHALLENGE_BYTES:
            raise FormatError(f"a challenge has at most {MAX_CHALLENGE_BYTES} bytes, got {len(challenge)}")
        sent = time.time()
        reply = self.connection.call(
            "Enroll",
            coordinator_pb2.EnrollRequest(
                peer_id=identity.peer_id,
                challenge=challenge,
                signature=identity.sign(enroll_message(self._invite.run, challenge)),
                code=self._invite.code or "",
                version=SWARM_VERSION,
            ),
        )
        self.clock.heard(sent=sent, received=time.time(), theirs=reply.time)
        if abs(self.clock.offset_s) > certificate.CLOCK_LEEWAY_S:
            raise ClockWrong(self.clock.offset_s)
        run = self._run or self.get_run()
        member = certificate.check(reply.certificate, run.card.member_key, run=run.card.run)
        if member.peer_id != identity.peer_id:
            raise SignatureError(f"the certificate is for {member.peer_id}, expected {identity.peer_id}")
        addresses = parse_addresses(reply.swarm_addresses)
        return Enrollment(reply.certificate, member.expires, addresses, member.reducer)

    def fetch_file(
        self, certificate: str, sha256: str, size_bytes: int, destination: Path, progress: Progress | None = None
    ) -> Path:
        """Fetch one file by digest; goes on where an earlier attempt stopped. Returns `destination`.

        Raises:
            CoordinatorAway: it went away, and stayed away.
            VerificationError: it sent other bytes.
            InputError: it has no such file, or the disk is full.
        """

        def read(offset: int) -> Iterator[bytes]:
            request = coordinator_pb2.FetchFileRequest(certificate=certificate, sha256=sha256, offset=offset)
            return self.rates.down.slowed(self.connection.stream("FetchFile", request))

        return fetch(read, destination.name, sha256, size_bytes, destination, progress)

    def fetch_run_files(
        self, certificate: str, folder: Path, progress: Progress | None = None, *, to_train: bool = True
    ) -> RunFiles:
        """Fetch genesis, base model and data into `folder`; what is already there and whole is not fetched again.

        Args:
            to_train: without that, only the genesis is needed.

        Raises: as `fetch_file`; VerificationError: the genesis does not hold, and was deleted.
        """
        run = self._run or self.get_run()
        return fetch_run_files(self, run, certificate, folder, progress, to_train=to_train)

    def announce(
        self,
        certificate: str,
        *,
        swarm_addresses: Iterable[str] = (),
        round: int = 0,
        tokens_per_s: float = 0.0,
        states: Iterable[str] = (),
        reduce_only: bool = False,
        leaving: bool = False,
        session: bytes = b"",
        bans: int = 0,
    ) -> Announcement:
        """Say "I am here"; learn who else is, and whether the coordinator wants a state.

        Args:
            round: the last one committed.
            states: digests of states that can still be uploaded, the newest first.
            leaving: this peer leaves; if nobody else stays, the coordinator may want the first of these.
            session: drawn when this process started (`protocol.rpc.draw_session`).
            bans: number of the newest list of banned members that is known here.

        Raises:
            CoordinatorAway: it cannot be reached.
            RefusedError: the certificate no longer holds: enroll again.
        """
        request = coordinator_pb2.AnnounceRequest(
            certificate=certificate,
            swarm_addresses=swarm_addresses,
            round=round,
            tokens_per_s=tokens_per_s,
            states=states,
            reduce_only=reduce_only,
            leaving=leaving,
            version=SWARM_VERSION,
            session=session,
            bans=bans,
        )
        sent = time.time()
        reply = self.connection.call("Announce", request)
        self.clock.heard(sent=sent, received=time.time(), theirs=reply.time)
        addresses = parse_addresses(reply.swarm_addresses)
        return Announcement(
            addresses,
            reply.want_state,
            reply.round,
            reply.finished,
            reply.beginners,
            parse_alarm(reply),
            parse_twin(reply),
            reply.want_chain,
            reply.banned,
            reply.ledger_head,
            reply.expelled[:MAX_REASON_CHARS],
            reply.want_loss,
            reply.drawn_until,
            tuple(reply.want_reveals)[:MAX_WANTED],
        )

    def agreement(self, certificate: str, round: int = 0) -> Agreement | None:
        """A round as the ledger has it, its signatures checked; None when it has none.

        Args:
            round: 0: the newest.

        Raises:
            CoordinatorAway: it cannot be reached.
            FormatError, RefusedError: what it gives is no agreement of this run; or the certificate does not hold.
        """
        run = self._run or self.get_run()
        request = coordinator_pb2.GetAgreementRequest(certificate=certificate, round=round)
        data = self.connection.call("GetAgreement", request, timeout_s=4 * self.timeout_s).agreement
        if not data:
            return None
        return Agreement.from_bytes(data, run=run.card.run, membership_key=run.card.member_key)

    def report(self, certificate: str, agreement: bytes) -> ReportAnswer:
        """Report a committed round (`Agreement.to_bytes`); harmless twice.

        Raises:
            CoordinatorAway: it cannot be reached, or has no room now: keep the report and try again.
            RefusedError: the certificate no longer holds: enroll again.
        """
        request = coordinator_pb2.ReportRequest(certificate=certificate, agreement=agreement)
        reply = self.connection.call("Report", request, timeout_s=4 * self.timeout_s)
        return ReportAnswer(reply.accepted, reply.reason)

    def report_chain(self, certificate: str, agreements: Sequence[bytes]) -> ReportAnswer:
        """Report the rounds that the ledger lacks, oldest first, as `announce` asked for; harmless twice.

        Args:
            agreements: `protocol.rpc.MAX_CHAIN_ROUNDS` of them and `MAX_CHAIN_BYTES` at most.

        Raises:
            CoordinatorAway: it cannot be reached.
            RefusedError: the certificate no longer holds: enroll again.
        """
        request = coordinator_pb2.ReportChainRequest(certificate=certificate, agreements=agreements)
        reply = self.connection.call("ReportChain", request, timeout_s=8 * self.timeout_s)
        return ReportAnswer(reply.accepted, reply.reason)

    def report_loss(self, certificate: str, measured: bytes) -> ReportAnswer:
        """Report the held-out loss that `announce` asked for (`Measured`, signed). Raises: as `report`."""
        request = coordinator_pb2.ReportLossRequest(certificate=certificate, measured=measured)
        reply = self.connection.call("ReportLoss", request)
        return ReportAnswer(reply.accepted, reply.reason)

    def upload_state(self, certificate: str, manifest: StateManifest, chunks: Iterable[bytes]) -> bool:
        """Upload the state that `announce` asked for: parameters, then outer vectors, in order.

        Args:
            chunks: pieces of any length up to 1 MiB.

        Returns:
            whether the coordinator took it; False when it no longer wants it.

        Raises:
            CoordinatorAway: it went away.
            RefusedError: the bytes are not the state that was agreed on, or the certificate does not hold.
        """

        def parts() -> Iterator[coordinator_pb2.StatePart]:
            yield coordinator_pb2.StatePart(
                certificate=certificate, state=manifest.digest, manifest=manifest.to_bytes()
            )
            for chunk in self.rates.up.slowed(map(bytes, chunks)):
                for start in range(0, len(chunk), PART_BYTES):
                    yield coordinator_pb2.StatePart(data=bytes(chunk[start : start + PART_BYTES]))

        limit_s = transfer_timeout_s(manifest.parameter_bytes + manifest.outer_bytes)
        return bool(self.connection.call("UploadState", parts(), timeout_s=limit_s).accepted)

    def receipts(self, certificate: str, after_round: int = 0) -> list[bytes]:
        """Receipts for the rounds after `after_round`, oldest first; not yet checked (`peer.disk.receipts` does).

        Raises:
            CoordinatorAway: it cannot be reached.
            RefusedError: the certificate no longer holds: enroll again.
        """
        request = coordinator_pb2.GetReceiptsRequest(certificate=certificate, after_round=after_round)
        return list(self.connection.call("GetReceipts", request).receipts)

    def checkpoint(self, certificate: str, round: int = 0) -> tuple[int, tuple[RemoteFile, ...]]:
        """The round and the files of a published checkpoint, unchecked; 0 and none when there is none.

        Args:
            round: 0: the newest.

        Raises:
            CoordinatorAway: it cannot be reached.
            FormatError, VerificationError: names that are no plain paths, digests that are none.
            RefusedError: the certificate no longer holds: enroll again.
        """
        request = coordinator_pb2.GetCheckpointRequest(certificate=certificate, round=round)
        reply = self.connection.call("GetCheckpoint", request, timeout_s=4 * self.timeout_s)
        return reply.round, parse_files(reply.files)

    def ledger(self, certificate: str) -> RemoteFile:
        """The whole ledger as a file to fetch, some minutes old at most. Raises: as `checkpoint`."""
        request = coordinator_pb2.GetCheckpointRequest(certificate=certificate, ledger=True)
        reply = self.connection.call("GetCheckpoint", request, timeout_s=4 * self.timeout_s)
        if not reply.HasField("ledger"):
            raise FormatError("the coordinator gives no ledger: it is of an older version")
        return parse_files([reply.ledger])[0]

    def status(self) -> RunStatus:
        """The run's status. Raises: CoordinatorAway, FormatError."""
        return RunStatus.from_bytes(self.connection.call("GetStatus", coordinator_pb2.GetStatusRequest()).status)

    def run_now(self, ledger_size: int) -> RunNow:
        """What it has published, and that its ledger extends the one of `ledger_size` leaves.

        Unchecked: `protocol.newest` does that.

        Raises: CoordinatorAway, FormatError.
        """
        reply = self.connection.call("GetStatus", coordinator_pb2.GetStatusRequest(ledger_size=ledger_size))
        named = RunStatus.from_bytes(reply.status).checkpoints
        published = {item.round: item.payload for item in named if item.published and item.payload}
        return RunNow(published, reply.ledger_head, tuple(reply.consistency))

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        self.connection.close()

    def __enter__(self) -> CoordinatorClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
