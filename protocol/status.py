"""The run status: what a host shows of its run, as JSON. Nobody signs it and nothing is decided by it.

The coordinator writes it to `status.json` and answers `GetStatus` with it; `potluck status`, the host's display and
the demo read it.

    >>> status = RunStatus(name="shakespeare", run="a" * 64, rounds=20, ledger=LedgerStatus(size=0, root="b" * 64))
    >>> RunStatus.from_bytes(status.to_bytes()) == status
    True
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol import canonical
from protocol.digests import Digest
from protocol.errors import FormatError
from protocol.schedule import Rates

MAX_STATUS_BYTES = 8 << 20
ALARM_FROM = 2  # checkpoints held back in a row

Count = Annotated[int, Field(ge=0, le=2**53 - 1)]
Number = Annotated[float, Field(allow_inf_nan=False)]
PeerId = Annotated[str, Field(max_length=64)]


class _Fields(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")  # a newer coordinator may say more


class PeerStatus(_Fields):
    """One member, live or not, as the coordinator knows it."""

    peer_id: PeerId
    round: Count = 0  # the last one it said it had committed
    tokens_per_s: Number = 0.0  # by its own word; 0 when it is not live
    credit_tokens: Count = 0  # granted, in the ledger
    rounds: Count = 0  # in which it was granted credit
    pending_tokens: Count = 0  # agreed, and on hold
    banned: bool = False
    last_seen_s: Number | None = None  # seconds since its last announcement; None: not since the coordinator started


class EvaluatedRound(_Fields):
    """The held-out loss of the state after one round."""

    round: Count
    held_out_loss: Number  # nats per token
    tokens: Count  # agreed tokens of all rounds up to this one
    time: Number  # Unix seconds


class CheckpointStatus(_Fields):
    """One published checkpoint, or one that was held back."""

    round: Count
    folder: str = ""  # relative to the run folder; empty when held back
    payload: str = ""  # payload digest; empty when held back
    held_out_loss: Number | None = None
    published: bool = True
    reason: str = ""  # why it was held back


class Alarm(_Fields):
    """The run stays clearly worse than its last published checkpoint: one after the other was held back."""

    round: Count  # of the newest one
    held_out_loss: Number | None = None  # there; None: values that are not finite
    published_round: Count = 0  # the last one that was good enough
    published_loss: Number | None = None
    held_back: Count = 0  # how many since

    def __str__(self) -> str:
        return (
            f"the run is getting worse: held-out loss {loss_text(self.held_out_loss)} at round {self.round}, and "
            f"{loss_text(self.published_loss)} at round {self.published_round}, the last published; "
            f"{self.held_back} checkpoints were held back since"
        )


class LedgerStatus(_Fields):
    size: Count
    root: Digest


class RunStatus(_Fields):
    """A run at one moment."""

    name: str
    run: Digest  # run digest
    round: Count = 0  # the newest in the ledger
    rounds: Count = 0  # the run ends after this one; 0: open end
    tokens: Count = 0  # agreed, of all rounds
    tokens_per_s: Number = 0.0  # of the live members together, by their own word
    inner_lr: Number | None = None  # of the round that is being made, or was the last; None: the run has none
    outer_lr: Number | None = None  # likewise; None: an older coordinator
    peers: tuple[PeerStatus, ...] = ()
    evaluations: tuple[EvaluatedRound, ...] = ()
    checkpoints: tuple[CheckpointStatus, ...] = ()
    ledger: LedgerStatus
    parts_failed: tuple[str, ...] = ()  # threads of the coordinator that failed lately, and the kind of error
    finished: bool = False  # all rounds are in the ledger and the last checkpoint is decided
    alarm: Alarm | None = None

    @property
    def rates(self) -> Rates | None:
        """The learning rates now; None: not said."""
        return None if self.outer_lr is None else Rates(self.inner_lr, self.outer_lr)

    def to_bytes(self) -> bytes:
        return canonical.dumps(self.model_dump(mode="json"))

    @classmethod
    def from_bytes(cls, data: bytes) -> RunStatus:
        """Read a status that came from outside.

        Raises:
            FormatError: not a run status.
        """
        try:
            return cls.model_validate(canonical.loads(data, max_bytes=MAX_STATUS_BYTES))
        except ValidationError as error:
            first = error.errors()[0]
            raise FormatError(f"not a run status: {first['loc']}: {first['msg']}") from error


class Decided(Protocol):
    """A checkpoint that was published or held back, as far as `alarm_of` looks at it."""

    @property
    def round(self) -> int: ...
    @property
    def published(self) -> bool: ...
    @property
    def held_out_loss(self) -> float | None: ...


def alarm_of(checkpoints: Sequence[Decided]) -> Alarm | None:
    """Whether to be alarmed: the newest `ALARM_FROM` checkpoints were held back. One may be a bad moment.

    Args:
        checkpoints: all, by round.
    """
    good = max((index for index, item in enumerate(checkpoints) if item.published), default=-1)
    held_back = checkpoints[good + 1 :]
    if good < 0 or len(held_back) < ALARM_FROM:
        return None
    return Alarm(
        round=held_back[-1].round,
        held_out_loss=held_back[-1].held_out_loss,
        published_round=checkpoints[good].round,
        published_loss=checkpoints[good].held_out_loss,
        held_back=len(held_back),
    )


def loss_text(loss: float | None) -> str:
    """A held-out loss as people are told it."""
    return "NaN" if loss is None else f"{loss:.4f}"
