"""The run spec: what all peers of a run share, pinned by the SHA-256 of its canonical form.

A host writes `run.toml` (`RunConfig`): the same fields, plus where the model and the data lie on the host's machine and
how the host listens. `RunConfig.pin` turns it into the `RunSpec`, in which every path has become a digest.

    preset = "lora" | "full" | "sync"; what it stands for: protocol.presets
    [run]                       name, seed, rounds
    [model]                     path | hub + revision | checkpoint + key; license
    [method]                    kind = "full" | "lora"; rank, alpha, targets, base = "fp32" | "nf4"
    [data]                      path, url, kind = "text" | "jsonl" | "chat"; text_field, license, sequence_length, packing,
                                held_out, held_out_sequences, template_date
    [sync]                      method = "diloco" | "gradient"; round_tokens, round_seconds (or "auto"), wire, fragments,
                                overlap, min_peers, max_group, clip
    [inner]                     the optimizer on each peer: lr, betas, weight_decay, clip_norm, micro_batch, batch
    [outer]                     the optimizer of the shared state: lr, momentum, nesterov, betas, weight_decay, clip_norm
    [publish]                   every_rounds, max_worse
    [host]                      not pinned: listen, swarm_listen, public_address, open, code, reducer_code, max_members,
                                joins_per_minute, certificate_hours
"""

from __future__ import annotations

import datetime
import difflib
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    model_serializer,
    model_validator,
)

from protocol import canonical, presets
from protocol.digests import Digest
from protocol.errors import RunSpecError

MAX_RUN_SPEC_BYTES = 64 * 1024
Positive = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
Short = Annotated[str, Field(min_length=1, max_length=200)]


def _day(value: Any) -> Any:
    if type(value) is datetime.date:  # TOML has dates of its own
        return value.isoformat()
    if not isinstance(value, str) or not re.fullmatch(r"[1-9]\d{3}-\d\d-\d\d", value, re.ASCII):
        raise ValueError("expected a day as YYYY-MM-DD")
    datetime.date.fromisoformat(value)
    return value


