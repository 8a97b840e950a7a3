"""The agreed state on its way from a member to the publisher: whom to ask for it, and its bytes checked as they come.

`Wanted` decides which one member is asked, and when the next one is. `StateInbox` writes what arrives to disk while it
hashes it; a state is kept only if its bytes have the roots that the members' digest stands for.

    incoming/<state digest>/    manifest.json, parameters.bin, outer.bin
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from protocol import merkle
from protocol.errors import FormatError, NetworkError, VerificationError
from protocol.state import STATE_CHUNK_BYTES, StateManifest

logger = logging.getLogger(__name__)

MOST_VECTORS = 3  # in a state: the parameters, and what an outer optimizer remembers
ASK_AGAIN_S = 30.0  # when the member that was asked has not begun to send
ASK_NEWCOMERS_S = 30.0  # so long only members that have credit are asked
MANIFEST, PARAMETERS, OUTER = "manifest.json", "parameters.bin", "outer.bin"
PART = ".part"  # after the name of a state that is on its way


@dataclass
class _Question:
    state: str
    peer_id: str
    since: float  # monotonic seconds
    sending: bool = False


class Wanted:
    """Which state the publisher wants, and which member is asked for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._choices: tuple[str, ...] = ()
        self._since: float | None = None  # the first offer of one of them, monotonic seconds
        self._question: _Question | None = None
        self._tried: set[tuple[str, str]] = set()  # (state, peer id) that did not deliver

    def want(self, choices: Sequence[str]) -> None:
        """Any one of these states will do, the first best. Empty: none."""
        with self._lock:
            if tuple(choices) != self._choices:
                self._choices, self._since = tuple(choices), None
                self._tried = {item for item in self._tried if item[0] in choices}
                if self._question is not None and self._question.state not in choices:
                    self._question = None

    def ask(self, peer_id: str, offers: Iterable[str], now: float, *, worked: bool = True) -> str:
        """The state that this member should upload now; empty: none.

        Args:
            worked: it has credit. Others are asked a while later: an identity costs nothing, and may send nothing.
        """
        offered = set(offers)
        with self._lock:
            if self._since is None and offered.intersection(self._choices):
                self._since = now
            if not worked and (self._since is None or now - self._since < ASK_NEWCOMERS_S):
                return ""
            question = self._question
            if question is not None:
                if question.sending:
                    return ""
                if question.peer_id == peer_id and question.state in offered and now - question.since <= ASK_AGAIN_S:
                    return question.state
                if now - question.since <= ASK_AGAIN_S:
                    return ""
                self._tried.add((question.state, question.peer_id))
                self._question = None
            mine = [state for state in self._choices if state in offered]
            fresh = [state for state in mine if (state, peer_id) not in self._tried]
            if not fresh:
                self._tried -= {(state, peer_id) for state in mine}  # next time round it may try again
                return ""
            self._question = _Question(fresh[0], peer_id, now)
            return fresh[0]

    def begin(self, peer_id: str, state: str) -> bool:
        """Whether this member may send this state now."""
        with self._lock:
            question = self._question
            if question is None or question.sending or (question.peer_id, question.state) != (peer_id, state):
                return False
            question.sending = True
            return True

    def end(self, peer_id: str, state: str, delivered: bool) -> None:
        """The upload is over."""
        with self._lock:
            self._question = None
            if delivered:
                self._choices = ()
            else:
                self._tried.add((state, peer_id))


