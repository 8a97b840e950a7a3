"""What this peer needs to show of its newest work, where claims are drawn and replayed; and what it goes on from.

audit/round-000012-<claim>.json      a claim, and whether it is known to be part of its round's agreement
audit/update-<root>.bin              an update, as it travelled, of a claim or of the one before it
audit/own-<digest>.safetensors       an own state (`protocol.own_state`) that a claim began with or led to

Kept are the newest, until the coordinator has drawn and does not want them; one whose round went on without this peer
may have been agreed on all the same. The base that the work started from is made of what `kept_states` has.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from peer.disk.peer_folder import PeerFolder, seal, unseal
from peer.training.codecs.codec import EncodedUpdate, chunk_sizes, codec
from peer.training.own_state import OwnState
from peer.training.replay import Before, Revealed
from peer.training.reveal import Sent, as_sent
from peer.training.state import SharedState
from protocol import canonical
from protocol.digests import Digest
from protocol.disk import write_file
from protocol.errors import FormatError, InputError, PotluckError
from protocol.signed import Signed, stored_signed
from protocol.statements import Claim, Start, Trajectory, UpdateDigest

logger = logging.getLogger(__name__)

KEPT = 16  # claims; so many rounds the coordinator may be away
_MAX_NOTE_BYTES = 1 << 20
_NAME = re.compile(r"round-(\d{6,10})-([0-9a-f]{16})\.json")


def _update_name(update: UpdateDigest) -> str:
    return f"update-{update.root}.bin"


@dataclass(frozen=True)
class KeptClaim:
    """A claim that is kept."""

    name: str  # of its files
    claim: Signed[Claim]
    agreed: bool

    @property
    def round(self) -> int:
        return self.claim.value.round

    @property
    def trajectory(self) -> Trajectory:
        found = self.claim.value.trajectory
        assert found is not None, "others are not kept"
        return found


class ShownWork:
    """The folder `audit` of one run's folder.

    Args:
        load_state: the agreed state of a digest. Raises: InputError: it is not kept any more.
    """

    def __init__(self, folder: PeerFolder, load_state: Callable[[str], SharedState]) -> None:
        self._folder, self._load_state = folder, load_state
        self._path = folder.path / "audit"
        self._lock = threading.RLock()  # the swarm writes, the link clears away

    def keep(self, claim: Signed[Claim], own: OwnState, update: EncodedUpdate) -> None:
        """Write down what a claim stands for, before it is told. Raises: InputError: the disk is full."""
        name = f"round-{claim.value.round:06d}-{claim.digest[:16]}"
        with self._lock:
            own.save(self._own(own.digest))
            place = self._folder.place(f"audit/{_update_name(update.digest)}")
            write_file(place, b"".join(update.chunks), private=True)
            self._write(name, claim.data, agreed=False)
            self._drop(self.notes()[:-KEPT])

    def agreed(self, claim: Digest) -> None:
        """This claim is part of its round's agreement. Raises: InputError: the disk is full."""
        with self._lock:
            for note in self.notes():
                if note.claim.digest == claim and not note.agreed:
                    self._write(note.name, note.claim.data, agreed=True)

    def standing(self) -> Start | None:
        """Where the newest claim ended that is known to be agreed; None: there is none."""
        ends = (Start(round=note.round, own=note.trajectory.end) for note in reversed(self.notes()) if note.agreed)
        return next(ends, None)

    def load_own(self, digest: Digest) -> OwnState | None:
        """An own state that is kept; None: it is not, or is damaged."""
        try:
            return OwnState.load(self._own(digest), digest)
        except (InputError, FormatError) as error:
            logger.warning("%s; this peer begins anew, with nothing of its own", error.message)
            return None

    def drawn(self, until: int, wanted: Collection[Digest]) -> None:
        """The coordinator has drawn up to a round, and wants these: the others need not be shown any more."""
        with self._lock:
            notes = self.notes()
            newest = next((note for note in reversed(notes) if note.agreed), None)  # from which this peer goes on
            past = [note for note in notes if note.round <= until and note is not newest]
            if old := [note for note in past if note.claim.digest not in wanted]:
                self._drop(old)

    def to_send(self, claim: Digest) -> Sent:
        """What is shown of a claim, as it is sent. Raises: as `reveal`."""
        return as_sent(self.reveal(claim))

    def reveal(self, claim: Digest) -> Revealed:
        """All that is shown of a claim. Raises: InputError, FormatError: it is not kept any more, or damaged."""
        note = next((note for note in self.notes() if note.claim.digest == claim), None)
        if note is None:
            raise InputError("what this peer did for a claim that is to be replayed is not kept any more")
        value, start, end = note.claim.value, note.trajectory.start, note.trajectory.end
        jump = start.jump if start is not None else None
        return Revealed(
            value,
            note.claim.by,
            self._load_state(value.base),
            OwnState.load(self._own(start.own), start.own) if start is not None else None,
            OwnState.load(self._own(end), end),
            self._load_update(value.update),
            Before(self._load_state(jump.base), self._load_update(jump.update)) if jump is not None else None,
        )

    def _load_update(self, named: UpdateDigest) -> EncodedUpdate:
        try:
            data = (self._path / _update_name(named)).read_bytes()
        except OSError as error:
            raise InputError(f"an update that this peer has made cannot be read: {error.strerror}") from error
        chunks, coder = list[bytes](), codec(named.codec)
        for values in chunk_sizes(named.values, named.chunk_values):
            size = coder.encoded_bytes(values)
            chunks, data = [*chunks, data[:size]], data[size:]
        return EncodedUpdate(named.codec, named.values, named.chunk_values, tuple(chunks))

    def notes(self) -> list[KeptClaim]:
        """The oldest first."""
        names = sorted(path.name for path in self._path.glob("round-*.json") if _NAME.fullmatch(path.name))
        return sorted(filter(None, map(self._read, names)), key=lambda note: note.round)

    # ---- files -------------------------------------------------------------------------------------------------------

    def _own(self, digest: Digest) -> Path:
        return self._path / f"own-{digest}.safetensors"

    def _write(self, name: str, claim: bytes, *, agreed: bool) -> None:
        value = {"agreed": agreed, "claim": claim.decode()}
        self._folder.write(f"audit/{name}.json", seal(canonical.dumps(value)))

    def _read(self, name: str) -> KeptClaim | None:
        try:
            data = self._folder.read(f"audit/{name}", _MAX_NOTE_BYTES)
            if data is None:
                return None
            value = canonical.loads(unseal(data), max_bytes=_MAX_NOTE_BYTES)
            claim = stored_signed(Claim, value["claim"].encode())
            return KeptClaim(name.removesuffix(".json"), claim, bool(value["agreed"]))
        except (PotluckError, KeyError, TypeError, AttributeError) as error:
            logger.warning("%s is damaged: %s", name, error)
            return None

    def _drop(self, old: Collection[KeptClaim]) -> None:
        for note in old:
            (self._path / f"{note.name}.json").unlink(missing_ok=True)
        names = set[str]()
        for note in self.notes():
            names |= {f"{note.name}.json", _update_name(note.claim.value.update), self._own(note.trajectory.end).name}
            if (start := note.trajectory.start) is not None:
                names |= {self._own(start.own).name, *([_update_name(start.jump.update)] if start.jump else [])}
        for path in self._path.iterdir():
            if path.name not in names:
                path.unlink(missing_ok=True)
