"""From an invite to what is needed for training: the run card, a certificate, and the run's files, all checked.

`volunteer` calls `Newcomer.admit`. The coordinator is asked first. While it is away, what an earlier start has left is
enough, if all of it is whole; a newcomer, or one whose files are damaged, waits for it and tries again, and says why.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric import ec

from peer.disk.kept_states import is_kept
from peer.disk.peer_folder import PeerFolder
from peer.link.answers import RunDescription, RunFiles
from peer.link.client import CoordinatorClient
from peer.link.clock import ClockWrong, tell_clock
from peer.link.downloads import is_complete
from peer.link.estimate import terms_of
from peer.link.held_certificate import HeldCertificate
from peer.link.run_files import data_path, is_genesis
from peer.screen.screen import Screen
from peer.screen.terms import JoinTerms
from peer.training import eight_bit, nf4
from peer.training.memory import MomentsKind
from protocol import certificate as certificates
from protocol.backoff import Backoff
from protocol.errors import CoordinatorAway, FormatError, InputError, NetworkError, RefusedError
from protocol.files import hash_folder, tree_digest
from protocol.invite import Invite
from protocol.keys import PeerIdentity, fingerprint, load_public_pem
from protocol.run_card import RunCard

logger = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 15.0  # between two tries
T = TypeVar("T")


@dataclass(frozen=True)
class RunOver:
    """The run has had all its rounds: there is nothing to join."""

    card: RunCard
    round: int
    was_member: bool  # it was joined here before


@dataclass(frozen=True)
class Admitted:
    """What is known of the run before training."""

    card: RunCard
    certificate: HeldCertificate
    files: RunFiles
    addresses: list[str]


class Newcomer:
    """One peer on its way into a run."""

    def __init__(
        self,
        invite: Invite,
        client: CoordinatorClient,
        identity: PeerIdentity,
        folder: PeerFolder,
        screen: Screen,
        *,
        reduce_only: bool = False,
        cache_bytes: int = 0,
        moments: MomentsKind = "fp32",
    ) -> None:
        self._invite, self._client, self._identity = invite, client, identity
        self._folder, self._screen = folder, screen
        self._reduce_only, self._cache_bytes, self._moments = reduce_only, cache_bytes, moments
        self._agreed = False

    def admit(self) -> Admitted | RunOver | None:
        """Become a member and have all files here; None when the owner does not agree to the terms.

        Raises:
            PotluckError: what waiting does not help against: a wrong invite, a refusal, a full disk.
        """
        self._screen.step("asking-coordinator")
        backoff = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        while True:
            try:
                return self._ask()
            except NetworkError as error:
                admitted = self._from_disk() if isinstance(error, CoordinatorAway) else None
                if admitted is not None:
                    self._screen.step("coordinator-away")
                    return admitted
                self._tell(error)
            time.sleep(backoff.failed())

    def _tell(self, error: NetworkError) -> None:
        if isinstance(error, ClockWrong):
            tell_clock(self._screen.problem, error.offset_s)
        else:
            self._screen.problem("coordinator-needed", reason=error.message)

    def _ask(self) -> Admitted | RunOver | None:
        description = self._client.get_run()
        card = description.card
        known = self._agreed or self._folder.read("run-card.json") is not None
        rounds = card.spec.run.rounds
        is_last = 0 < rounds <= description.round  # who has the last state hands it in, if that is still wanted
        if description.finished or (is_last and not is_kept(self._folder.path, rounds)):
            return RunOver(card, description.round, known)
        if not known and not self._screen.agree(self._terms(description)):
            return None
        self._agreed = True
        if not self._reduce_only:  # before gigabytes are fetched in vain
            eight_bit.check_choice(card.spec, self._moments)
            if card.spec.method.base == "nf4":
                nf4.check_installed()
        self._folder.write("root.pem", description.root_public_pem)
        enrollment = self._client.enroll(self._identity)
        self._folder.write("certificate", enrollment.certificate.encode())
        if self._reduce_only and not enrollment.reducer:
            raise RefusedError(
                "this invite is not for reducing only",
                "ask the host for the reducers' invite, or join without --reduce-only",
            )
        self._screen.step("fetching")
        files = self._client.fetch_run_files(
            enrollment.certificate, self._folder.path, self._screen.fetching, to_train=not self._reduce_only
        )
        self._folder.write("run-card.json", description.card_bytes)
        if self._client.clock.is_wrong:
            tell_clock(self._screen.problem, self._client.clock.offset_s)
        held = self._held(enrollment.certificate, enrollment.expires)
        return Admitted(card, held, files, list(enrollment.swarm_addresses) + self._folder.read_addresses())

    def _terms(self, description: RunDescription) -> JoinTerms:
        try:
            status = self._client.status()
        except (NetworkError, FormatError) as error:  # estimates want it, nothing else does
            logger.info("the coordinator does not say how the run stands: %s", error.message)
            status = None
        return terms_of(
            self._invite,
            description,
            status,
            self._folder.path,
            reduce_only=self._reduce_only,
            cache_bytes=self._cache_bytes,
            moments=self._moments,
        )

    # ---- while the coordinator is away -------------------------------------------------------------------------------

    def _from_disk(self) -> Admitted | None:
        """What an earlier start has left; None when it is not all there and whole."""
        root = self._read("root.pem", self._root)
        card = self._read("run-card.json", lambda data: RunCard.open(data, root)) if root else None
        if card is None:
            return None
        held, files = self._read("certificate", lambda data: self._check(data, card)), self._files(card)
        if held is None or files is None:
            return None
        return Admitted(card, held, files, self._folder.read_addresses())

    def _root(self, data: bytes) -> ec.EllipticCurvePublicKey:
        root = load_public_pem(data)
        if fingerprint(root) != self._invite.root:
            raise FormatError("not the root key that the invite names")
        return root

    def _check(self, data: bytes, card: RunCard) -> HeldCertificate:
        token = data.decode(errors="replace")
        member = certificates.check(token, card.member_key, run=card.run)
        if member.peer_id != self._identity.peer_id:
            raise FormatError("the certificate is another peer's")
        if self._reduce_only and not member.reducer:
            raise FormatError("it does not say that this peer is trusted to reduce")
        return self._held(token, member.expires)

    def _held(self, token: str, expires: float) -> HeldCertificate:
        return HeldCertificate(self._identity, token, expires, reducer=self._reduce_only)

    def _read(self, name: str, parse: Callable[[bytes], T]) -> T | None:
        """A file of the run folder; None when it is not there or does not hold: the coordinator gives a new one."""
        data = self._folder.read(name)
        if data is None:
            return None
        try:
            return parse(data)
        except (FormatError, RefusedError) as error:
            logger.warning("%s cannot be used: %s; the coordinator is needed for a new one", name, error.message)
            return None

    def _files(self, card: RunCard) -> RunFiles | None:
        """The run's files, if all of them are what the card pins."""
        path, spec = self._folder.path, card.spec
        base = path / "base-model" if spec.method.kind == "lora" and not self._reduce_only else None
        files = RunFiles(path / "step-000000", base, data_path(path, spec))
        try:
            whole = is_genesis(files.genesis, card, self._invite.root)
            if not self._reduce_only:
                whole = whole and is_complete(files.data, spec.data.digest, spec.data.size_bytes)
            whole = whole and (base is None or tree_digest(hash_folder(base)) == spec.model.digest)
        except (InputError, RefusedError, OSError) as error:
            logger.info("what is on disk cannot be used: %s", error)
            return None
        return files if whole else None
