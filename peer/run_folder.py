"""What a peer keeps on disk for one run, so that it comes back after a restart where it left off.

<home>/identity                      the Ed25519 key, shared by all runs
<home>/runs/<run digest, 16 hex>/
    run-card.json root.pem           as the coordinator gave them, checked against the invite
    certificate                      the newest membership certificate
    addresses.json                   where other members were last seen
    step-000000/ base-model/ data/   fetched by digest
    states/round-000020.safetensors  the newest committed states, and the newest that the coordinator may ask for
    states/round-000020.json         its agreement
    ballots.json                     promises and votes of the round in hand
    rounds.jsonl                     the newest rounds, for the owner
    optimizer.safetensors            what the inner optimizer remembers
    micro-batch.json                 how many sequences a pass takes on this card
    outbox/ receipts/
    lock                             held while a peer uses the folder; says which process
    damaged/                         what could not be read, kept for whoever wants to look
"""

from __future__ import annotations

import json
import logging
import re
import time
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from peer.round_log import RoundLog
from peer.round_rules import MAX_BOX_BYTES, BallotBox
from peer.run_lock import RunLock
from peer.swarm.head import Head
from peer.training.state import SharedState
from protocol import canonical
from protocol.canonical import sha256_hex
from protocol.claim import MAX_AGREEMENT_BYTES, Agreement
from protocol.disk import disk_error, set_aside, write_file
from protocol.errors import FormatError, InputError, RefusedError
from protocol.run_card import RunCard

logger = logging.getLogger(__name__)

WARN_AGAIN_S = 60.0
_STATE_NAME = re.compile(r"round-(\d{6,10})\.json")
_SEAL_BYTES = len(b'{"sha256":"","value":') + 64
KEPT_STATES = 2  # the newest, and the newest of those that are published


