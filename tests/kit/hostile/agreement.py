"""What a dishonest host shows as the members' agreement, the parent, or the run."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from protocol import canonical, checkpoint, note
from protocol.held_out import Measured
from protocol.keys import PeerIdentity
from protocol.state import StateManifest
from tests.kit.builders import Run, build_run, edit_info, fixed_ed25519, safetensors_bytes
from tests.kit.hostile.cases import GOOD, HOST, Cases, info_of
from tests.kit.hostile.rounds import put_round, with_rounds

CASES = Cases()


def change_agreement(what: str, change: Callable[[Run, dict[str, Any]], Any]) -> None:
    """A case in which the host shows another agreement of round 3."""

    def make(run: Run, step: Path) -> None:
        value = info_of(step)["agreement"]
        value = change(run, value) or value
        edit_info(step, agreement=value)
        run.resign(step)

    CASES.add(what, HOST)(make)


def other_claims(it: Run, **changes: Any) -> dict[str, Any]:
    """A whole agreement of round 3 whose first claim says something else."""
    base, state = it.agreements[2].state, it.agreements[3].state
    claims = it.make_claims(3, base, [1024, 2048, 3072], **changes)
    return it.agreement_json(claims, it.make_votes(claims, 3, base, state), 3)


def spoil_claim(run: Run, value: dict[str, Any]) -> None:
    raw = bytearray(base64.b64decode(value["claims"][0]["signatures"][0]["sig"]))
    raw[0] ^= 1
    value["claims"][0]["signatures"][0]["sig"] = base64.b64encode(raw).decode()


change_agreement("the votes of a minority", lambda run, value: value.update(votes=value["votes"][:1]))
change_agreement("one member's vote counted twice", lambda run, value: value["votes"].append(value["votes"][0]))
change_agreement("one member's claim counted twice", lambda run, value: value["claims"].append(value["claims"][0]))
change_agreement("no votes at all", lambda run, value: value.update(votes=[]))
change_agreement("a claim of another run", lambda run, value: other_claims(run, run="9" * 64))
change_agreement("a claim of another round", lambda run, value: other_claims(run, round=2))
change_agreement("a claim with a broken signature", spoil_claim)
change_agreement(
    "a certificate by another host",
    lambda run, value: value["certificates"].update(
        {run.peers[0].peer_id: run.certificate(run.peers[0], fixed_ed25519("another host"))}
    ),
)
change_agreement(
    "another member's certificate",
    lambda run, value: value["certificates"].update({run.peers[0].peer_id: run.certificate(run.peers[1])}),
)
change_agreement("no certificates", lambda run, value: value.update(certificates={}))
change_agreement(
    "a weight above the claimed tokens", lambda run, value: value["weights"].update({run.peers[0].peer_id: 1025})
)
change_agreement(
    "a weight that does not follow from the round before",
    lambda run, value: value["weights"].update({run.peers[0].peer_id: 1023}),
)
change_agreement("the agreement of the round before", lambda run, value: run.agreements[2].to_json())
change_agreement("a list where the agreement's claims belong", lambda run, value: {"claims": {}, "votes": {}})


@CASES.add("no agreement", HOST)
def _(run: Run, step: Path) -> None:
    edit_info(step, agreement=None)
    run.resign(step)


@CASES.add("a parent that no one has", HOST)
def _(run: Run, step: Path) -> None:
    edit_info(step, parent="0" * 64)
    run.resign(step)


@CASES.add("a parent of another run", HOST)
def _(run: Run, step: Path) -> None:
    other = build_run(run.folder / "other", rounds=2, name="other")
    shutil.rmtree(run.step(2))
    shutil.copytree(other.step(2), run.step(2))
    edit_info(step, parent=other.payloads[2])
    run.resign(step)


@CASES.add("a parent of a later round", HOST)
def _(run: Run, step: Path) -> Path:
    edit_info(run.step(2), parent=run.payloads[3])
    run.resign(run.step(2))
    return run.step(2)


@CASES.add("a parent from which the members did not work", HOST)
def _(run: Run, step: Path) -> None:
    fork = run.copy(run.folder / "fork")
    fork.salt = " fork"
    shutil.copytree(run.checkpoints, fork.checkpoints)
    shutil.rmtree(fork.step(2))
    del fork.payloads[2], fork.payloads[3]
    fork.round(2)
    shutil.rmtree(run.step(2))
    shutil.copytree(fork.step(2), run.step(2))
    edit_info(step, parent=fork.payloads[2])
    run.resign(step)


@CASES.add("genesis with another state than the run card's", HOST)
def _(run: Run, step: Path) -> Path:
    genesis = run.step(0)
    (genesis / "model/model.safetensors").write_bytes(safetensors_bytes(GOOD))
    edit_info(genesis, state=run.state_of(genesis, 0).model_dump(mode="json"))
    run.resign(genesis)
    return genesis


@CASES.add("a contributor named with more than was agreed", HOST)
def _(run: Run, step: Path) -> None:
    contributors = info_of(step)["contributors"]
    contributors[0]["tokens"] += 1
    edit_info(step, contributors=contributors)
    run.resign(step)


@CASES.add("a contributor who took no part", HOST)
def _(run: Run, step: Path) -> None:
    contributors = info_of(step)["contributors"]
    contributors[0]["peer_id"] = "12D3KooW" + "A" * 44
    edit_info(step, contributors=contributors)
    run.resign(step)


@CASES.add("a contributor named twice", HOST)
def _(run: Run, step: Path) -> None:
    edit_info(step, contributors=info_of(step)["contributors"] * 2)
    checkpoint.sign_checkpoint(step, run.root)


def _measured(run: Run, step: Path, round: int, **changed: Any) -> None:
    """A member's word on the held-out loss, put beside other figures, or of another round."""
    info = info_of(step)
    figures = {"held_out_loss": 2.5, "sequences": 4, "tokens": 64}
    word = Measured(run=info["run"], round=round, state=StateManifest.model_validate(info["state"]).digest, **figures)
    signed = canonical.loads(word.sign(PeerIdentity(fixed_ed25519("measurer"))).data, max_bytes=10_000)
    edit_info(step, evaluation=figures | changed | {"measured": signed})
    run.resign(step)


