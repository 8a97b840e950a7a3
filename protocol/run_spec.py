"""The run spec: what all peers of a run share, pinned by the SHA-256 of its canonical form.

A host writes run.toml (`coordinator.run_config`); here every path has become a digest.

    [run]       name, seed, rounds
    [model]     digest, name, license, parameters, trainable, untrained
    [data]      one file, or sources that were prepared: `protocol.data_spec`
    [method]    kind = "full" | "lora", rank, alpha, targets, base = "fp32" | "bf16" | "nf4"; as peft names them:
                use_rslora, use_dora, modules_to_save, layers_to_transform
    [sync]      method = "diloco" | "gradient", round_tokens, round_seconds (or "auto"), wire, fragments, overlap,
                min_peers, max_group, clip, aggregate, rules
    [inner]     that on each peer: optimizer = "adamw" | "schedule-free-adamw", lr, schedule, betas, weight_decay,
                clip_norm, micro_batch, batch
    [outer]     that of the shared state: lr, schedule, momentum, nesterov, betas, weight_decay, clip_norm
    [publish]   every_rounds, max_worse
    [credit]    hold_rounds: `protocol.credit_book`
    [audit]     share, first_rounds, reveal_rounds: `protocol.audit`

A schedule is a table, `{ kind = "constant" | "linear" | "cosine" | "wsd", warmup_rounds, decay_rounds, min_factor }`:
`protocol.schedule`.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import BaseModel, Field, Tag, ValidationError, model_validator

from protocol import canonical
from protocol.data_spec import AnyPinnedData
from protocol.digests import Digest
from protocol.errors import RunSpecError
from protocol.schedule import Rates, Schedule
from protocol.section import Positive, Section, Short

MAX_RUN_SPEC_BYTES = 64 * 1024
LEAST_HOLD = 2  # rounds, where claims are audited: they are drawn when the next one is committed


class RunSection(Section):
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]  # lower case, digits, dashes
    seed: int = Field(default=0, ge=0, le=2**53 - 1)  # of batches and of new LoRA weights
    rounds: int = Field(default=0, ge=0, le=10**9)  # stop after this many; 0: go on until the host stops


class Method(Section):
    kind: Literal["full", "lora"] = "full"
    rank: int = Field(default=16, ge=1, le=1024)  # lora
    alpha: float = Field(default=32.0, gt=0, le=65536)  # lora
    targets: tuple[Short, ...] = ()  # lora: module names; empty: all linear layers
    # lora: how the frozen base is held; nf4: in 4 bits (needs bitsandbytes)
    base: Literal["fp32", "bf16", "nf4"] = "fp32"
    use_rslora: bool = False  # lora: alpha counts for 1 / sqrt(rank) of it, not 1 / rank
    use_dora: bool = False  # lora: the length of each row of a weight is trained too
    modules_to_save: tuple[Short, ...] = ()  # lora: modules that are trained whole, beside the adapter
    layers_to_transform: tuple[Annotated[int, Field(ge=0, le=9999)], ...] = ()  # lora: only these, from 0; empty: all
    later: ClassVar[frozenset[str]] = frozenset(
        {"base", "use_rslora", "use_dora", "modules_to_save", "layers_to_transform"}
    )

    @model_validator(mode="after")
    def _a_base(self) -> Method:
        if self.base != "fp32" and self.kind != "lora":
            raise ValueError("base goes with kind lora: a full fine-tune changes the base")
        return self

    @model_validator(mode="after")
    def _of_adapters(self) -> Method:
        for name in ("use_rslora", "use_dora", "modules_to_save", "layers_to_transform"):
            if getattr(self, name) and self.kind != "lora":
                raise ValueError(f"{name} goes with kind lora")
        for name in ("use_dora", "modules_to_save"):
            if getattr(self, name) and self.base != "fp32":
                raise ValueError(
                    f"{name} and base {self.base} do not go together: what is trained starts from the base's own "
                    "values, and each member would hold them rounded"
                )
        for name in ("modules_to_save", "layers_to_transform"):
            if len(set(getattr(self, name))) != len(getattr(self, name)):
                raise ValueError(f"{name} names one twice")
        return self


class Sync(Section):
    method: Literal["diloco", "gradient"] = "diloco"
    round_tokens: int | None = Field(default=None, ge=1, le=2**53 - 1)  # the round ends when the swarm has this many
    round_seconds: Positive | Literal["auto"] | None = None  # or after this long; auto: by what the exchange takes
    wire: Literal["fp32", "fp16", "int8", "int4", "int2", "topk"] = "int4"  # how updates travel
    fragments: int = Field(
        default=1, ge=1, le=64
    )  # diloco: a round averages one of so many parts of the values, in turns
    min_peers: int = Field(default=1, ge=1, le=1024)  # do not start a round with fewer
    max_group: int = Field(default=64, ge=2, le=1024)  # at most this many average together
    overlap: bool = False  # diloco: work on for the next round while this one is averaged
    # a sender's part that is longer than so many times the median length of its group's is shortened to that; 0: never
    clip: float = Field(default=0.0, ge=0, le=1000)
    aggregate: Literal["mean", "centered", "trimmed"] = "mean"  # of the group, after the clip
    rules: Literal[1, 2, 3] = 1  # what may follow what, and what claims count for: `protocol.counting`; new runs have 3
    later: ClassVar[frozenset[str]] = frozenset({"overlap", "fragments", "clip", "aggregate", "rules"})

    @model_validator(mode="after")
    def _an_end(self) -> Sync:
        if self.round_tokens is None and self.round_seconds is None:
            raise ValueError("give round_tokens or round_seconds, or both (whichever comes first)")
        if not self.clip and (self.aggregate == "centered" or (self.aggregate, self.wire) == ("trimmed", "topk")):
            raise ValueError(f"aggregate {self.aggregate} with wire {self.wire} needs clip, such as 2")
        if self.overlap and self.method != "diloco":
            raise ValueError("overlap needs method diloco: a gradient is taken at the agreed state")
        if self.fragments > 1 and self.method != "diloco":
            raise ValueError("fragments need method diloco: what a gradient step leaves out is lost")
        return self

    def fragment(self, round: int, values: int) -> slice:
        """Which of so many trainable values the members average in this round: all, or `fragments` stretches in turns.

        >>> [Sync(round_tokens=1, fragments=3).fragment(round, 10) for round in (1, 2, 3)]
        [slice(3, 6, None), slice(6, 10, None), slice(0, 3, None)]
        """
        part = round % self.fragments
        return slice(values * part // self.fragments, values * (part + 1) // self.fragments)

    def fragment_values(self, round: int, values: int) -> int:
        """How many that are."""
        found = self.fragment(round, values)
        return int(found.stop - found.start)


class InnerOptimizer(Section):
    """On each peer (method diloco); micro_batch holds for both methods."""

    optimizer: Literal["adamw", "schedule-free-adamw"] = "adamw"  # the second averages its steps instead of a decay
    lr: Positive = 1e-4
    schedule: Schedule = Schedule()  # of lr
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = Field(default=0.0, ge=0, le=10)
    clip_norm: Positive | None = 1.0
    micro_batch: int = Field(default=8, ge=1, le=4096)  # most sequences per forward pass; each card takes what fits
    batch: int = Field(default=8, ge=1, le=1 << 20)  # sequences per local optimizer step; a multiple of micro_batch
    later: ClassVar[frozenset[str]] = frozenset({"optimizer", "schedule"})

    @model_validator(mode="after")
    def _multiple(self) -> InnerOptimizer:
        if self.batch % self.micro_batch:
            raise ValueError("batch must be a multiple of micro_batch")
        return self

    @model_validator(mode="after")
    def _schedule_free(self) -> InnerOptimizer:
        if self.optimizer == "schedule-free-adamw":
            if self.schedule.decays:
                raise ValueError(
                    "optimizer schedule-free-adamw averages instead of a decay; take schedule kind constant, which may "
                    "have a warm-up"
                )
            if self.betas[0] <= 0:
                raise ValueError("optimizer schedule-free-adamw needs betas with a first one above 0")
        return self


class OuterOptimizer(Section):
    """diloco: SGD on the averaged update, lr 1 and momentum 0 being plain averaging. gradient: AdamW."""

    lr: Positive = 1.0
    schedule: Schedule = Schedule()  # of lr
    momentum: float = Field(default=0.0, ge=0, lt=1)  # diloco
    nesterov: bool = False  # diloco
    betas: tuple[float, float] = (0.9, 0.99)  # gradient
    weight_decay: float = Field(default=0.0, ge=0, le=10)  # gradient
    clip_norm: Positive | None = 1.0  # gradient: of the averaged gradient
    later: ClassVar[frozenset[str]] = frozenset({"schedule"})


def check_rates(run: RunSection, sync: Sync, inner: InnerOptimizer, outer: OuterOptimizer) -> None:
    """Whether optimizers and schedules go with the run's length and method. Raises: ValueError: they do not."""
    if sync.method == "gradient" and (inner.optimizer != "adamw" or inner.schedule != Schedule()):
        raise ValueError("inner.optimizer and inner.schedule go with method diloco; give outer.schedule")
    for name, schedule in (("inner", inner.schedule), ("outer", outer.schedule)):
        try:
            schedule.check(run.rounds)
        except ValueError as error:
            raise ValueError(f"{name}.schedule: {error}") from error