class RunFolder:
    """One run's folder; locked while this process uses it."""

    def __init__(self, home: Path, run: str) -> None:
        self.path = home / "runs" / run[:16]
        self._warned = -WARN_AGAIN_S
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(self.path, error) from error
        self._make_way("lock")
        self._lock = RunLock(self.path / "lock")

    def close(self) -> None:
        self._lock.close()

    def set_aside(self, name: str, why: str) -> None:
        """Move a damaged file into `damaged/`. Raises: InputError: it cannot be moved."""
        kept = set_aside(self.path / name, self.path / "damaged")
        logger.warning("%s is damaged (%s); it is kept as %s", name, why, kept)

    def _make_way(self, name: str) -> None:
        if (self.path / name).is_dir():
            self.set_aside(name, "a folder, not a file")

    # ---- small files -------------------------------------------------------------------------------------------------

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, whole or not at all. Raises: InputError: the disk is full."""
        self._make_way(name)
        write_file(self.path / name, data, private=True)

    def read(self, name: str, max_bytes: int = 1 << 20) -> bytes | None:
        """Read a small file; None when it is not there. Raises: InputError: it cannot be read."""
        self._make_way(name)
        try:
            with (self.path / name).open("rb") as file:
                return file.read(max_bytes)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(
                f"{self.path / name}: cannot be read: {error.strerror}", "check the disk, and the file's owner"
            ) from error

    def read_addresses(self) -> list[str]:
        data = self.read("addresses.json")
        try:
            value = canonical.loads(data, max_bytes=1 << 20) if data is not None else []
            if not isinstance(value, list):
                raise FormatError("expected a list")
        except FormatError as error:
            self.set_aside("addresses.json", error.message)
            return []
        return [address for address in value if isinstance(address, str)]

    def write_addresses(self, addresses: list[str]) -> None:
        self.write("addresses.json", json.dumps(addresses).encode())

    def ballot_box(self) -> BallotBox:
        """The promises and votes that were on disk, and a box that keeps them there."""
        path = self.path / "ballots.json"
        box = BallotBox(save=self._save_ballots)
        try:
            data = None if path.is_dir() else self.read(path.name, MAX_BOX_BYTES + 200)
            if path.is_dir():
                raise FormatError("a folder, not a file")
            if data is not None:
                box.restore(_unseal(data))
        except FormatError as error:
            raise InputError(
                f"{path} is damaged: {error.message}",
                "it says what this peer voted in the round in hand, so that it never votes twice. Once the others have "
                "made a round without it, or if there are no others, move the file away and start again",
            ) from error
        return box

    def _save_ballots(self, data: bytes) -> None:
        try:
            write_file(self.path / "ballots.json", _seal(data), private=True)
        except InputError as error:
            now = time.monotonic()
            if now - self._warned >= WARN_AGAIN_S:
                self._warned = now
                logger.warning("no vote can be kept, so this peer takes part in no round: %s", error.message)
            raise

    def round_log(self) -> RoundLog:
        """The rounds that its owner can read of."""
        return RoundLog(self.place("rounds.jsonl"))

    def place(self, name: str) -> Path:
        """Where a file of this name belongs; nothing else is there when this returns."""
        self._make_way(name)
        return self.path / name

    # ---- states ------------------------------------------------------------------------------------------------------

    def save_head(self, head: Head, publish_every: int) -> None:
        """Keep a committed state: to resume from, and for the coordinator to ask for.

        Args:
            publish_every: rounds between two states that are asked for; the newest of these are kept longer.

        Raises:
            InputError: the disk is full.
        """
        assert head.agreement is not None
        stem = self.path / "states" / f"round-{head.round:06d}"
        for suffix in (".safetensors", ".json"):
            self._make_way(f"states/{stem.name}{suffix}")
        try:
            head.state.save(stem.with_suffix(".safetensors"))
        except (OSError, SafetensorError) as error:
            raise disk_error(stem, _os_error(error)) from error
        value = {
            "agreement": head.agreement.to_json(),
            "history_tokens": head.history_tokens,
            "state": head.state.digest,
        }
        self.write(f"states/{stem.name}.json", _seal(canonical.dumps(value)))
        saved = self._saved()
        to_publish = [path for path in saved if int(path.stem.partition("-")[2]) % publish_every == 0]
        for old in set(saved) - {*saved[-KEPT_STATES:], *to_publish[-KEPT_STATES:]}:
            old.unlink(missing_ok=True)
            old.with_suffix(".safetensors").unlink(missing_ok=True)

    def _saved(self) -> list[Path]:
        """What is said of each state that is kept, oldest first."""
        found = (self.path / "states").glob("round-*.json")
        return sorted(path for path in found if _STATE_NAME.fullmatch(path.name) and path.is_file())

    def saved_states(self) -> dict[str, Path]:
        """State digest -> file, of the states that are kept."""
        found = {}
        for path in self._saved():
            try:
                found[str(_read_state_note(path)["state"])] = path.with_suffix(".safetensors")
            except (FormatError, KeyError, OSError) as error:  # a newer one took its place meanwhile, or it was damaged
                logger.debug("%s: %s", path.name, error)
        return found

    def resume(self, card: RunCard, genesis: SharedState) -> Head:
        """The newest state on disk that checks out, or the genesis; what does not check out is moved away."""
        self._clear_states()
        for path in reversed(self._saved()):
            try:
                value = _read_state_note(path)
                agreement = Agreement.from_json(value["agreement"], run=card.run, membership_key=card.member_key)
                state = SharedState.load(path.with_suffix(".safetensors"))
                if state.digest != agreement.state or state.names_shapes != genesis.names_shapes:
                    raise InputError("the state is not the one that was agreed on")
                return Head(state, agreement, int(value["history_tokens"]))
            except (InputError, RefusedError, KeyError, TypeError, ValueError, OSError) as error:
                logger.warning(
                    "cannot resume from %s: %s; using an older state, the rest comes from the others", path.stem, error
                )
                for name in (path.name, path.with_suffix(".safetensors").name):
                    if (self.path / "states" / name).exists():
                        set_aside(self.path / "states" / name, self.path / "damaged")
        return Head(genesis)

    def _clear_states(self) -> None:
        """Take away what a kill or an accident has left among the states: half-written files, states without a note."""
        folder, noted = self.path / "states", {path.stem for path in self._saved()}
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.is_dir():
                self.set_aside(f"states/{path.name}", "a folder, not a file")
            elif path.name.endswith(".new") or path.stem not in noted:
                path.unlink()


def _read_state_note(path: Path) -> dict[str, Any]:
    """What is said of a saved state. Raises: FormatError, OSError."""
    with path.open("rb") as file:
        value = canonical.loads(_unseal(file.read(MAX_AGREEMENT_BYTES + 4096)), max_bytes=MAX_AGREEMENT_BYTES + 2048)
    if not isinstance(value, dict):
        raise FormatError("expected an object")
    return value


def _seal(data: bytes) -> bytes:
    """JSON with its own SHA-256, so that a bit that flipped on the disk is noticed.

    >>> _unseal(_seal(b'{"a":1}')), _seal(b'{"a":1}')[:20]
    (b'{"a":1}', b'{"sha256":"015abd7f5')
    """
    return b'{"sha256":"' + sha256_hex(data).encode() + b'","value":' + data + b"}"


def _unseal(data: bytes) -> bytes:
    """What `_seal` was given. Raises: FormatError: these are not its bytes any more."""
    value = data[_SEAL_BYTES:-1]
    if data != _seal(value):
        raise FormatError("the bytes are not those that were written")
    return value


def _os_error(error: OSError | SafetensorError) -> OSError:
    """What safetensors says of a full disk, as the system says it."""
    if isinstance(error, OSError):
        return error
    found = re.search(r"os error (\d+)", str(error))
    return OSError(int(found[1]) if found else 0, str(error))
