"""run.toml as a host writes it: the run spec's fields, where model and data lie on this machine, and how it listens.

`launch` reads it; `RunConfig.pin` turns it into the `RunSpec`, in which every path has become a digest.

    preset = "lora" | "full" | "sync"; what it stands for: coordinator.presets
    [run] [method] [sync] [inner] [outer] [publish] [credit] [audit]     as in protocol.run_spec; most have defaults
    [model]     path | hub + revision | checkpoint + key; license
    [data]      path; as in protocol.run_spec without digest and size_bytes
    [[data]]    instead, for data of any size: name, path | url | hub + revision, files, kind, text_field, license,
                weight, on_bad; with [sequences] as in protocol.run_spec
    [host]      not pinned: listen, swarm_listen, public_address, open, code, approve, reducer_code, max_members,
                joins_per_minute, certificate_hours, evaluate_on, evaluators, evaluation_minutes, audit_on,
                reveal_minutes
"""

from __future__ import annotations

import datetime
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, model_validator

from coordinator import presets
from protocol.data_manifest import MAX_SOURCES
from protocol.data_spec import DataRules, DataSetRules, PinnedData, PinnedDataSet, SequenceRules, SourceRules
from protocol.digests import Digest
from protocol.errors import RunSpecError
from protocol.ledger_entry import PeerId
from protocol.run_spec import (
    MAX_RUN_SPEC_BYTES,
    Audit,
    Credit,
    InnerOptimizer,
    Method,
    OuterOptimizer,
    PinnedModel,
    Publish,
    RunSection,
    RunSpec,
    Sync,
    check_audit,
    check_rates,
    validated,
)
from protocol.section import Section, Short


class ModelSource(Section):
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


class DataSource(DataRules):
    """The data as the host names them; the file's digest is pinned."""

    path: str  # the file, relative to run.toml


class SourceConfig(SourceRules):
    """One of several sources, `[[data]]`: exactly one of path, url, hub."""

    path: str | None = None  # a file, a folder or a pattern, relative to run.toml
    url: str | None = Field(default=None, pattern=r"^[a-z0-9+]+://", max_length=2000)  # that fsspec knows: https, s3
    hub: str | None = None  # a data set's id on a hub, "owner/name"
    revision: str | None = None  # the hub commit; needed with hub
    files: str | None = None  # hub: a pattern for some of its files; default: all with data of the kind
    on_bad: Literal["skip", "stop"] = "stop"  # what a bad record does: it is left out and told, or ends the preparation

    @model_validator(mode="after")
    def _one_place(self) -> SourceConfig:
        if sum(place is not None for place in (self.path, self.url, self.hub)) != 1:
            raise ValueError("give exactly one of path, url, hub")
        if (self.hub is None) != (self.revision is None):
            raise ValueError("hub and revision go together: a run is pinned to one commit")
        if self.files is not None and self.hub is None:
            raise ValueError("files goes with hub: a path or a URL may have a pattern of its own")
        return self


def _form(value: Any) -> str:
    return _SEVERAL if isinstance(value, list | tuple) else _ONE


FEWEST_WITH_A_MIDDLE = 4  # members, where one of them may be hostile
MEASURES_NOTHING = "none"  # for host.evaluate_on
_ONE, _SEVERAL = "[data]", "[[data]]"


class HostConfig(Section):
    """How this host listens and evaluates; not part of what is pinned."""

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
    approve: bool = False  # each new member waits until this host has said yes: `potluck approve`
    max_members: int = Field(default=10_000, ge=1, le=10**6)  # at a time; whoever has credit is always let in
    joins_per_minute: int = Field(default=20, ge=1, le=10_000)  # new members from one IPv4 address or IPv6 /64
    certificate_hours: float = Field(default=24.0, gt=0, le=24 * 30)
    evaluate_on: str = Field(default="cpu", max_length=32)  # where the host measures: cpu, cuda, cuda:1, mps; or none
    evaluators: tuple[PeerId, ...] = Field(default=(), max_length=64)  # members that measure instead; none: the host
    evaluation_minutes: float = Field(default=30.0, gt=0, le=24 * 60)  # to wait for one of them
    audit_on: str = Field(default="", max_length=32)  # where claims are replayed; default: as evaluate_on, or cpu
    reveal_minutes: float = Field(default=10.0, gt=0, le=24 * 60)  # to show drawn work, beside what 1 Mbit/s needs

    @property
    def auditing_device(self) -> str:
        """Where claims are replayed, if the run audits any."""
        return self.audit_on or self.device

    @property
    def measures(self) -> bool:
        """Whether this host measures the held-out loss where no member does."""
        return self.evaluate_on != MEASURES_NOTHING

    @property
    def device(self) -> str:
        """Where a model is loaded, for the genesis at least."""
        return self.evaluate_on if self.measures else "cpu"