class Publish(Section):
    every_rounds: int = Field(default=10, ge=1, le=10**9)
    max_worse: float = Field(default=0.1, ge=0, le=100)  # held-out loss; worse than the parent by more: not published


class Credit(Section):
    hold_rounds: int = Field(default=0, ge=0, le=100_000)  # from an agreed claim to its credit; 0: none is held


class Audit(Section):
    """Work that is replayed, drawn by lot."""

    share: float = Field(default=0.0, ge=0, le=1)  # of each member's claims; 0: none is, and claims need not show how
    first_rounds: int = Field(default=3, ge=0, le=1000)  # a member's first so many claims are always drawn
    # who was in so many later rounds has had the time to show what it did in one that was drawn
    reveal_rounds: int = Field(default=10, ge=1, le=100_000)


def check_audit(sync: Sync, credit: Credit, audit: Audit) -> None:
    """Whether audits go with the rest of a run. Raises: ValueError: they do not."""
    if not audit.share:
        return
    if credit.hold_rounds < LEAST_HOLD:
        raise ValueError(
            f"[audit] needs credit on hold until it is done: write hold_rounds = {LEAST_HOLD} or more under [credit]"
        )


class PinnedModel(Section):
    digest: Digest  # of the base model's files: see protocol.files.tree_digest
    name: Short  # what the host calls it: folder name, hub id@revision, or checkpoint payload digest
    license: Short
    parameters: int = Field(ge=1)  # in all
    trainable: int = Field(ge=1)  # that travel and are averaged
    # tensors of the state that stay as they are: buffers, towers for images; with a dot at the end all that begin so
    untrained: tuple[Short, ...] = ()
    later: ClassVar[frozenset[str]] = frozenset({"untrained"})


