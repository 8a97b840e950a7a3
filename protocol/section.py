"""What every part of a run spec and of run.toml is."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from protocol.fields import Fields

Positive = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
Short = Annotated[str, Field(min_length=1, max_length=200)]


class Section(Fields):
    """A part of a spec, or of run.toml."""
