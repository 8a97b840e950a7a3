"""A run's folder on the host: what lies where, the keys, and the lock that keeps a second host out. `host` opens it.

root.pem            P-256 root key, 0600: signs the run card and checkpoints. Keep a backup offline
coordinator.pub     its public half, PEM: what stock tools verify checkpoints with
ledger.key          Ed25519, 0600: signs ledger heads
membership.key      Ed25519, 0600: signs membership certificates
tls.key, tls.crt    P-256, self-signed for the name "potluck": the invite pins it
admission.code      0600: what a new member must know, part of the invite; not there when run.toml has its own
rendezvous.key      libp2p identity of the rendezvous
run.json            the pinned run spec
run-card.json       the run card, signed
base-model/         LoRA: what the adapter goes on; served to peers
licenses/           that came with the base model
ledger.db           the store
checkpoints/        step-000000 and later
incoming/           a state on its way to being published
invite.txt, status.json, metrics.jsonl, loss.png
lock                held while a host runs
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.disk import sync, write_file
from protocol.errors import InputError
from protocol.keys import RootKey, public_pem
from protocol.rpc import MAX_CODE_CHARS


class RunFolder:
    """Paths and keys of one run's folder; making one creates nothing but the folder.

    Raises:
        InputError: the folder cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.checkpoints.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}", "choose another folder with --folder") from error

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

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
            InputError: another host holds it.
        """
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
                raise InputError(
                    f"{self.path}: another host runs in this folder (process {holder})",
                    "stop it first, or choose another folder",
                ) from error
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def root_key(self) -> RootKey:
        """The root key, made when it is not there; its public half lies beside it. Raises: InputError."""
        key = RootKey.load_or_create(self.path / "root.pem")
        write_file(self.path / "coordinator.pub", public_pem(key.public_key))
        return key

    def ledger_key(self) -> Ed25519PrivateKey:
        """Raises: InputError: the file is there and holds no Ed25519 key."""
        return _ed25519(self.path / "ledger.key")

    def membership_key(self) -> Ed25519PrivateKey:
        """Raises: InputError: the file is there and holds no Ed25519 key."""
        return _ed25519(self.path / "membership.key")

    def admission_code(self) -> str:
        """The code that the invite holds, made when it is not there. Raises: InputError: the file holds none."""
        path = self.path / "admission.code"
        if not path.exists():
            write_file(path, f"{secrets.token_urlsafe(16)}\n".encode(), private=True)
        code = path.read_text(errors="replace").strip()
        if not 1 <= len(code) <= MAX_CODE_CHARS:
            raise InputError(
                f"{path}: expected a code of 1 to {MAX_CODE_CHARS} characters", "delete it: a new one is made"
            )
        return code


def _ed25519(path: Path) -> Ed25519PrivateKey:
    try:
        pem = path.read_bytes()
    except FileNotFoundError:
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_file(path, pem, private=True)
        return key
    hint = "restore it from a backup"
    try:
        loaded = serialization.load_pem_private_key(pem, password=None)
    except ValueError as error:
        raise InputError(f"{path}: not a PEM private key", hint) from error
    if not isinstance(loaded, Ed25519PrivateKey):
        raise InputError(f"{path}: expected an Ed25519 key", hint)
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
