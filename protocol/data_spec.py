"""The data of a run, as its spec pins them: one file, or sources that were prepared (`[data]` in the run spec).

one file    digest, size_bytes, url, kind = "text" | "jsonl" | "chat", text_field, license, sequence_length, packing,
            held_out, held_out_sequences, rules, template_date
prepared    digest and size_bytes of the manifest, sources, sequence_length, packing, held_out, held_out_sequences,
            template_date, mirrors, documents_apart
"""

from __future__ import annotations

import datetime
import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from protocol.data_manifest import MAX_MANIFEST_BYTES
from protocol.digests import Digest
from protocol.section import Positive, Section, Short


def _day(value: Any) -> Any:
    if type(value) is datetime.date:  # TOML has dates of its own
        return value.isoformat()
    if not isinstance(value, str) or not re.fullmatch(r"[1-9]\d{3}-\d\d-\d\d", value, re.ASCII):
        raise ValueError("expected a day as YYYY-MM-DD")
    datetime.date.fromisoformat(value)
    return value


Day = Annotated[str, BeforeValidator(_day)]  # YYYY-MM-DD


class DataRules(Section):
    """How the data file becomes sequences of tokens: what the host writes, and what is pinned."""

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

    @property
    def kinds(self) -> tuple[str, ...]:
        return (self.kind,)

    @property
    def licenses(self) -> tuple[str, ...]:
        return (self.license,)


class SequenceRules(Section):
    """How prepared data become sequences of tokens (`[sequences]` beside `[[data]]`); as in `DataRules`."""

    sequence_length: int = Field(default=512, ge=8, le=1 << 20)  # tokens
    packing: bool = True
    held_out: float = Field(default=0.002, gt=0, lt=0.5)  # share of records that nobody trains on
    held_out_sequences: int = Field(default=256, ge=1, le=100_000)  # of them, that are evaluated
    template_date: Day | None = None
    mirrors: tuple[Annotated[str, Field(pattern=r"^https?://", max_length=500)], ...] = ()  # folders with the shards
    # documents that share a sequence do not see each other, and the first token of each is not predicted; new runs have
    # it where their model can: `peer.training.packed`
    documents_apart: bool = False
    later: ClassVar[frozenset[str]] = frozenset({"documents_apart"})


class SourceRules(Section):
    """One source of prepared data."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    kind: Literal["text", "jsonl", "chat"] = "text"
    text_field: Short = "text"  # jsonl
    license: Short  # SPDX id
    weight: Positive = 1.0  # how often it is drawn from, against the others


class DataSetRules(SequenceRules):
    """How sources that are prepared become sequences of tokens."""

    sources: Annotated[tuple[SourceRules, ...], Field(min_length=1, max_length=64)]

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(source.kind for source in self.sources))

    @property
    def licenses(self) -> tuple[str, ...]:
        """Each once, in the order of the sources."""
        return tuple(dict.fromkeys(source.license for source in self.sources))


class PinnedData(DataRules):
    digest: Digest  # SHA-256 of the file
    size_bytes: int = Field(ge=1)

    @model_validator(mode="after")
    def _a_day_for_templates(self) -> PinnedData:
        if self.kind == "chat" and self.rules > 1 and self.template_date is None:
            raise ValueError("template_date is missing: without it chats would give other tokens each day")
        return self


class PinnedDataSet(DataSetRules):
    digest: Digest  # SHA-256 of the manifest: `protocol.data_manifest`
    size_bytes: int = Field(ge=1, le=MAX_MANIFEST_BYTES)  # of the manifest


def _file_or_set(value: Any) -> str:
    sources = "sources" in value if isinstance(value, dict) else isinstance(value, PinnedDataSet)
    return "set" if sources else "file"


AnyPinnedData = Annotated[
    Annotated[PinnedData, Tag("file")] | Annotated[PinnedDataSet, Tag("set")], Discriminator(_file_or_set)
]
