"""Where each tensor of the shared state lies in the flat vector that a peer trains.

The state's tensors are those of the model's files, so that a checkpoint is laid out as its makers' own files are. Most
architectures hold in memory what lies in the files: then the two are the same vector. Some are held under other names
(GPT-NeoX's head), and mixtures of experts as one tensor of all experts. transformers knows how to take such a tensor
apart when it saves; done once to a vector without values, that says where each piece lies, for none of it is computed.

Legend: N trainable parameters.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from transformers.core_model_loading import revert_weight_conversion

from peer.training.state import NamesShapes
from protocol.errors import InputError

LORA_INSTEAD = 'use method.kind = "lora", which leaves the model as it is, or choose another model'


class TensorPlace(NamedTuple):
    """One tensor of the state in the flat vector, as torch's `as_strided` takes it."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def of(self, flat_N: torch.Tensor) -> torch.Tensor:
        return flat_N.as_strided(self.shape, self.stride, flat_N.storage_offset() + self.offset)

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """The tensors of the state, sorted by name, and where each lies."""

    names_shapes: NamesShapes
    places: tuple[TensorPlace, ...]
    untrained: tuple[str, ...] = ()  # those that stay as they are, as the run spec names them

    @cached_property
    def straight(self) -> bool:
        """Whether state and vector are laid out alike."""
        return all(
            place == TensorPlace(place.shape, _strides(place.shape), start)
            for place, start in zip(self.places, self._starts, strict=False)
        )

    @cached_property
    def _starts(self) -> list[int]:
        """Of each tensor in the state; and the end."""
        return list(itertools.accumulate((place.size for place in self.places), initial=0))

    def read(self, flat_N: torch.Tensor, where: slice) -> torch.Tensor:
        """A copy of some of the state's values: flat fp32 on the CPU."""
        if self.straight:
            return flat_N.detach()[where].to("cpu", copy=True).contiguous()
        start, stop, _ = where.indices(len(flat_N))
        found = torch.empty(max(stop - start, 0))
        for place, inside, outside in self._pieces(start, stop):
            found[outside] = place.of(flat_N.detach()).reshape(-1)[inside].cpu()
        return found

    def write(self, flat_N: torch.Tensor, values: torch.Tensor, where: slice, *, add: bool = False) -> None:
        """Put values in their place, or add them to what is there; from any device."""
        start, stop, _ = where.indices(len(flat_N))
        if self.straight:
            _put(flat_N[start:stop], values, add)
            return
        for place, inside, outside in self._pieces(start, stop):
            tensor, part = place.of(flat_N), values[outside]
            if part.numel() == place.size:
                _put(tensor, part.view(place.shape), add)
            elif tensor.is_contiguous():
                _put(tensor.view(-1)[inside], part, add)
            else:  # the end of a stretch within a tensor that need not lie in one piece
                whole = tensor.reshape(-1).clone()
                _put(whole[inside], part, add)
                tensor.copy_(whole.view(place.shape))

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[TensorPlace, slice, slice]]:
        """The tensors that a stretch of the state touches: which of their values, and where these are in it."""
        first = max(bisect.bisect_right(self._starts, start) - 1, 0)
        for index in range(first, len(self.places)):
            begin, end = self._starts[index], self._starts[index + 1]
            if begin >= stop:
                return
            low, high = max(begin, start), min(end, stop)
            if low < high:
                yield self.places[index], slice(low - begin, high - begin), slice(low - start, high - start)


def layout_as_held(parameters: Mapping[str, torch.Tensor]) -> Layout:
    """Of tensors that lie in the files as they are trained: an adapter's."""
    named = sorted(parameters.items())
    starts = itertools.accumulate((tensor.numel() for _, tensor in named), initial=0)
    return Layout(
        tuple((name, tuple(tensor.shape)) for name, tensor in named),
        tuple(_place(tensor, start) for (_, tensor), start in zip(named, starts, strict=False)),
    )


def layout_in_files(model: Any, parameters: Mapping[str, torch.Tensor]) -> Layout:
    """Of a whole model, whose files `save_pretrained` writes.

    Args:
        model: a transformers model; from now on it is saved by its kind, whatever names the files had that it came of.

    Raises:
        InputError: the files hold something else than these parameters.
    """
    kind = model.config.model_type
    whole = [name for name, tensor in parameters.items() if not tensor.is_floating_point()]
    if whole:
        raise InputError(
            f"a model of the kind {kind} has whole numbers in its files ({min(whole)}), which a shared state has no "
            "place for",
            LORA_INSTEAD,
        )
    if "_weight_conversions" in vars(model):  # those of the files that it was loaded from, old names included
        del model._weight_conversions
    held = layout_as_held(parameters)
    vector = torch.empty(sum(place.size for place in held.places), device="meta")
    views = {name: place.of(vector) for (name, _), place in zip(held.names_shapes, held.places, strict=True)}
    still = [
        range(place.offset, place.offset + place.size)
        for place, (name, _) in zip(held.places, held.names_shapes, strict=True)
        if not parameters[name].requires_grad
    ]
    with _Uncopied():
        saved = dict(sorted(revert_weight_conversion(model, views).items()))
    storage = vector.untyped_storage()._cdata
    copied = [name for name, tensor in saved.items() if tensor.untyped_storage()._cdata != storage]
    left_out = set(getattr(model, "_keys_to_ignore_on_save", None) or ()) & set(views)
    if copied or left_out or sum(tensor.numel() for tensor in saved.values()) != vector.numel():
        which = min(copied or left_out or saved)
        raise InputError(
            f"a model of the kind {kind} is written into files otherwise than it is trained ({which})", LORA_INSTEAD
        )
    return Layout(
        tuple((name, tuple(tensor.shape)) for name, tensor in saved.items()),
        tuple(_place(tensor, int(tensor.storage_offset())) for tensor in saved.values()),
        _shortened(
            {name for name, tensor in saved.items() if any(tensor.storage_offset() in lies for lies in still)},
            set(saved),
        ),
    )


def _shortened(names: set[str], all: set[str]) -> tuple[str, ...]:
    """The same names, where they are all that begins so as that beginning.

    >>> _shortened({"tower.a", "tower.b.c", "model.bias"}, {"tower.a", "tower.b.c", "model.bias", "model.weight"})
    ('model.bias', 'tower.')
    """
    trained = {name[: at + 1] for name in all - names for at, letter in enumerate(name) if letter == "."}
    found = set()
    for name in names:
        starts = [name[: at + 1] for at, letter in enumerate(name) if letter == "."]
        found.add(next((start for start in starts if start not in trained), name))
    return tuple(sorted(found))


class _Uncopied(torch.overrides.TorchFunctionMode):
    """Leaves views where they lie: transformers asks for `contiguous` pieces, which it needs not before it writes."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.contiguous:
            return args[0]
        return function(*args, **(kwargs or {}))


def _put(target: torch.Tensor, values: torch.Tensor, add: bool) -> None:
    if add:
        target.add_(values.to(target.device))
    else:
        target.copy_(values)


def _place(tensor: torch.Tensor, offset: int) -> TensorPlace:
    shape = tuple(tensor.shape)
    return TensorPlace(shape, _strides(shape) if tensor.is_contiguous() else tuple(tensor.stride()), offset)


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a tensor in one piece."""
    return tuple(itertools.accumulate(reversed(shape[1:]), int.__mul__, initial=1))[::-1] if shape else ()
