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
    outbox/ receipts/
"""

from __future__ import annotations

import fcntl
import json
import logging
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

from peer.round_rules import MAX_BOX_BYTES, BallotBox
from peer.swarm.head import Head
from peer.training.state import SharedState
from protocol import canonical
from protocol.claim import MAX_AGREEMENT_BYTES, Agreement
from protocol.disk import disk_error, write_file
from protocol.errors import FormatError, InputError, RefusedError
from protocol.run_card import RunCard

logger = logging.getLogger(__name__)

KEPT_STATES = 2  # the newest, and the newest of those that are published


class RunFolder:
    """One run's folder; locked while this process uses it."""

    def __init__(self, home: Path, run: str) -> None:
        self.path = home / "runs" / run[:16]
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = self._take_lock()

    def _take_lock(self) -> IO[str]:
        lock = (self.path / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise InputError(
                f"another peer of this run is using {self.path}", "stop it first, or give this one another --home"
            ) from error
        return lock

    def close(self) -> None:
        self._lock.close()

    # ---- small files -------------------------------------------------------------------------------------------------

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, whole or not at all. Raises: InputError: the disk is full."""
        write_file(self.path / name, data, private=True)

    def read(self, name: str, max_bytes: int = 1 << 20) -> bytes | None:
        """Read a small file; None when it is not there."""
        try:
            with (self.path / name).open("rb") as file:
                return file.read(max_bytes)
        except FileNotFoundError:
            return None

    def read_addresses(self) -> list[str]:
        data = self.read("addresses.json")
        value = canonical.loads(data, max_bytes=1 << 20) if data else []
        return [address for address in value if isinstance(address, str)] if isinstance(value, list) else []

    def write_addresses(self, addresses: list[str]) -> None:
        self.write("addresses.json", json.dumps(addresses).encode())

    def ballot_box(self) -> BallotBox:
        """The promises and votes that were on disk, and a box that keeps them there."""
        box = BallotBox(save=lambda data: self.write("ballots.json", data))
        data = self.read("ballots.json", MAX_BOX_BYTES)
        if data is not None:
            try:
                box.restore(data)
            except FormatError as error:
                raise InputError(
                    f"{self.path / 'ballots.json'}: {error.message}",
                    "move the file away; this peer then sits out the round in hand if it had voted in it",
                ) from error
        return box

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
        try:
            head.state.save(stem.with_suffix(".safetensors"))
        except (OSError, SafetensorError) as error:
            raise disk_error(stem, OSError(getattr(error, "errno", None), str(error))) from error
        value = {
            "agreement": head.agreement.to_json(),
            "history_tokens": head.history_tokens,
            "state": head.state.digest,
        }
        self.write(f"states/{stem.name}.json", canonical.dumps(value))
        saved = self._saved()
        to_publish = [path for path in saved if int(path.stem.partition("-")[2]) % publish_every == 0]
        for old in set(saved) - {*saved[-KEPT_STATES:], *to_publish[-KEPT_STATES:]}:
            old.unlink(missing_ok=True)
            old.with_suffix(".safetensors").unlink(missing_ok=True)

    def _saved(self) -> list[Path]:
        return sorted((self.path / "states").glob("round-*.json"))

    def saved_states(self) -> dict[str, Path]:
        """State digest -> file, of the states that are kept."""
        found = {}
        for path in self._saved():
            try:
                data = path.read_bytes()
            except FileNotFoundError:  # a newer one took its place meanwhile
                continue
            digest = canonical.loads(data, max_bytes=MAX_AGREEMENT_BYTES).get("state")
            if isinstance(digest, str):
                found[digest] = path.with_suffix(".safetensors")
        return found

    def resume(self, card: RunCard, genesis: SharedState) -> Head:
        """The newest state on disk that checks out, or the genesis."""
        for path in reversed(self._saved()):
            try:
                value = canonical.loads(path.read_bytes(), max_bytes=MAX_AGREEMENT_BYTES)
                agreement = Agreement.from_json(value["agreement"], run=card.run, membership_key=card.member_key)
                state = SharedState.load(path.with_suffix(".safetensors"))
                if state.digest != agreement.state or state.names_shapes != genesis.names_shapes:
                    raise InputError(f"{path}: the state is not the one that was agreed on")
                return Head(state, agreement, int(value["history_tokens"]))
            except (InputError, FormatError, RefusedError, KeyError, TypeError, ValueError) as error:
                logger.warning(
                    "cannot resume from %s: %s; using an older state, the rest comes from the others", path.name, error
                )
        return Head(genesis)
