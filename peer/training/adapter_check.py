"""What a host asks of an adapter's settings before its run begins: that each name and number means something.

peft passes over a name as long as another one is found, and a layer that is not there; volunteers of runs that began so
must go on, so this is asked of new runs only. `model_check` calls it, with a model without values.
"""

from __future__ import annotations

from typing import Any

import torch

from peer.training import adapter
from protocol.errors import InputError
from protocol.run_spec import Method


def check_adapter(model: Any, method: Method) -> None:
    """Check the settings against a model.

    Raises:
        InputError: a name or layer that is not there, or one that cannot be trained, or not be loaded again as trained.
    """
    _check_targets(model, method)
    _check_modules_to_save(model, method)
    layers = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", 0)
    beyond = [layer for layer in method.layers_to_transform if layer >= layers]
    if beyond:
        raise InputError(
            f"method.layers_to_transform: there is no layer {beyond[0]}, this model has {layers}",
            f"layers count from 0: the last one is {layers - 1}",
        )


def _check_targets(model: Any, method: Method) -> None:
    """Each is the name of a layer that an adapter can be put on."""
    kinds = (*adapter.LINEAR, torch.nn.Embedding, torch.nn.Conv1d)
    for target in method.targets:
        found = _called(model, target)
        names = f"this model has {', '.join(adapter.linear_names(model))}"
        if not found:
            hint = f"{names}; targets are names, no patterns; without targets, all linear layers are taken"
            raise InputError(f"method.targets: no module is called {target!r}", hint)
        other = next((module for module in found.values() if not isinstance(module, kinds)), None)
        if other is not None:
            raise InputError(f"method.targets: {target} is a {type(other).__name__}, not a linear layer", names)
        if target.rpartition(".")[2] in adapter.passed_over(model):
            raise InputError(
                f"method.targets: an adapter on {target} of a {model.config.model_type} model would not count, or "
                "break it: it is not used as a linear layer",
                f"leave {target} out; without targets, all linear layers are taken that an adapter counts on",
            )


def _check_modules_to_save(model: Any, method: Method) -> None:
    """Each is the name of modules with weights of their own, and peft takes no others by it."""
    owners: dict[int, list[str]] = {}
    taken: list[str] = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for wanted in method.modules_to_save:
        found = _called(model, wanted)
        if not found:
            raise InputError(
                f"method.modules_to_save: no module is called {wanted!r}",
                "give names of modules, such as lm_head or embed_tokens; what an adapter goes on is method.targets",
            )
        more = [name for name, _ in model.named_modules() if name.endswith(wanted) and name not in found]
        if more:
            raise InputError(
                f"method.modules_to_save: {wanted} is also the end of {more[0]}, which peft would take too",
                f"write {min(found)} instead",
            )
        for name, module in found.items():
            inside = next((other for other in taken if f"{name}.".startswith(f"{other}.")), None)
            inside = inside or next((other for other in taken if other.startswith(f"{name}.")), None)
            if inside is not None:
                raise InputError(
                    f"method.modules_to_save: {wanted} and {inside}: one lies within the other",
                    "leave one of the two out",
                )
            own = dict(module.named_parameters(prefix=name))
            kept = set(module.state_dict(prefix=f"{name}.")) - set(own)
            if not own:
                raise InputError(f"method.modules_to_save: {wanted} has no weights", "leave it out")
            if kept:
                raise InputError(
                    f"method.modules_to_save: {wanted} also holds what is not trained ({min(kept)}), which an "
                    "adapter's file has no place for",
                    "leave it out",
                )
            shared = next((names for p in own.values() if len(names := owners[id(p)]) > 1), None)
            if shared is not None:
                raise InputError(
                    f"method.modules_to_save: {wanted} shares its weight with {min(set(shared) - set(own))}: trained "
                    "apart, the two would no longer fit a model of this kind",
                    "leave it out, or take a model whose head is its own (tie_word_embeddings is false)",
                )
        taken += found


def _called(model: torch.nn.Module, wanted: str) -> dict[str, torch.nn.Module]:
    """The modules of that name, whatever the path to them."""
    return {name: module for name, module in model.named_modules() if name == wanted or name.endswith(f".{wanted}")}