class StateInbox:
    """Receives states into a folder.

    Args:
        folder: `incoming` in the run folder.
        genesis: whose tensors every state of the run has.
    """

    def __init__(self, folder: Path, genesis: StateManifest) -> None:
        self._folder = folder
        self._genesis = genesis

    @property
    def most_bytes(self) -> int:
        """Of the largest state that the run can have."""
        return MOST_VECTORS * self._genesis.parameter_bytes

    def path(self, state: str) -> Path:
        return self._folder / state

    def has(self, state: str) -> bool:
        """Whether this state is here, whole and checked."""
        return (self.path(state) / MANIFEST).is_file()

    def check_manifest(self, data: bytes, state: str, round_number: int) -> StateManifest:
        """Read the manifest of the state with digest `state`, after round `round_number`.

        Raises:
            FormatError: not a manifest.
            VerificationError: another state's, or its tensors are not the run's.
        """
        manifest = StateManifest.from_bytes(data)
        if manifest.digest != state:
            raise VerificationError(f"expected the manifest of state {state[:16]}…, got {manifest.digest[:16]}…")
        if manifest.round != round_number or manifest.tensors != self._genesis.tensors:
            raise VerificationError(f"state {state[:16]}… does not have the run's tensors, or is of another round")
        return manifest

    def receive(self, manifest: StateManifest, pieces: Iterable[bytes]) -> Path:
        """Write and check a state; returns its folder.

        Args:
            pieces: parameters, then outer vectors, cut anywhere.

        Raises:
            FormatError: too few or too many bytes.
            VerificationError: the bytes do not have the manifest's roots.
            NetworkError: the host's disk is full; the member may try again later.
        """
        try:
            return self._receive(manifest, pieces)
        except OSError as error:
            logger.error("state %s… cannot be kept: %s", manifest.digest[:16], error)
            raise NetworkError("the coordinator cannot keep the state now", "it will be asked for again") from error

    def _receive(self, manifest: StateManifest, pieces: Iterable[bytes]) -> Path:
        final = self.path(manifest.digest)
        partial = final.with_name(final.name + PART)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            source = _Cutter(pieces)
            for name, size, root in (
                (PARAMETERS, manifest.parameter_bytes, manifest.parameters),
                (OUTER, manifest.outer_bytes, manifest.outer),
            ):
                found = _write_hashed(partial / name, size, source.take)
                if found != root:
                    raise VerificationError(
                        f"state {manifest.digest[:16]}…: {name} has root {found[:16]}…, expected {root[:16]}…"
                    )
            source.expect_end()
            _write_synced(partial / MANIFEST, manifest.to_bytes())
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return final

    def drop(self, state: str) -> None:
        """Throw away one state."""
        shutil.rmtree(self.path(state), ignore_errors=True)

    def clear(self, keep: str | None = None) -> None:
        """Throw away all states but this one, which may be on its way, and what a killed process left half received."""
        if keep is None:
            shutil.rmtree(self._folder, ignore_errors=True)
            return
        for path in self._folder.iterdir():
            if path.name not in (keep, keep + PART):
                shutil.rmtree(path, ignore_errors=True)


class _Cutter:
    """Cuts a stream of pieces anew."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces: Iterator[bytes] = iter(pieces)
        self._rest = b""

    def take(self, size: int) -> bytes:
        """Exactly `size` bytes. Raises: FormatError: the stream ended."""
        parts, missing = [], size
        while missing:
            if not self._rest:
                self._rest = next(self._pieces, b"")
                if not self._rest:
                    raise FormatError(f"the state ended {missing} bytes before a chunk was whole")
            parts.append(self._rest[:missing])
            self._rest = self._rest[missing:]
            missing -= len(parts[-1])
        return b"".join(parts)

    def expect_end(self) -> None:
        """Raises: FormatError: there is more."""
        if self._rest or next(self._pieces, b""):
            raise FormatError("the state is longer than its manifest says")


def _write_hashed(path: Path, size_bytes: int, take: Callable[[int], bytes]) -> str:
    """Write `size_bytes` to `path`; returns the Merkle root of their chunks, hex."""
    leaves = []
    with path.open("wb") as file:
        for start in range(0, size_bytes, STATE_CHUNK_BYTES):
            chunk = take(min(STATE_CHUNK_BYTES, size_bytes - start))
            leaves.append(merkle.leaf_hash(chunk))
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return merkle.root(leaves).hex()


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
