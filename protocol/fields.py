"""What has a digest or a signature is made of: fields that are all known, and that may grow in number."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer


class Fields(BaseModel):
    """No other field is let in, and `later` ones are left out at their defaults.

    So what was pinned or signed before there was a field keeps its bytes.

    >>> class Example(Fields):
    ...     later: ClassVar[frozenset[str]] = frozenset({"names"})
    ...     names: tuple[str, ...] = ()  # a list, as JSON
    >>> Example().model_dump(mode="json"), Example(names=("a",)).model_dump(mode="json")
    ({}, {'names': ['a']})
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    later: ClassVar[frozenset[str]] = frozenset()  # fields that version 1 did not have at first

    @model_serializer(mode="wrap")
    def _without_later(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        value: dict[str, Any] = handler(self)
        left_out = {name for name in self.later if getattr(self, name) == fields[name].default}
        return {name: item for name, item in value.items() if name not in left_out}