class RunConfig(Section):
    """run.toml as a host writes it."""

    preset: Literal["lora", "full", "sync"] | None = None  # fills in what is not written: see coordinator.presets
    run: RunSection
    model: ModelSource
    data: Annotated[
        Annotated[DataSource, Tag(_ONE)]
        | Annotated[tuple[SourceConfig, ...], Field(min_length=1, max_length=MAX_SOURCES), Tag(_SEVERAL)],
        Discriminator(_form),
    ]
    sequences: SequenceRules | None = None  # [[data]]
    method: Method = Method()
    sync: Sync
    inner: InnerOptimizer = InnerOptimizer()
    outer: OuterOptimizer = OuterOptimizer()
    publish: Publish = Publish()
    credit: Credit = Credit()
    audit: Audit = Audit()
    host: HostConfig = HostConfig()

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
                "sync.overlap and outer.nesterov do not go together: a step that looks ahead goes astray where it "
                "comes a round late; set one of them to false"
            )
        return self

    @model_validator(mode="after")
    def _data_of_one_form(self) -> RunConfig:
        if isinstance(self.data, DataSource):
            if self.sequences is not None:
                raise ValueError("[sequences] goes with [[data]]; beside [data] its keys stand in [data]")
        elif len({source.name for source in self.data}) < len(self.data):
            raise ValueError("two [[data]] entries have one name")
        return self

    @property
    def sequence_rules(self) -> SequenceRules:
        """`[sequences]`, as written or by default."""
        return self.sequences or SequenceRules()

    @property
    def data_rules(self) -> DataRules | DataSetRules:
        """How the data become sequences of tokens."""
        if isinstance(self.data, DataSource):
            return self.data
        sources = [source.model_dump(include=set(SourceRules.model_fields)) for source in self.data]
        return DataSetRules.model_validate({"sources": sources} | self.sequence_rules.model_dump())

    @property
    def data_file(self) -> DataSource:
        """The run's one file. Raises: RunSpecError: it has sources to be prepared."""
        if not isinstance(self.data, DataSource):
            raise RunSpecError("[[data]] are sources to be prepared", "give one file as [data]")
        return self.data

    @property
    def data_sources(self) -> tuple[SourceConfig, ...]:
        """The run's sources. Raises: RunSpecError: it has one file, which is not prepared."""
        if isinstance(self.data, DataSource):
            raise RunSpecError("[data] is one file, which is not prepared", "write its table as [[data]], with a name")
        return self.data

    @model_validator(mode="after")
    def _rates_go_together(self) -> RunConfig:
        check_rates(self.run, self.sync, self.inner, self.outer)
        check_audit(self.sync, self.credit, self.audit)
        return self

    @property
    def advice(self) -> list[str]:
        """What its host should hear before it is chosen for good: lines for the screen."""
        sync, clip = self.sync, f"clip {self.sync.clip:g}" if self.sync.clip else "no clip"
        lines = [f"updates are averaged as: {sync.aggregate}, {clip}"]
        if sync.aggregate != "mean" and sync.min_peers < FEWEST_WITH_A_MIDDLE:
            lines.append(
                f"of fewer than {FEWEST_WITH_A_MIDDLE} members none is in the middle, and {sync.aggregate} protects "
                f"little: write min_peers = {FEWEST_WITH_A_MIDDLE} under [sync]"
            )
        if self.host.open and not self.credit.hold_rounds:
            lines.append("this run is open and holds no credit, so that a ban voids none: [credit] hold_rounds = 20")
        return lines

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
        return validated(cls, value, str(path), presets.kept(pinned.model_dump(mode="json")) if pinned else None)

    def pin(
        self,
        *,
        model_digest: str,
        model_name: str,
        parameters: int,
        trainable: int,
        data_digest: str,
        data_size_bytes: int,
        untrained: tuple[str, ...] = (),
        template_date: str | None = None,
        apart: bool = True,
    ) -> RunSpec:
        """The run spec, once the host knows what its model and data are.

        Args:
            data_digest: of the data file; of prepared data, of their manifest. `data_size_bytes` likewise.
            template_date: of prepared data: the day that templates were told.
            apart: of prepared data: whether the model keeps documents apart where it is asked to.
        """
        rules = self.data_rules.model_dump(exclude={"path"}) | {"digest": data_digest, "size_bytes": data_size_bytes}
        if not isinstance(self.data, DataSource):
            rules["template_date"] = template_date
            rules["documents_apart"] = rules.get("documents_apart", False) and apart
        return RunSpec(
            run=self.run,
            model=PinnedModel(
                digest=model_digest,
                name=model_name,
                license=self.model.license,
                parameters=parameters,
                trainable=trainable,
                untrained=untrained,
            ),
            data=(PinnedData if isinstance(self.data, DataSource) else PinnedDataSet).model_validate(rules),
            method=self.method,
            sync=self.sync,
            inner=self.inner,
            outer=self.outer,
            publish=self.publish,
            credit=self.credit,
            audit=self.audit,
        )
