"""The identity of a home: exported, brought back, replaced. What was there before is kept beside it.

<home>/identity                the key that the peers of this home have
<home>/identity.<8 letters>    one that was here before, named by the end of its peer id
<home>/exported.json           {"<peer id>":"2026-12-02"}: of which there is a copy elsewhere, and since when

    >>> import tempfile
    >>> own = OwnIdentity(Path(tempfile.mkdtemp()))
    >>> me = own.replace(PeerIdentity.generate())
    >>> own.load().peer_id == me.identity.peer_id, own.has_copy(me.identity.peer_id)
    (True, False)
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from peer.disk.local_peers import find_peers
from protocol import canonical
from protocol.disk import write_file
from protocol.errors import FormatError, InputError, UnsupportedError
from protocol.identity_export import MAX_EXPORT_BYTES, IdentityExport, Passphrase, is_export, seal, unseal
from protocol.keys import PeerIdentity

MAX_COPIES_BYTES = 1 << 16
MAX_KEPT_BYTES = 1 << 20  # of a damaged identity, that is kept beside the new one


@dataclass(frozen=True)
class Replaced:
    """What came of putting an identity in place."""

    identity: PeerIdentity
    kept: Path | None  # where the one that was here lies now; None: there was none, or the same


class OwnIdentity:
    """The identity of one home."""

    def __init__(self, home: Path) -> None:
        self._home, self.path = home, home / "identity"

    def load(self) -> PeerIdentity:
        """Read it. Raises: InputError: there is none, or it is damaged."""
        if not self.path.is_file():
            raise InputError(f"{self.path}: there is no identity yet", "join a run first")
        return PeerIdentity.load_or_create(self.path)

    def replace(self, identity: PeerIdentity) -> Replaced:
        """Put an identity in place. There is a whole one at every instant, and the one before is kept.

        Raises:
            InputError: a peer runs with the one that is here, or the folder cannot be written.
        """
        data, before = identity.to_bytes(), self._before()
        kept = None
        if before is not None and before != data:
            running = [peer for peer in find_peers(self._home) if peer.process is not None]
            if running:
                raise InputError(
                    f"{self._home}: a peer runs with the identity that is here", "stop it first: potluck leave"
                )
            kept = self._keep(before)
        if before != data:
            write_file(self.path, data, private=True)
        if PeerIdentity.from_bytes(self.path.read_bytes()).peer_id != identity.peer_id:
            raise InputError(f"{self.path}: the disk gives back another key than was written", "check the disk")
        return Replaced(identity, kept)

    # ---- under a passphrase ------------------------------------------------------------------------------------------

    def export(self, target: Path, passphrase: Passphrase, *, replace: bool = False) -> PeerIdentity:
        """Write it to a file, and see that the file opens.

        Args:
            replace: whether an earlier export of the same identity may go; nothing else may.

        Raises:
            InputError: there is no identity, something lies at `target`, or it cannot be written.
        """
        identity = self.load()
        if os.path.lexists(target):
            _check_may_go(target, identity, replace=replace)
        write_file(target, seal(identity, passphrase), private=True)
        if unseal(read_export(target), passphrase).peer_id != identity.peer_id:
            raise InputError(f"{target}: the disk gives back another key than was written", "check the disk")
        self.note_copy(identity.peer_id)
        return identity

    def check_place(self, export: IdentityExport, *, replace: bool) -> None:
        """Check that an export may be brought in, before anybody is asked for its passphrase.

        Raises:
            InputError: another identity is here.
        """
        before = self._before()
        if before is None or replace:
            return
        try:
            mine = PeerIdentity.from_bytes(before).peer_id
        except FormatError as error:
            raise InputError(f"{self.path}: is there, and damaged: {error.message}", _REPLACE) from error
        if mine != export.peer_id:
            raise InputError(f"{self.path}: another identity is here, {mine}", _REPLACE)

    def bring_in(self, data: bytes, passphrase: Passphrase, *, replace: bool = False) -> Replaced:
        """Put an exported identity in place.

        Args:
            data: of the export.
            replace: whether an identity that is here may make way.

        Raises:
            FormatError: no export, or a damaged one.
            RefusedError: the passphrase is another one.
            InputError: another identity is here, or a peer runs with it.
        """
        self.check_place(IdentityExport.parse(data), replace=replace)
        replaced = self.replace(unseal(data, passphrase))
        self.note_copy(replaced.identity.peer_id)
        return replaced

    # ---- whether there is a copy -------------------------------------------------------------------------------------

    def has_copy(self, peer_id: str) -> bool:
        """Whether this identity was exported, or came from such a file."""
        return peer_id in self._copies()

    def note_copy(self, peer_id: str) -> None:
        """Remember that there is a copy. Raises: InputError: the disk is full."""
        copies = self._copies() | {peer_id: time.strftime("%Y-%m-%d")}
        write_file(self._home / "exported.json", canonical.dumps(copies), private=True)

    def _copies(self) -> dict[str, object]:
        """What is remembered; nothing, where that cannot be read: the owner is asked again."""
        try:
            value = canonical.loads((self._home / "exported.json").read_bytes(), max_bytes=MAX_COPIES_BYTES)
        except (OSError, FormatError):
            return {}
        return value if isinstance(value, dict) else {}

    def _before(self) -> bytes | None:
        """The file that is here, whatever is in it."""
        try:
            with self.path.open("rb") as file:
                data = file.read(MAX_KEPT_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(f"{self.path}: {error.strerror}", "move it away") from error
        if len(data) > MAX_KEPT_BYTES:
            raise InputError(f"{self.path}: far too large for an identity", "move it away")
        return data

    def _keep(self, data: bytes) -> Path:
        """A copy of what was here, under a name that says whose it is, or that it is damaged."""
        try:
            name = f"identity.{PeerIdentity.from_bytes(data).peer_id[-8:]}"
        except FormatError:
            name = f"identity.damaged-{canonical.sha256_hex(data)[:8]}"
        write_file(self._home / name, data, private=True)
        return self._home / name


_REPLACE = "--replace puts the exported one in its place, and keeps the one that is here beside it"


def _check_may_go(target: Path, identity: PeerIdentity, *, replace: bool) -> None:
    """Raises: InputError: what lies there is not to be written over."""
    if not replace:
        raise InputError(f"{target}: is there already", "choose another name, or --replace")
    data = read_export(target)
    if not is_export(data):
        raise InputError(f"{target}: is there, and no export of an identity", "choose another name")
    try:
        theirs = IdentityExport.parse(data).peer_id
    except UnsupportedError as error:
        raise InputError(f"{target}: {error.message}", "choose another name") from error
    except FormatError:
        return  # a damaged one may go
    if theirs != identity.peer_id:
        raise InputError(f"{target}: the export of another identity, {theirs}", "choose another name")


def read_export(path: Path, hint: str = "give the file that `potluck identity export` wrote") -> bytes:
    """As much of a file as an export may have, and one byte. Raises: InputError: it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_EXPORT_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", hint) from error
