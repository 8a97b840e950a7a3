"""The words that travel with a checkpoint: README.md (a model card) and LICENSE. `checkpoints` writes them."""

from __future__ import annotations

from collections.abc import Sequence

from protocol.checkpoint import Contributor, Evaluation
from protocol.data_spec import PinnedData
from protocol.run_card import RunCard
from protocol.run_spec import RunSpec
from protocol.schedule import Schedule

MAX_NAMED = 100  # contributors in the table; checkpoint.json names all


def readme(
    card: RunCard,
    *,
    round_number: int,
    evaluation: Evaluation,
    measured_by: str | None = None,
    genesis_loss: float | None,
    contributors: Sequence[Contributor],
    parent: str | None,
    fingerprint: str,
) -> str:
    """README.md, with the front matter that model hubs read.

    Args:
        measured_by: the peer id of the member that measured the loss; None: the host did.
        genesis_loss: held-out loss of round 0, if this is a later round.
        parent: payload digest.
        fingerprint: of the root key.
    """
    spec = card.spec
    lora = spec.method.kind == "lora"
    tokens = sum(item.tokens for item in contributors)
    before = f" (before training: {genesis_loss:.4f})" if genesis_loss is not None else ""
    measured = f", measured by member `{measured_by}`, whom the host named" if measured_by else ""
    return f"""---
license: {_yaml(spec.model.license)}
base_model: {_yaml(spec.model.name)}
library_name: {"peft" if lora else "transformers"}
pipeline_tag: text-generation
tags: [potluck{", lora" if lora else ""}]
---

# {spec.run.name}, round {round_number}

{"An adapter (LoRA) for" if lora else "Fine-tuned from"} {spec.model.name}, trained by {_people(len(contributors))} on
their own machines with Potluck. Run `{card.run}`.

| | |
|---|---|
| held-out loss | {evaluation.held_out_loss:.4f} nats per token{before}, on {evaluation.tokens} tokens{measured} |
| rounds | {round_number} |
| tokens | {tokens:,} |
| parameters | {spec.model.parameters:,}, of which {spec.model.trainable:,} were trained |
| method | {spec.method.kind}, {spec.sync.method} |
{_optimizers(spec, round_number)}
| parent | {f"`{parent}`" if parent else "none: this is the genesis"} |

## Who contributed

{_table(contributors)}

## Model, data, licences

- base model: {spec.model.name}, licence {spec.model.license}
{_data(spec)}

{_HOW_TO_VERIFY.format(fingerprint=fingerprint)}"""


_HOW_TO_VERIFY = """\
## How to verify

Beside this folder lies `model.sig`, an OpenSSF Model Signing bundle by the run's root key, whose fingerprint is
`{fingerprint}`. Ask the run's host for it over a way you trust.

    potluck verify --key {fingerprint} <this checkpoint>
    potluck verify --key {fingerprint} --signature-only <this checkpoint>
    model_signing verify key model --signature model.sig --public_key coordinator.pub --no-ignore-git-paths

The first also follows the chain back to genesis: it needs the run's other checkpoints and its `rounds/` beside this
one. The others look at this one alone.

`checkpoint.json` holds the members' signed agreement on these weights, `ledger/checkpoint` the signed head of the
ledger that lists every contribution.
"""


def license_text(card: RunCard) -> str:
    """LICENSE: what the model and the data are licensed under."""
    spec = card.spec
    named = dict.fromkeys([spec.model.license, *spec.data.licenses])
    links = "\n".join(f"https://spdx.org/licenses/{name}.html" for name in named)
    return f"""This model was made from {spec.model.name}, licensed under {spec.model.license},
and trained on data licensed under {" and ".join(spec.data.licenses)} (SHA-256 {spec.data.digest}).

The texts of licences with an SPDX identifier are at
{links}
"""


def _data(spec: RunSpec) -> str:
    data = spec.data
    if isinstance(data, PinnedData):
        return f"- data: SHA-256 `{data.digest}`, {data.size_bytes:,} bytes, licence {data.license}"
    total = sum(source.weight for source in data.sources)
    lines = [f"- data: {len(data.sources)} sources, SHA-256 of their manifest `{data.digest}`"]
    lines += [
        f"  - {item.name}: {item.weight / total:.1%}, {item.kind}, licence {item.license}" for item in data.sources
    ]
    return "\n".join(lines)


def _optimizers(spec: RunSpec, round_number: int) -> str:
    """Rows of the table: each optimizer's learning rate, its schedule, and what it was in this round."""
    rates, rounds = spec.rates(max(round_number, 1)), spec.run.rounds
    rows = [("outer", "SGD" if rates.inner is not None else "AdamW", spec.outer.lr, spec.outer.schedule, rates.outer)]
    if rates.inner is not None:
        name = {"adamw": "AdamW", "schedule-free-adamw": "schedule-free AdamW"}[spec.inner.optimizer]
        rows.insert(0, ("inner", name, spec.inner.lr, spec.inner.schedule, rates.inner))
    return "\n".join(
        f"| {place} optimizer | {name}, learning rate {lr:g}, {_schedule(schedule, rounds)}; {now:.4g} in this round |"
        for place, name, lr, schedule, now in rows
    )


def _schedule(schedule: Schedule, rounds: int) -> str:
    """
    >>> _schedule(Schedule(kind="wsd", warmup_rounds=10, decay_rounds=100), 500)
    'wsd: 10 rounds of warm-up, the last 100 of 500 rounds fall to 0.1 of it'
    """
    parts = [f"{schedule.warmup_rounds} rounds of warm-up"] if schedule.warmup_rounds else []
    if schedule.decay_rounds:
        parts.append(f"the last {schedule.decay_rounds} of {rounds} rounds fall to {schedule.min_factor:g} of it")
    elif schedule.decays:
        parts.append(f"falls to {schedule.min_factor:g} of it until round {rounds}")
    return f"{schedule.kind}: {', '.join(parts)}" if parts else schedule.kind


def _table(contributors: Sequence[Contributor]) -> str:
    if not contributors:
        return "Nobody yet: this is what training starts from."
    ranked = sorted(contributors, key=lambda item: (-item.tokens, item.peer_id))
    total = sum(item.tokens for item in ranked)
    lines = ["| peer | tokens | share | rounds |", "|---|---:|---:|---:|"]
    lines += [
        f"| `{item.peer_id}` | {item.tokens:,} | {item.tokens / total:.1%} | {item.rounds} |"
        for item in ranked[:MAX_NAMED]
    ]
    if len(ranked) > MAX_NAMED:
        lines.append(f"| and {len(ranked) - MAX_NAMED} more, see checkpoint.json | | | |")
    return "\n".join(lines)


def _people(count: int) -> str:
    return "one volunteer" if count == 1 else f"{count} volunteers"


def _yaml(text: str) -> str:
    """A YAML double-quoted scalar."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(character if character.isprintable() else " " for character in escaped) + '"'
