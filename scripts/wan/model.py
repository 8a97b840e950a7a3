"""The models of `scripts/bench wan`: the demo's for LoRA; for a full fine-tune the same, made larger.

A line scaled for 0.85 M values would carry little more than the protocols' own messages. So each layer's MLP gets more
units, whose way in (gate, up) is random and whose way out (down) is zero: the model computes what it did, bit for bit
but for the order of sums, and its new weights take part in training from the first step (Chen et al. 2016, Net2Net,
section 2).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lab.small_community import Inputs
from peer.training.loading import load_causal_lm, load_tokenizer
from peer.training.quiet import no_progress_bars

MORE_UNITS = {"lora": 0, "full": 2048}  # of each layer's MLP, for times divided by 8


def inputs_of(more: int, demo: Inputs, folder: Path) -> Inputs:
    """The demo's model with `more` units in each MLP, and its text."""
    if not more:
        return demo
    target = folder / f"{demo.model.name}-{more}"
    if not target.exists():
        with no_progress_bars():
            widened(load_causal_lm(demo.model), more).save_pretrained(target)
        load_tokenizer(demo.model).save_pretrained(target)
    return Inputs(target, demo.text)


@torch.no_grad()
def widened(model: Any, more: int) -> Any:
    """A Llama that computes what `model` does, with `more` units in each MLP."""
    config = type(model.config)(**model.config.to_dict() | {"intermediate_size": model.config.intermediate_size + more})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        wide = type(model)(config)
    new = wide.state_dict()
    for name, old in model.state_dict().items():
        if name.endswith("down_proj.weight"):
            new[name].zero_()
        new[name][tuple(slice(0, size) for size in old.shape)] = old
    wide.load_state_dict(new)
    return wide
