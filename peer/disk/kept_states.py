"""The newest committed states, on a peer's disk: to go on from after a restart, and for the coordinator to ask for.

states/round-000020.safetensors    a whole state
states/round-000021.average        what led from the state before to this one, as it travelled
states/round-000021.json           its agreement; written last: what it speaks of is there
states/candidate.average           what led to the state that this peer is about to vote for, or has voted for

Each round must be on disk before the next one begins: a member that has voted in a round never works on an earlier one
again, so when all are killed at once, the run goes on only from states that are on disk. But a whole state is as large
as the model, and a round may take seconds. So only every so many rounds one is written; in between the averages are,
which lead from it to all later ones, for the outer step gives the same bits each time. What leads to a state is on disk
before its first vote, so that a state that may be agreed on is never gone when all are killed at once.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from peer.disk.peer_folder import PeerFolder, seal, unseal
from peer.disk.shown_work import KEPT
from peer.sync.averages import Average
from peer.sync.shelf import Head
from peer.training.state import SharedState
from protocol import canonical
from protocol.agreement import MAX_AGREEMENT_BYTES, Agreement
from protocol.disk import set_aside
from protocol.errors import FormatError, InputError, RefusedError, RoundAborted
from protocol.run_card import RunCard

logger = logging.getLogger(__name__)

KEPT_STATES = 2  # the newest, and the newest of those that are published
KEPT_BASES = KEPT + 2  # where work is audited: what the claims that may be replayed started from
MOST_REPLAYED = 32  # averages after a whole state: an outer step each, at the next start
WHOLE, AVERAGE, CANDIDATE = ".safetensors", ".average", "candidate"
_NOTE = re.compile(r"round-(\d{6,10})\.json")
_UNUSABLE = (InputError, RefusedError, RoundAborted, SafetensorError, KeyError, TypeError, ValueError, OSError)


def is_kept(run_folder: Path, round: int) -> bool:
    """Whether a run's folder says that it holds the state of a round; nothing is read."""
    return _file(run_folder / "states", round, ".json").is_file()


def _file(states: Path, round: int, suffix: str) -> Path:
    return states / f"round-{round:06d}{suffix}"


