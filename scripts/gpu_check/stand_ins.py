"""Stand-ins for packages that the tensor code imports by way of `protocol`, where a bare machine lacks them.

A machine that is lent has torch and transformers, and nothing can be fetched there. What is measured needs none of
these; but a run spec is a pydantic model, and the module of claims imports that of signatures. So there are, while the
tensor code is imported and never longer:

    pydantic        models that take their fields and run their own checks; of types nothing is checked
    rfc8785         canonical JSON for what a state digest is made of: whole numbers and plain text
    psutil          how much memory is free
    cryptography, base58    names only: whoever used one would get an error

The product itself never sees them: it declares what it needs, and pip brings it.

    >>> with importing({"pydantic": _pydantic}):
    ...     import pydantic
    >>> class Rate(pydantic.BaseModel):
    ...     lr: float = pydantic.Field(default=0.5, gt=0)
    ...     name: str
    >>> Rate(name="inner").model_dump()
    {'lr': 0.5, 'name': 'inner'}
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

installed: list[str] = []  # what was stood in for
_NOTHING = object()


@contextmanager
def importing(makers: Mapping[str, Callable[[], list[ModuleType]]] | None = None) -> Iterator[None]:
    """Inside the block, a package that is missing can be imported all the same.

    Args:
        makers: top-level name -> its modules; default: those of above that are not installed.
    """
    if makers is None:
        makers = {name: maker for name, maker in _MAKERS.items() if importlib.util.find_spec(name) is None}
    installed.extend(name for name in makers if name not in installed)
    modules = [module for maker in makers.values() for module in maker()]
    before = {module.__name__: sys.modules.get(module.__name__, _NOTHING) for module in modules}
    sys.modules.update({module.__name__: module for module in modules})
    try:
        yield
    finally:
        for name, old in before.items():
            if old is _NOTHING:
                del sys.modules[name]
            else:
                sys.modules[name] = old  # type: ignore[assignment]  # None: not to be imported


def _module(name: str, **names: Any) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(names)
    return made


# ---- names only -----------------------------------------------------------------------------------------------------


class _Names(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Unused


class _Unused(metaclass=_Names):
    """Any name of a package that is not used."""


class _Hollow(ModuleType):
    __path__: list[str] = []  # noqa: RUF012  # what makes it a package

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Unused


def _cryptography() -> list[ModuleType]:
    below = ("", ".exceptions", ".hazmat", ".hazmat.primitives", ".hazmat.primitives.asymmetric")
    deepest = (".hazmat.primitives.asymmetric.ec", ".hazmat.primitives.asymmetric.ed25519")
    return [_Hollow(f"cryptography{path}") for path in (*below, *deepest)]


def _base58() -> list[ModuleType]:
    return [_Hollow("base58")]


# ---- what is used ---------------------------------------------------------------------------------------------------


def _rfc8785() -> list[ModuleType]:
    def dumps(value: Any) -> bytes:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")

    return [_module("rfc8785", dumps=dumps, CanonicalizationError=ValueError)]


def _psutil() -> list[ModuleType]:
    def virtual_memory() -> SimpleNamespace:
        return SimpleNamespace(available=os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))

    return [_module("psutil", virtual_memory=virtual_memory)]


class _Model:
    """A pydantic model as far as its fields and its own checks go."""

    def __init__(self, **values: Any) -> None:
        fields = self._fields()
        if unknown := values.keys() - fields:
            raise TypeError(f"{type(self).__name__}: no field {min(unknown)!r}")
        vars(self).update(values)
        for name in fields:
            if getattr(self, name, _NOTHING) is _NOTHING:
                raise TypeError(f"{type(self).__name__}: the field {name!r} is missing")
        for kind in type(self).__mro__:
            for item in vars(kind).values():
                if getattr(item, "checks_a_model", False):
                    item(self)

    @classmethod
    def _fields(cls) -> list[str]:
        kinds = reversed([kind for kind in cls.__mro__ if issubclass(kind, _Model)])
        named = [item for kind in kinds for item in vars(kind).get("__annotations__", {}).items()]
        return list(dict.fromkeys(name for name, annotation in named if "ClassVar" not in str(annotation)))

    def model_dump(self, **_: Any) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._fields()}

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


def _pydantic() -> list[ModuleType]:
    def field(default: Any = _NOTHING, **_: Any) -> Any:
        return default

    def model_validator(mode: str) -> Callable[[Any], Any]:
        def mark(check: Any) -> Any:
            check.checks_a_model = mode == "after"
            return check

        return mark

    def ignored(*_: Any, **__: Any) -> Callable[[Any], Any]:
        return lambda function: function

    said_beside_a_type = ("AfterValidator", "BeforeValidator", "Discriminator", "Tag", "TypeAdapter")
    return [
        _module(
            "pydantic",
            BaseModel=_Model,
            ConfigDict=dict,
            Field=field,
            SerializerFunctionWrapHandler=Any,
            ValidationError=type("ValidationError", (ValueError,), {}),
            field_validator=ignored,
            model_serializer=ignored,
            model_validator=model_validator,
            **dict.fromkeys(said_beside_a_type, lambda *_, **__: None),
        )
    ]


_MAKERS: Mapping[str, Callable[[], list[ModuleType]]] = {
    "pydantic": _pydantic,
    "rfc8785": _rfc8785,
    "psutil": _psutil,
    "cryptography": _cryptography,
    "base58": _base58,
}