@CASES.add("a better held-out loss than the member has measured", HOST)
def _(run: Run, step: Path) -> None:
    _measured(run, step, 3, held_out_loss=1.0)


@CASES.add("a held-out loss that a member measured in another round", HOST)
def _(run: Run, step: Path) -> None:
    _measured(run, step, 2)


@CASES.add("the run card of another run", HOST)
def _(run: Run, step: Path) -> None:
    other = build_run(run.folder / "other", rounds=0, name="other")
    edit_info(step, run_card=other.card_envelope)
    run.resign(step)


@CASES.add("a run card whose spec was changed", HOST)
def _(run: Run, step: Path) -> None:
    spec = run.card.spec.model_copy(update={"run": run.card.spec.run.model_copy(update={"seed": 1})})
    card = run.card.model_copy(update={"spec": spec})
    edit_info(step, run_card=json.loads(card.sign(run.root).to_bytes()))
    run.resign(step)


@CASES.add("a run card whose ledger key is another run's", HOST)
def _(run: Run, step: Path) -> None:
    key = note.verifier_key("potluck/other/0123456789abcdef", run.ledger_key.public_key())
    card = run.card.model_copy(update={"ledger_key": key})
    edit_info(step, run_card=json.loads(card.sign(run.root).to_bytes()))
    run.resign(step)


def invent_round(run: Run, rounds: Path) -> None:
    """The last round as a member would have made it that the host invented; the checkpoint shows the true one."""
    other = run.copy(run.folder / "other")
    other.peers, other.salt = [PeerIdentity(fixed_ed25519("invented"))], " other"
    other.round(5, publish=False)
    put_round(run, 5).write_bytes(other.agreements[5].to_bytes())


CASES.add("another agreement of a round than its checkpoint shows", HOST)(with_rounds(invent_round))
