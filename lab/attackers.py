"""Hostile members: the real client with one thing changed, for the tests and for `scripts/bench attackers`.

    negated         its update points the other way
    negated-x10     its update points the other way, and is ten times as long
    noise-x10       its update is noise, ten times as long as its work, and the same each round, so that it adds up
    noise           the same, as long as its work
    zeros           it hands over nothing
    huge            its update is 1e30 in each value
    stale           it hands over the first round's work again and again
    label-flip      it learns from labels that are not the tokens that follow
    other-data      it works on draws of its own choice
    made-up-moments it says that AdamW remembers a million times as much as it does
    tokens-x100     it claims a hundred times the tokens that it has trained on
    batches-x100    the same, in a hundred times the batches, so that they would fit
    nan             its update decodes to values that are not numbers
    tokens-x2       it claims twice the work that it has done, and an own state of as many steps
    shows-nothing   it claims as tokens-x2 does, and does not show its work
    idle            it is there, and neither works nor hands anything over
    claim-and-die   it claims a million tokens for an update of zeros, without work; its owner is to kill it

All that such a member has of its own is what it signs for: its certificate is real, and what it says is well formed. A
process that starts with `POTLUCK_ATTACK` in its environment is one (`warm_start` sees to that), and so is a fresh

    python -m lab.attackers negated-x10 join INVITE --yes

Production code knows nothing of this. A test takes the patches of an attack and undoes them:

    for patch in ATTACKS["nan"]():
        monkeypatch.setattr(*patch)
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from peer.training.codecs.codec import EncodedUpdate
    from peer.training.update import StepResult, Update
    from peer.training.work import LocalWork

ATTACK = "POTLUCK_ATTACK"
LONGER = 10.0
MORE = 100
MADE_UP_TOKENS = 1_000_000
TOLD_TOKENS = 1000  # the progress that `claim-and-die` tells the others, so that it has work by its own word
STEP_S = 0.1  # of one that pretends
NOT_A_NUMBER = bytes.fromhex("ff7fff7f")  # as fp32, and twice as fp16 or bf16

Patch = tuple[Any, str, Any]  # whose attribute, its name, what it is from now on


def environment(attack: str) -> dict[str, str]:
    """What a process must have in its environment to be this attacker.

    >>> environment("idle")
    {'POTLUCK_ATTACK': 'idle'}
    """
    if attack not in ATTACKS:
        raise ValueError(f"expected one of the attacks {', '.join(ATTACKS)}, got {attack!r}")
    return {ATTACK: attack}


def install(environment: dict[str, str]) -> None:
    """Make this process, about to be `potluck join`, the attacker that its environment names, if it names one."""
    if ATTACK in environment:
        for patch in ATTACKS[environment[ATTACK]]():
            setattr(*patch)


# ---- what is changed -------------------------------------------------------------------------------------------------


def _handing_over(change: Callable[[Update], Update]) -> Callable[[], list[Patch]]:
    """An attacker that works as all do, and hands over another update, or says something else of it.

    Each round it starts from the agreed state. An honest member keeps what the others have not got of its work, which
    is here the difference to what it has made up: added up, that would soon be no number any more.
    """

    def patches() -> list[Patch]:
        from peer.training.work import LocalWork

        finish = LocalWork.finish

        def changed(self: LocalWork) -> Update:
            return change(finish(self))

        def afresh(self: LocalWork, base: Any, sent: Any) -> None:
            self.begin(base)

        return [(LocalWork, "finish", changed), (LocalWork, "rebase", afresh)]

    return patches


def _negated(update: Update) -> Update:
    update.vector.mul_(-LONGER)
    return update


def _noise(update: Update) -> Update:
    import torch

    length = update.vector.norm()
    noise = update.vector.normal_(generator=torch.Generator().manual_seed(0))
    noise.mul_(LONGER * length / noise.norm())
    return update


def _noise_x1(update: Update) -> Update:
    _noise(update)
    update.vector.div_(LONGER)
    return update


def _filled(value: float) -> Callable[[Update], Update]:
    def fill(update: Update) -> Update:
        update.vector.fill_(value)
        return update

    return fill


def _negated_x1(update: Update) -> Update:
    update.vector.neg_()
    return update


def _stale() -> list[Patch]:
    kept: list[torch.Tensor] = []

    def again(update: Update) -> Update:
        if not kept:
            kept.append(update.vector.clone())
        if kept[0].shape == update.vector.shape:
            update.vector.copy_(kept[0])
        return update

    return _handing_over(again)()


def _label_flip() -> list[Patch]:
    from peer.training.data import Sequences

    batch = Sequences.batch

    def flipped(self: Any, *arguments: Any, **options: Any) -> Any:
        tokens, labels, *rest = batch(self, *arguments, **options)
        return (tokens, labels.flip(1), *rest)

    return [(Sequences, "batch", flipped)]


def _other_data() -> list[Patch]:
    from peer.training.data import Sequences

    draw = Sequences.draw

    def own_choice(self: Any, seed: int, round: int, peer_id: str, first: int, count: int) -> Any:
        return draw(self, seed, 0, "its own choice", first, count)

    return [(Sequences, "draw", own_choice)]


def _made_up_moments(update: Update) -> Update:
    from peer.training.own_state import OwnState

    own = update.own
    if own is None:
        return update
    vectors = {name: vector * (1e6 if name == "exp_avg_sq" else 1.0) for name, vector in own.vectors.items()}
    return replace(update, own=OwnState(own.numbers, vectors))


def _more_tokens(update: Update) -> Update:
    return replace(update, tokens=MORE * update.tokens)


def _more_batches(update: Update) -> Update:
    return replace(
        update, tokens=MORE * update.tokens, batches=MORE * update.batches, flops=min(MORE * update.flops, 2**53 - 1)
    )


def _twice() -> list[Patch]:
    from peer.training.own_state import OwnState
    from peer.training.work import LocalWork

    finish = LocalWork.finish

    def twice(self: LocalWork) -> Update:
        done = finish(self)
        own = done.own
        if own is not None and "steps" in own.numbers:
            more = -(-2 * done.batches // self.spec.inner.batch) - -(-done.batches // self.spec.inner.batch)
            own = OwnState(dict(own.numbers) | {"steps": str(int(own.numbers["steps"]) + more)}, own.vectors)
        return replace(done, tokens=2 * done.tokens, batches=2 * done.batches, flops=2 * done.flops, own=own)

    return [(LocalWork, "finish", twice)]


def _shows_nothing() -> list[Patch]:
    from peer.link.revealing import Revealing

    return [*_twice(), (Revealing, "ask", lambda *_: False)]


def _nan() -> list[Patch]:
    from peer.training.codecs.codec import EncodedUpdate

    encode = EncodedUpdate.encode

    def spoilt(vector: torch.Tensor, *args: Any, **options: Any) -> EncodedUpdate:
        real = encode(vector, *args, **options)
        return replace(real, chunks=tuple(NOT_A_NUMBER + chunk[len(NOT_A_NUMBER) :] for chunk in real.chunks))

    return [(EncodedUpdate, "encode", staticmethod(spoilt))]


def _idle() -> list[Patch]:
    from peer import participation, trainer

    def wait(swarm: Any, work: Any, rounds: int, stop: Any, watcher: Any, permit: Any, *_: Any, **options: Any) -> Any:
        return trainer.reduce(swarm, rounds, stop, permit)  # looks at the head until the end: 0 tokens

    return [(participation, "train", wait)]


def _claim_and_die() -> list[Patch]:
    import torch

    from peer.training.update import StepResult, Update
    from peer.training.work import LocalWork

    def pretend(self: LocalWork) -> StepResult:
        time.sleep(STEP_S)
        return StepResult(0, 0, torch.zeros(()))

    def made_up(self: LocalWork) -> Update:
        spec = self.spec
        values = spec.sync.fragment_values(self.round, spec.model.trainable)
        batches = -(-MADE_UP_TOKENS // spec.data.sequence_length)
        return Update(torch.zeros(values), MADE_UP_TOKENS, 0, batches, 0)

    return [
        (LocalWork, "step", pretend),
        (LocalWork, "tokens", property(lambda self: TOLD_TOKENS)),
        (LocalWork, "finish", made_up),
        *_handing_over(lambda update: update)()[1:],
    ]


ATTACKS: dict[str, Callable[[], list[Patch]]] = {
    "negated": _handing_over(_negated_x1),
    "negated-x10": _handing_over(_negated),
    "noise": _handing_over(_noise_x1),
    "zeros": _handing_over(_filled(0.0)),
    "huge": _handing_over(_filled(1e30)),
    "stale": _stale,
    "label-flip": _label_flip,
    "other-data": _other_data,
    "made-up-moments": _handing_over(_made_up_moments),
    "noise-x10": _handing_over(_noise),
    "tokens-x100": _handing_over(_more_tokens),
    "batches-x100": _handing_over(_more_batches),
    "nan": _nan,
    "tokens-x2": _twice,
    "shows-nothing": _shows_nothing,
    "idle": _idle,
    "claim-and-die": _claim_and_die,
}


if __name__ == "__main__":
    import potluck

    install(environment(sys.argv.pop(1)))
    potluck.main()
