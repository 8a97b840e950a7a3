"""A run's folder on the host: what lies where, the keys, and the lock that keeps a second host out. `host` opens it.

root.pem            P-256 root key, 0600: signs the run card and checkpoints. Keep a backup offline
coordinator.pub     its public half, PEM: what stock tools verify checkpoints with
ledger.key          Ed25519, 0600: signs ledger heads
membership.key      Ed25519, 0600: signs membership certificates
tls.key, tls.crt    P-256, self-signed for the name "potluck": the invite pins it
admission.code      0600: what a new member must know, part of the invite; not there when run.toml has its own
rendezvous.key      libp2p identity of the rendezvous
damaged/            keys that could not be read, and on which nothing hung yet: new ones were made
run.json            the pinned run spec
run-card.json       the run card, signed
base-model/         LoRA: what the adapter goes on; served to peers
licenses/           that came with the base model
ledger.db           the store
checkpoints/        step-000000 and later
incoming/           a state on its way to being published
invite.txt, status.json, metrics.jsonl, loss.png
lock                held while a host runs or data are prepared
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.file_lock import held
from protocol.checkpoint import step_name
from protocol.disk import disk_error, is_full, set_aside, sync, write_file
from protocol.errors import FormatError, InputError
from protocol.keys import KEY_HINT, PeerIdentity, RootKey, load_private_pem, public_pem
from protocol.rpc import MAX_CODE_CHARS

logger = logging.getLogger(__name__)

T = TypeVar("T")


class RunFolder:
    """Paths and keys of one run's folder; making one creates nothing but the folder.

    Raises:
        InputError: the folder cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.realpath(path))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.checkpoints.mkdir(exist_ok=True)
        except OSError as error:
            if is_full(error, path):
                raise disk_error(path, error) from error
            raise InputError(f"{path}: {error.strerror}", "choose another folder with --folder") from error

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def genesis(self) -> Path:
        """The checkpoint of round 0."""
        return self.checkpoints / step_name(0)

    @property
    def incoming(self) -> Path:
        return self.path / "incoming"

    @property
    def base_model(self) -> Path:
        return self.path / "base-model"

    @property
    def licenses(self) -> Path:
        return self.path / "licenses"

    @property
    def data(self) -> Path:
        """Prepared data."""
        return self.path / "data"

    @property
    def store(self) -> Path:
        return self.path / "ledger.db"

    @property
    def run_json(self) -> Path:
        return self.path / "run.json"

    @property
    def run_card(self) -> Path:
        return self.path / "run-card.json"

    @property
    def rendezvous_identity(self) -> Path:
        return self.path / "rendezvous.key"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder; the system lets go of it when the process ends, however it ends.

        Raises:
            InputError: another host, or a preparation of data, holds it; or the disk is full.
        """

        def taken(holder: str) -> InputError:
            return InputError(
                f"{self.path}: another host runs in this folder (process {holder}), or prepares data there",
                "stop it first, or choose another folder",
            )

        with held(self.path / "lock", taken):
            yield

    def renew_damaged(self) -> None:
        """Put keys that cannot be read aside, so that new ones are made: before a run has begun nothing hangs on them.

        Raises:
            InputError: one cannot be read for another reason, or the disk is full.
        """
        self._anew(self.root_key, "root.pem")
        self._anew(self.ledger_key, "ledger.key")
        self._anew(self.membership_key, "membership.key")
        if os.path.lexists(self.path / "lots.seed"):
            self._anew(self.lot_seed, "lots.seed")

    def rendezvous_key(self) -> PeerIdentity:
        """The rendezvous' identity, made when it is not there, or is damaged: peers are told anew who it is.

        Raises:
            InputError: it cannot be read or made.
        """
        return self._anew(lambda: PeerIdentity.load_or_create(self.rendezvous_identity), "rendezvous.key")

    def before_invite(self, load: Callable[[], T], *names: str) -> T:
        """Load what invites name; while there is no invite, what is damaged is made anew. Raises: as `load`."""
        return load() if os.path.lexists(self.path / "invite.txt") else self._anew(load, *names)

    def _anew(self, load: Callable[[], T], *names: str) -> T:
        """Load a key; put its files aside and make a new one when they are damaged."""
        try:
            return load()
        except FormatError as error:
            for name in names:
                if os.path.lexists(self.path / name):
                    kept = set_aside(self.path / name, self.path / "damaged")
                    logger.warning("%s; a new one is made, the old one is now %s", error.message, kept)
            return load()

    def root_key(self) -> RootKey:
        """The root key, made when it is not there; its public half lies beside it. Raises: InputError."""
        key = RootKey.load_or_create(self.path / "root.pem")
        write_file(self.path / "coordinator.pub", public_pem(key.public_key))
        return key

    def ledger_key(self) -> Ed25519PrivateKey:
        """Raises: FormatError: the file is there and holds no Ed25519 key; InputError: it cannot be read or made."""
        return _ed25519(self.path / "ledger.key")

    def membership_key(self) -> Ed25519PrivateKey:
        """Raises: FormatError: the file is there and holds no Ed25519 key; InputError: it cannot be read or made."""
        return _ed25519(self.path / "membership.key")

    def lot_seed(self) -> bytes:
        """What lots are drawn by, made when it is not there. Raises: FormatError, InputError: it is no such secret."""
        path = self.path / "lots.seed"
        try:
            if not path.exists():
                write_file(path, f"{secrets.token_hex(32)}\n".encode(), private=True)
            seed = bytes.fromhex(path.read_text(errors="replace").strip())
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}", KEY_HINT) from error
        except ValueError as error:
            raise FormatError(f"{path}: not what lots are drawn by: 64 hex digits", KEY_HINT) from error
        if len(seed) != 32:
            raise FormatError(f"{path}: not what lots are drawn by: 64 hex digits", KEY_HINT)
        return seed

    def admission_code(self) -> str:
        """The code that the invite holds, made when it is not there. Raises: FormatError: the file holds none."""
        path = self.path / "admission.code"
        try:
            code = path.read_text(errors="replace").strip()
        except FileNotFoundError:
            code = secrets.token_urlsafe(16)
            write_file(path, f"{code}\n".encode(), private=True)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}", "move it away: a new one is made") from error
        if not 1 <= len(code) <= MAX_CODE_CHARS:
            raise FormatError(
                f"{path}: expected a code of 1 to {MAX_CODE_CHARS} characters",
                "delete it: a new one is made, and volunteers then need a new invite",
            )
        return code


def _ed25519(path: Path) -> Ed25519PrivateKey:
    loaded = load_private_pem(path)
    if loaded is None:
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_file(path, pem, private=True)
        return key
    if not isinstance(loaded, Ed25519PrivateKey):
        raise FormatError(f"{path}: expected an Ed25519 key", KEY_HINT)
    return loaded


def sync_tree(folder: Path) -> None:
    """Make every file and directory under `folder` last."""
    for directory, _, names in os.walk(folder):
        for name in names:
            sync(Path(directory) / name)
        sync(Path(directory))


def move_into_place(source: Path, destination: Path) -> None:
    """Rename a folder, and make the rename last."""
    os.replace(source, destination)
    sync(destination.parent)