class RunSpec(Section):
    """What is pinned: no path, no address, nothing of the host's machine."""

    version: Literal[1] = 1
    run: RunSection
    model: PinnedModel
    data: AnyPinnedData
    method: Method
    sync: Sync
    inner: InnerOptimizer
    outer: OuterOptimizer
    publish: Publish
    credit: Credit = Credit()
    audit: Audit = Audit()
    later: ClassVar[frozenset[str]] = frozenset({"credit", "audit"})

    @model_validator(mode="after")
    def _rates_go_together(self) -> RunSpec:
        check_rates(self.run, self.sync, self.inner, self.outer)
        check_audit(self.sync, self.credit, self.audit)
        return self

    def rates(self, round: int) -> Rates:
        """The learning rates of a round, counted from 1; the same float64 on every machine (`protocol.schedule`)."""
        inner = self.inner.lr * self.inner.schedule.factor(round, self.run.rounds)
        outer = self.outer.lr * self.outer.schedule.factor(round, self.run.rounds)
        return Rates(inner if self.sync.method == "diloco" else None, outer)

    def to_bytes(self) -> bytes:
        return canonical.dumps(self.model_dump(mode="json"))

    @property
    def digest(self) -> str:
        """The run digest."""
        return canonical.sha256_hex(self.to_bytes())

    @classmethod
    def from_bytes(cls, data: bytes) -> RunSpec:
        """Read a pinned spec.

        Raises:
            RunSpecError: not one, or not in canonical form.
        """
        value = canonical.loads(data, max_bytes=MAX_RUN_SPEC_BYTES)
        spec = validated(cls, value, "the run spec")
        if spec.to_bytes() != data:
            raise RunSpecError("the run spec is not in canonical form, or was written by another version of Potluck")
        return spec


def validated(model: type[Any], value: Any, where: str, context: Any = None) -> Any:
    """A value from outside as a model.

    Args:
        where: it comes from; messages begin with that.

    Raises:
        RunSpecError: an unknown key (the nearest known one is named), or a wrong value.
    """
    try:
        return model.model_validate(value, context=context)
    except ValidationError as error:
        first = error.errors()[0]
        path = [str(step) for step in first["loc"]]
        key = ".".join(step for step in path if not step.startswith("["))  # what form of a value it was read as
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(path[-1], _keys_beside(model, path[:-1]), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(_keys_beside(model, path[:-1]))}"
            raise RunSpecError(f"{where}: unknown key {key!r}", hint) from error
        got = "" if first["type"] == "missing" else f" (got {str(first['input'])[:80]!r})"
        if not key:  # of several keys together
            raise RunSpecError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from error
        raise RunSpecError(f"{where}: {key}: {first['msg'].removeprefix('Value error, ')}{got}") from error


def _keys_beside(model: type[BaseModel], path: list[str]) -> list[str]:
    kind: Any = model
    for step in path:
        kind = _within(kind, step)
    return list(_plain(kind).model_fields)


def _within(kind: Any, step: str) -> Any:
    """The type of a field of a model, of an item of a tuple, or of one of the forms that a value may have."""
    kind = _plain(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind.model_fields[step].annotation
    if step.isdecimal():
        return get_args(kind)[0]
    return next(form for form in get_args(kind) if Tag(step) in getattr(form, "__metadata__", ()))


def _plain(kind: Any) -> Any:
    """Without what is said beside a type, and without None where that is the only other choice."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    others = [item for item in get_args(kind) if item is not type(None)]
    return _plain(others[0]) if type(None) in get_args(kind) and len(others) == 1 else kind