Day = Annotated[str, BeforeValidator(_day)]  # YYYY-MM-DD


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    later: ClassVar[frozenset[str]] = frozenset()  # fields that version 1 did not have at first

    @model_serializer(mode="wrap")
    def _without_later(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out later fields at their defaults, so that specs that were pinned before keep their digests."""
        fields = type(self).model_fields
        value: dict[str, Any] = handler(self)
        return {name: item for name, item in value.items() if name not in self.later or item != fields[name].default}


class RunSection(_Section):
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]  # lower case, digits, dashes
    seed: int = Field(default=0, ge=0, le=2**53 - 1)  # of batches and of new LoRA weights
    rounds: int = Field(default=0, ge=0, le=10**9)  # stop after this many; 0: go on until the host stops


class ModelSource(_Section):
    """Where the host takes the base model from: exactly one of path, hub, checkpoint."""

    path: str | None = None  # a transformers folder, relative to run.toml
    hub: str | None = None  # a model hub id, "owner/name"
    revision: str | None = None  # the hub commit; needed with hub
    checkpoint: str | None = None  # a checkpoint folder (step-…) of another run
    key: Digest | None = (
        None  # checkpoint: fingerprint of the root key that signed it, if no invite of that run was taken
    )
    license: Short  # SPDX id

    @model_validator(mode="after")
    def _one_source(self) -> ModelSource:
        if sum(source is not None for source in (self.path, self.hub, self.checkpoint)) != 1:
            raise ValueError("give exactly one of path, hub, checkpoint")
        if (self.hub is None) != (self.revision is None):
            raise ValueError("hub and revision go together: a run is pinned to one commit")
        return self


class DataSource(_Section):
    """The data as the host names them; the file's digest is pinned."""

    path: str  # the file, relative to run.toml
    url: str | None = None  # where peers may fetch the same bytes; else from the coordinator
    kind: Literal["text", "jsonl", "chat"] = "text"
    text_field: Short = "text"  # jsonl: the field that holds the text
    license: Short  # SPDX id
    sequence_length: int = Field(default=512, ge=8, le=1 << 20)  # tokens
    packing: bool = True  # join short records into full sequences
    held_out: float = Field(default=0.02, gt=0, lt=0.5)  # share of sequences kept for evaluation
    held_out_sequences: int = Field(default=256, ge=1, le=100_000)  # at most this many are evaluated
    rules: Literal[1, 2] = 1  # how the file becomes tokens: `peer.training.data`; new runs have 2
    template_date: Day | None = None  # chat: what templates are told the day is (UTC); default: that of the first start
    later: ClassVar[frozenset[str]] = frozenset({"rules", "template_date"})


class Method(_Section):
    kind: Literal["full", "lora"] = "full"
    rank: int = Field(default=16, ge=1, le=1024)  # lora
    alpha: float = Field(default=32.0, gt=0, le=65536)  # lora
    targets: tuple[Short, ...] = ()  # lora: module names; empty: all linear layers
    base: Literal["fp32", "nf4"] = "fp32"  # lora: how the frozen base is held; nf4: in 4 bits (needs bitsandbytes)
    later: ClassVar[frozenset[str]] = frozenset({"base"})

    @model_validator(mode="after")
    def _a_base(self) -> Method:
        if self.base != "fp32" and self.kind != "lora":
            raise ValueError("base goes with kind lora: a full fine-tune changes the base")
        return self


class Sync(_Section):
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
    rules: Literal[1, 2] = (
        1  # what may follow what, and what a claim counts for: `protocol.succession`; new runs have 2
    )
    later: ClassVar[frozenset[str]] = frozenset({"overlap", "fragments", "clip", "rules"})

    @model_validator(mode="after")
    def _an_end(self) -> Sync:
        if self.round_tokens is None and self.round_seconds is None:
            raise ValueError("give round_tokens or round_seconds, or both (whichever comes first)")
        if self.overlap and self.method != "diloco":
            raise ValueError("overlap needs method diloco: a gradient is taken at the agreed state")
        if self.fragments > 1 and self.method != "diloco":
            raise ValueError("fragments need method diloco: what a gradient step leaves out is lost")
        return self

    def fragment(self, round: int, values: int) -> slice:
        """Which of so many trainable values the members average in this round: all, or one of `fragments` stretches, in turns.

        >>> [Sync(round_tokens=1, fragments=3).fragment(round, 10) for round in (1, 2, 3)]
        [slice(3, 6, None), slice(6, 10, None), slice(0, 3, None)]
        """
        part = round % self.fragments
        return slice(values * part // self.fragments, values * (part + 1) // self.fragments)

    def fragment_values(self, round: int, values: int) -> int:
        """How many that are."""
        found = self.fragment(round, values)
        return int(found.stop - found.start)


class InnerOptimizer(_Section):
    """AdamW on each peer (method diloco); micro_batch holds for both methods."""

    lr: Positive = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = Field(default=0.0, ge=0, le=10)
    clip_norm: Positive | None = 1.0
    micro_batch: int = Field(default=8, ge=1, le=4096)  # most sequences per forward pass; each card takes what fits
    batch: int = Field(default=8, ge=1, le=1 << 20)  # sequences per local optimizer step; a multiple of micro_batch

    @model_validator(mode="after")
    def _multiple(self) -> InnerOptimizer:
        if self.batch % self.micro_batch:
            raise ValueError("batch must be a multiple of micro_batch")
        return self


class OuterOptimizer(_Section):
    """diloco: SGD on the averaged update, lr 1 and momentum 0 being plain averaging. gradient: AdamW."""

    lr: Positive = 1.0
    momentum: float = Field(default=0.0, ge=0, lt=1)  # diloco
    nesterov: bool = False  # diloco
    betas: tuple[float, float] = (0.9, 0.99)  # gradient
    weight_decay: float = Field(default=0.0, ge=0, le=10)  # gradient
    clip_norm: Positive | None = 1.0  # gradient: of the averaged gradient


class Publish(_Section):
    every_rounds: int = Field(default=10, ge=1, le=10**9)
    max_worse: float = Field(default=0.1, ge=0, le=100)  # held-out loss; worse than the parent by more: not published


class Host(_Section):
    """How this host listens; not part of what is pinned."""

    listen: str = "0.0.0.0:4700"  # gRPC
    swarm_listen: str = "0.0.0.0:4701"  # libp2p TCP, where peers meet
    public_address: str | None = None  # name or address that volunteers reach; default: the listening address
    open: bool = False  # whoever reaches this host may join; else only who has the invite, which holds a code
    code: str | None = Field(
        default=None, min_length=1, max_length=128
    )  # that code, if not one that is made up; wins over open
    reducer_code: str | None = Field(
        default=None, min_length=8, max_length=128
    )  # of the invite for `join --reduce-only`
    max_members: int = Field(default=10_000, ge=1, le=10**6)  # at a time; whoever has credit is always let in
    joins_per_minute: int = Field(default=20, ge=1, le=10_000)  # new members from one IPv4 address or IPv6 /64
    certificate_hours: float = Field(default=24.0, gt=0, le=24 * 30)


class PinnedModel(_Section):
    digest: Digest  # of the base model's files: see protocol.files.tree_digest
    name: Short  # what the host calls it: folder name, hub id@revision, or checkpoint payload digest
    license: Short
    parameters: int = Field(ge=1)  # in all
    trainable: int = Field(ge=1)  # that travel and are averaged


class PinnedData(_Section):
    digest: Digest  # SHA-256 of the file
    size_bytes: int = Field(ge=1)
    url: str | None = None
    kind: Literal["text", "jsonl", "chat"]
    text_field: Short
    license: Short
    sequence_length: int
    packing: bool
    held_out: float
    held_out_sequences: int
    rules: Literal[1, 2] = 1
    template_date: Day | None = None
    later: ClassVar[frozenset[str]] = DataSource.later

    @model_validator(mode="after")
    def _a_day_for_templates(self) -> PinnedData:
        if self.kind == "chat" and self.rules > 1 and self.template_date is None:
            raise ValueError("template_date is missing: without it chats would give other tokens each day")
        return self


class RunSpec(_Section):
    """What is pinned: no path, no address, nothing of the host's machine."""

    version: Literal[1] = 1
    run: RunSection
    model: PinnedModel
    data: PinnedData
    method: Method
    sync: Sync
    inner: InnerOptimizer
    outer: OuterOptimizer
    publish: Publish

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
        spec = _validate(cls, value, "the run spec")
        if spec.to_bytes() != data:
            raise RunSpecError("the run spec is not in canonical form, or was written by another version of Potluck")
        return spec


class RunConfig(_Section):
    """run.toml as a host writes it."""

    preset: Literal["lora", "full", "sync"] | None = None  # fills in what is not written: see protocol.presets
    run: RunSection
    model: ModelSource
    data: DataSource
    method: Method = Method()
    sync: Sync
    inner: InnerOptimizer = InnerOptimizer()
    outer: OuterOptimizer = OuterOptimizer()
    publish: Publish = Publish()
    host: Host = Host()

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, value: Any, info: ValidationInfo) -> Any:
        if info.context is not None:
            return presets.filled(value, info.context)
        return presets.dated(presets.filled(value, presets.NEW), datetime.datetime.now(datetime.UTC).date())

    @model_validator(mode="after")
    def _no_late_nesterov(self) -> RunConfig:
        if self.sync.overlap and self.outer.nesterov:
            raise ValueError(
                "sync.overlap and outer.nesterov do not go together: a step that looks ahead goes astray where it comes a "
                "round late; set one of them to false"
            )
        return self

    @classmethod
    def load(cls, path: Path, pinned: RunSpec | None = None) -> RunConfig:
        """Read and check a run.toml.

        Args:
            pinned: the spec of a run that goes on: what is new since it began, and not in run.toml, is as it was there.

        Raises:
            RunSpecError: unreadable, not TOML, an unknown key (the nearest known one is named), or a wrong value.
        """
        try:
            data = path.read_bytes()
        except OSError as error:
            raise RunSpecError(f"{path}: {error.strerror}", "give the path of a run.toml") from error
        if len(data) > MAX_RUN_SPEC_BYTES:
            raise RunSpecError(f"{path}: expected at most {MAX_RUN_SPEC_BYTES} bytes, got {len(data)}")
        try:
            value = tomllib.loads(data.decode())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RunSpecError(f"{path}: not TOML: {error}") from error
        return _validate(cls, value, str(path), presets.kept(pinned.model_dump(mode="json")) if pinned else None)

    def pin(
        self,
        *,
        model_digest: str,
        model_name: str,
        parameters: int,
        trainable: int,
        data_digest: str,
        data_size_bytes: int,
    ) -> RunSpec:
        """The run spec, once the host knows what its model and data are."""
        data = self.data.model_dump(exclude={"path"})
        return RunSpec(
            run=self.run,
            model=PinnedModel(
                digest=model_digest,
                name=model_name,
                license=self.model.license,
                parameters=parameters,
                trainable=trainable,
            ),
            data=PinnedData(digest=data_digest, size_bytes=data_size_bytes, **data),
            method=self.method,
            sync=self.sync,
            inner=self.inner,
            outer=self.outer,
            publish=self.publish,
        )


def _validate(model: type[Any], value: Any, where: str, context: Any = None) -> Any:
    try:
        return model.model_validate(value, context=context)
    except ValidationError as error:
        first = error.errors()[0]
        path = [str(step) for step in first["loc"]]
        key = ".".join(path)
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(path[-1], _keys_beside(model, path[:-1]), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(_keys_beside(model, path[:-1]))}"
            raise RunSpecError(f"{where}: unknown key {key!r}", hint) from error
        got = "" if first["type"] == "missing" else f" (got {str(first['input'])[:80]!r})"
        if not key:  # of several keys together
            raise RunSpecError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from error
        raise RunSpecError(f"{where}: {key}: {first['msg'].removeprefix('Value error, ')}{got}") from error


def _keys_beside(model: type[BaseModel], path: list[str]) -> list[str]:
    for step in path:
        model = model.model_fields[step].annotation  # type: ignore[assignment]
    return list(model.model_fields)
