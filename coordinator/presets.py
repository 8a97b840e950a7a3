"""Presets: what to write into run.toml for the usual kinds of run. `RunConfig` fills them in; the host's words win.

    preset = "lora"     an adapter; updates of 2 bits, rounds as long as averaging needs, which goes on beside training
    preset = "full"     all weights; a sixth of the values in each round, in turns, by 2 bits (int2), in frequent rounds
    preset = "sync"     gradients averaged at one state: what one large machine would do; for fast lines and comparisons

What `lora` and `full` came to on home lines stands in docs/benchmarks.md (`scripts/bench wan`).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any

Filling = dict[str, dict[str, Any]]  # section -> values

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "lora": {
        "method": {"kind": "lora"},
        "sync": {"method": "diloco", "wire": "int2", "round_seconds": "auto", "overlap": True},
    },
    "full": {
        "method": {"kind": "full"},
        "sync": {"method": "diloco", "wire": "int2", "fragments": 6, "round_seconds": "auto", "overlap": True},
        "outer": {"lr": 1.3},
    },
    "sync": {
        "sync": {"method": "gradient", "wire": "fp16", "round_seconds": "auto"},
        "outer": {"lr": 1e-4},
    },
}
ENDS = ("round_tokens", "round_seconds")  # of a round: whoever gives one of them wants no other


NEW: Filling = {
    # of runs that begin now; specs that were pinned before have none of it. At 2, whoever has less than a third of the
    # weight cannot turn an average round, and one of seven costs 5 % of the loss, at 3 it is 10: `scripts/bench poison`
    "sync": {"clip": 2.0, "rules": 3},
    # the day is filled in by `dated`
    "data": {"rules": 2, "template_date": None},
    "sequences": {"documents_apart": True},  # of [[data]]
}
_PINNED_IN = {"sequences": "data"}  # sections of run.toml that have another name in the spec


def kept(spec: Mapping[str, Any]) -> Filling:
    """What `NEW` is in the spec of a run that began earlier, as JSON; what it does not say has its default."""
    sections = {section: spec[_PINNED_IN.get(section, section)] for section in NEW}
    filling = {
        section: {name: sections[section][name] for name in values if name in sections[section]}
        for section, values in NEW.items()
    }
    chosen = {name: spec["method"][name] for name in ("base",) if name in spec["method"]}  # by the first start
    return filling | {"method": chosen}


def dated(config: Any, day: date) -> Any:
    """A run.toml's content that has a day for its chat templates.

    >>> dated({"data": {"kind": "chat", "rules": 2, "template_date": None}}, date(2026, 12, 1))["data"]["template_date"]
    '2026-12-01'
    """
    data = config.get("data") if isinstance(config, dict) else None
    if not isinstance(data, dict) or data.get("kind") != "chat" or data.get("rules") == 1:
        return config
    if data.get("template_date") is not None:
        return config
    return config | {"data": data | {"template_date": day.isoformat()}}


def filled(config: Any, new: Filling = NEW) -> Any:
    """A run.toml's content with its preset's values, and those of new runs, where it has none of its own."""
    if not isinstance(config, dict):
        return config
    preset = PRESETS.get(config.get("preset", ""), {}) if isinstance(config.get("preset", ""), str) else {}
    result = dict(config)
    for section in {**preset, **new}:
        values = preset.get(section, {}) | new.get(section, {})
        own = config.get(section, {})
        if not isinstance(own, dict) or (section == "sequences" and not isinstance(config.get("data"), list | tuple)):
            continue  # refused with its name, later; [sequences] goes with [[data]]
        given: tuple[str, ...] = ENDS if any(end in own for end in ENDS) else ()
        result[section] = {name: value for name, value in values.items() if name not in given} | own
    return result
