"""What every part of a run spec and of run.toml is."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

Positive = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
Short = Annotated[str, Field(min_length=1, max_length=200)]


class Section(BaseModel):
    """A part of a spec, or of run.toml: unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    later: ClassVar[frozenset[str]] = frozenset()  # fields that version 1 did not have at first

    @model_serializer(mode="wrap")
    def _without_later(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out later fields at their defaults, so that specs that were pinned before keep their digests."""
        fields = type(self).model_fields
        value: dict[str, Any] = handler(self)
        left_out = {name for name in self.later if getattr(self, name) == fields[name].default}
        return {name: item for name, item in value.items() if name not in left_out}