class KeptStates:
    """The folder `states` of one run's folder.

    Args:
        genesis: loads the state of round 0, which is kept elsewhere.
    """

    def __init__(self, folder: PeerFolder, card: RunCard, genesis: Callable[[], SharedState]) -> None:
        self._folder, self._card, self._genesis = folder, card, genesis
        self._path = folder.path / "states"
        self._kept = KEPT_BASES if card.spec.audit.share else KEPT_STATES  # the newest
        self._candidate = ""  # digest of the state that the candidate's file leads to
        self._newest = ""  # digest of the newest state that is kept; empty: none, or it is not known
        self._replayed, self._replayed_bytes = 0, 0  # averages that lead to it from a whole state

    def keep_candidate(self, state: SharedState, average: Average | None) -> None:
        """Write down what leads from the newest state to one that may be agreed on, in place of the candidate before.

        Raises:
            InputError: the disk is full, or the folder cannot be written.
        """
        self._drop_candidate()
        if average is not None:
            average.save(self._folder.place(f"states/{CANDIDATE}{AVERAGE}"))
        else:
            state.save(self._folder.place(f"states/{CANDIDATE}{WHOLE}"))
        self._candidate = state.digest

    def candidate(self, head: Head) -> SharedState | None:
        """The state that was about to be agreed on after this head; None: there is none, or it is damaged."""
        try:
            if (self._path / f"{CANDIDATE}{WHOLE}").is_file():
                state = SharedState.load(self._path / f"{CANDIDATE}{WHOLE}")
            elif (self._path / f"{CANDIDATE}{AVERAGE}").is_file():
                state = Average.load(self._path / f"{CANDIDATE}{AVERAGE}").applied_to(self._card.spec, head.state)
            else:
                return None
        except _UNUSABLE as error:
            logger.debug("the candidate: %s", error)
            return None
        return state if state.round == head.round + 1 else None

    def _drop_candidate(self) -> None:
        self._candidate = ""
        for suffix in (AVERAGE, WHOLE):
            (self._path / f"{CANDIDATE}{suffix}").unlink(missing_ok=True)

    def keep(self, head: Head, average: Average | None) -> None:
        """Write down a committed state; when this returns, a power cut does not take it away.

        Args:
            average: what led to it from the state before; None: that is not known.

        Raises:
            InputError: the disk is full, or the folder cannot be written.
        """
        assert head.agreement is not None
        if average is not None and not self._may_follow(head, average):
            average = None
        self._newest = ""  # until all is written
        kept = self._path / f"{CANDIDATE}{WHOLE if average is None else AVERAGE}"
        if head.digest == self._candidate and kept.is_file():
            kept.rename(self._place(head.round, WHOLE if average is None else AVERAGE))
        elif average is not None:
            average.save(self._place(head.round, AVERAGE))
        else:
            head.state.save(self._place(head.round, WHOLE))
        if average is not None:
            self._replayed, self._replayed_bytes = self._replayed + 1, self._replayed_bytes + average.size_bytes
        else:
            self._replayed = self._replayed_bytes = 0
        self._drop_candidate()
        self._file(head.round, WHOLE if average is not None else AVERAGE).unlink(missing_ok=True)  # another branch's
        value = {"agreement": head.agreement.to_json(), "state": head.digest}
        self._folder.write(f"states/{self._file(head.round, '.json').name}", seal(canonical.dumps(value)))
        self._newest = head.digest
        self._drop_old(head.round)

    def _may_follow(self, head: Head, average: Average) -> bool:
        """Whether this average is enough: it starts from what is kept, and replaying it costs less than it saves."""
        assert head.agreement is not None
        state_bytes = 4 * head.state.parameters.numel() * (1 + len(head.state.outer))
        few = self._replayed < MOST_REPLAYED and self._replayed_bytes + average.size_bytes <= state_bytes
        return few and head.agreement.base == self._newest

    def resume(self) -> Head:
        """The newest state that checks out, or the genesis; what does not check out is moved away."""
        self._clear()
        rounds = self._rounds()
        head = self._newest_whole(rounds) or Head(self._genesis())
        self._replayed = self._replayed_bytes = 0
        for round in [round for round in rounds if round > head.round]:
            try:
                head, average = self._after(head, round)
            except _UNUSABLE as error:
                self._give_up([later for later in rounds if later >= round], error)
                break
            self._replayed, self._replayed_bytes = self._replayed + 1, self._replayed_bytes + average.size_bytes
        self._newest = head.digest
        return head

    def offered(self) -> dict[str, int]:
        """State digest -> round, of the newest states and of those that the coordinator may ask for."""
        found = {}
        for round in self._needed(self._rounds()):
            try:
                found[str(self._read(round)["state"])] = round
            except _UNUSABLE as error:  # a newer one took its place meanwhile, or it was damaged
                logger.debug("round %d: %s", round, error)
        return found

    def load(self, digest: str) -> SharedState:
        """A state that is kept, or the genesis. Raises: InputError: it is not kept, or not any more."""
        try:
            last = next((round for round in reversed(self._rounds()) if self._read(round)["state"] == digest), None)
            if last is None and (genesis := self._genesis()).digest == digest:
                return genesis
            if last is None:
                raise FormatError("it is not kept")
            first = max((round for round in self._rounds() if round <= last and self._is_whole(round)), default=0)
            head = self._whole(first) if first else Head(self._genesis())
            for round in range(first + 1, last + 1):
                head, _ = self._after(head, round)
        except _UNUSABLE as error:
            raise InputError(f"state {digest[:12]}…: {error}", "newer ones are kept as they come") from error
        return head.state

    # ---- one round's files -------------------------------------------------------------------------------------------

    def _file(self, round: int, suffix: str) -> Path:
        return _file(self._path, round, suffix)

    def _place(self, round: int, suffix: str) -> Path:
        return self._folder.place(f"states/{self._file(round, suffix).name}")

    def _is_whole(self, round: int) -> bool:
        return self._file(round, WHOLE).is_file()

    def _rounds(self) -> list[int]:
        """Those of which something is said, ascending."""
        names = (_NOTE.fullmatch(path.name) for path in self._path.glob("round-*.json") if path.is_file())
        return sorted(int(name[1]) for name in names if name)

    def _read(self, round: int) -> dict[str, Any]:
        with self._file(round, ".json").open("rb") as file:
            data = unseal(file.read(MAX_AGREEMENT_BYTES + 4096))
        value = canonical.loads(data, max_bytes=MAX_AGREEMENT_BYTES + 2048)
        if not isinstance(value, dict):
            raise FormatError("expected an object")
        return value

    def _agreement(self, round: int) -> Agreement:
        value, card = self._read(round), self._card
        return Agreement.from_json(value["agreement"], run=card.run, membership_key=card.member_key)

    def _whole(self, round: int) -> Head:
        agreement, state = self._agreement(round), SharedState.load(self._file(round, WHOLE))
        if state.digest != agreement.state:
            raise InputError("the state is not the one that was agreed on")
        return Head(state, agreement)

    def _after(self, head: Head, round: int) -> tuple[Head, Average]:
        """The head that this round's average leads to, and the average."""
        agreement = self._agreement(round)
        if round != head.round + 1 or agreement.base != head.digest:
            raise InputError(f"the state before it is not kept, or is not that of round {head.round}")
        average = Average.load(self._file(round, AVERAGE))
        state = average.applied_to(self._card.spec, head.state)
        if state.digest != agreement.state:
            raise InputError("the average does not lead to the state that was agreed on")
        return Head(state, agreement), average

    # ---- many --------------------------------------------------------------------------------------------------------

    def _newest_whole(self, rounds: list[int]) -> Head | None:
        for round in [round for round in reversed(rounds) if self._is_whole(round)]:
            try:
                return self._whole(round)
            except _UNUSABLE as error:
                self._give_up([round], error)
        return None

    def _give_up(self, rounds: list[int], error: Exception) -> None:
        logger.warning(
            "cannot resume from round %d: %s; using an older state, the rest comes from the others", rounds[0], error
        )
        for round in rounds:
            for path in (self._file(round, suffix) for suffix in (".json", WHOLE, AVERAGE)):
                if path.exists():
                    set_aside(path, self._folder.path / "damaged")

    def _clear(self) -> None:
        """Take away what a kill or an accident has left: half-written files, states of which nothing is said."""
        noted = {self._file(round, "").name for round in self._rounds()}
        for path in self._path.iterdir() if self._path.is_dir() else ():
            if path.is_dir():
                self._folder.set_aside(f"states/{path.name}", "a folder, not a file")
            elif path.name.endswith(".new") or path.stem not in (*noted, CANDIDATE):
                path.unlink()

    def _needed(self, rounds: list[int], most: int = KEPT_STATES) -> list[int]:
        every = self._card.spec.publish.every_rounds
        to_publish = [round for round in rounds if round % every == 0]
        return sorted({*rounds[-most:], *to_publish[-KEPT_STATES:]})

    def _drop_old(self, newest: int) -> None:
        """Keep the newest states, the newest that the coordinator may ask for, and what leads to these."""
        rounds = self._rounds()
        oldest = min(self._needed([round for round in rounds if round <= newest], self._kept))
        first = max((round for round in rounds if round <= oldest and self._is_whole(round)), default=0)
        for round in rounds:
            if not first <= round <= newest:  # later ones are of a branch that is not the run's
                for suffix in (".json", AVERAGE, WHOLE):  # what is said of them first
                    self._file(round, suffix).unlink(missing_ok=True)
