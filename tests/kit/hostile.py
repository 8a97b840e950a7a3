"""Hostile checkpoint folders and receipts: what was done to a valid one, by whom. Used by test_hostile_checkpoints.

Each case changes a copy of a small real run. "anyone" has the folder and no key; "another key" signs with a key of its
own; "the host" has the run's own keys, and is dishonest or broken.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from protocol import canonical, checkpoint, merkle, note
from protocol.checkpoint import LedgerState
from protocol.envelope import pae
from protocol.keys import PeerIdentity, public_pem
from tests.kit.builders import Run, build_run, edit_info, fixed_ed25519, fixed_root_key, safetensors_bytes

ANYONE, OTHER_KEY, HOST = "anyone", "another key", "the host"
NAN, INFINITY = float("nan"), float("inf")
EMBED, NORM = "model.embed.weight", "model.norm.weight"


@dataclasses.dataclass(frozen=True)
class Case:
    """One hostile checkpoint folder or receipt."""

    what: str
    by: str
    make: Callable[[Run, Path], Any]  # (run, the folder step-000003 or the receipt file)


CHECKPOINTS: list[Case] = []
RECEIPTS: list[Case] = []


def on_checkpoint(what: str, by: str) -> Callable[[Callable[[Run, Path], Any]], Callable[[Run, Path], Any]]:
    def register(make: Callable[[Run, Path], Any]) -> Callable[[Run, Path], Any]:
        CHECKPOINTS.append(Case(what, by, make))
        return make

    return register


def on_receipt(what: str, by: str) -> Callable[[Callable[[Run, Path], Any]], Callable[[Run, Path], Any]]:
    def register(make: Callable[[Run, Path], Any]) -> Callable[[Run, Path], Any]:
        RECEIPTS.append(Case(what, by, make))
        return make

    return register


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def info_of(step: Path) -> dict[str, Any]:
    return json.loads((step / "model/checkpoint.json").read_bytes())


def values_of(count: int, value: float = 0.5) -> list[float]:
    return [value] * count


def sparse(run: Run) -> Path:
    """In place of the run: five rounds, checkpoints of genesis and the last one, the agreements in `rounds/`; returns the last."""
    shutil.rmtree(run.checkpoints)
    run.__dict__.update(build_run(run.folder, rounds=5, every=5).__dict__)
    for number in run.agreements:
        put_round(run, number)
    return run.step(5)


def put_round(run: Run, number: int) -> Path:
    path = run.checkpoints / checkpoint.ROUNDS / checkpoint.round_name(number)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(run.agreements[number].to_bytes())
    return path


# --- anyone who can write to the folder -------------------------------------------------------------------------------


@on_checkpoint("one bit of the weights flipped", ANYONE)
def _(run: Run, step: Path) -> None:
    flip(step / "model/model.safetensors", -1)


@on_checkpoint("one bit of config.json flipped", ANYONE)
def _(run: Run, step: Path) -> None:
    flip(step / "model/config.json", 3)


@on_checkpoint("held-out loss in checkpoint.json improved", ANYONE)
def _(run: Run, step: Path) -> None:
    edit_info(step, evaluation={"held_out_loss": 1.0, "sequences": 4, "tokens": 64})


@on_checkpoint("a file added", ANYONE)
def _(run: Run, step: Path) -> None:
    (step / "model/notes.txt").write_text("hello\n")


@on_checkpoint("a file removed", ANYONE)
def _(run: Run, step: Path) -> None:
    (step / "model/LICENSE").unlink()


@on_checkpoint("a file renamed", ANYONE)
def _(run: Run, step: Path) -> None:
    (step / "model/LICENSE").rename(step / "model/LICENCE")


@on_checkpoint("two files swapped", ANYONE)
def _(run: Run, step: Path) -> None:
    model = step / "model"
    (model / "LICENSE").rename(model / "x")
    (model / "README.md").rename(model / "LICENSE")
    (model / "x").rename(model / "README.md")


@on_checkpoint("a file replaced by a link to its copy", ANYONE)
def _(run: Run, step: Path) -> None:
    shutil.move(step / "model/README.md", run.folder / "README.md")
    (step / "model/README.md").symlink_to(run.folder / "README.md")


@on_checkpoint("a folder replaced by a link to its copy", ANYONE)
def _(run: Run, step: Path) -> None:
    shutil.move(step / "model/ledger", run.folder / "ledger")
    (step / "model/ledger").symlink_to(run.folder / "ledger")


@on_checkpoint("an empty folder added", ANYONE)
def _(run: Run, step: Path) -> None:
    (step / "model/extra").mkdir()


@on_checkpoint("a hidden .git folder added", ANYONE)
def _(run: Run, step: Path) -> None:
    (step / "model/.git").mkdir()
    (step / "model/.git/config").write_text("[core]\n")


@on_checkpoint("a named pipe added", ANYONE)
def _(run: Run, step: Path) -> None:
    os.mkfifo(step / "model/pipe")


@on_checkpoint("a file added beside model/", ANYONE)
def _(run: Run, step: Path) -> None:
    (step / "pytorch_model.bin").write_bytes(b"\x80\x04.")


@on_checkpoint("the signature removed", ANYONE)
def _(run: Run, step: Path) -> None:
    (step / "model.sig").unlink()


@on_checkpoint("the log proof removed", ANYONE)
def _(run: Run, step: Path) -> None:
    (step / "model.tlog-proof").unlink()


@on_checkpoint("checkpoint.json removed", ANYONE)
def _(run: Run, step: Path) -> None:
    (step / "model/checkpoint.json").unlink()


@on_checkpoint("the signature of another checkpoint of the run", ANYONE)
def _(run: Run, step: Path) -> None:
    shutil.copy(run.step(2) / "model.sig", step / "model.sig")


@on_checkpoint("one bit of the signature flipped", ANYONE)
def _(run: Run, step: Path) -> None:
    bundle = json.loads((step / "model.sig").read_bytes())
    raw = bytearray(base64.b64decode(bundle["dsseEnvelope"]["signatures"][0]["sig"]))
    raw[-1] ^= 1
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(raw).decode()
    (step / "model.sig").write_text(json.dumps(bundle))


@on_checkpoint("a JSON key twice in model.sig", ANYONE)
def _(run: Run, step: Path) -> None:
    text = (step / "model.sig").read_text()
    (step / "model.sig").write_text('{"mediaType": "application/x",' + text[1:])


@on_checkpoint("model.sig of 17 MB", ANYONE)
def _(run: Run, step: Path) -> None:
    text = (step / "model.sig").read_text()
    (step / "model.sig").write_text(text + " " * (17 << 20))


@on_checkpoint("the log proof of another checkpoint of the run", ANYONE)
def _(run: Run, step: Path) -> None:
    shutil.copy(run.step(2) / "model.tlog-proof", step / "model.tlog-proof")


@on_checkpoint("one bit of a hash in the log proof flipped", ANYONE)
def _(run: Run, step: Path) -> None:
    lines = (step / "model.tlog-proof").read_text().split("\n")
    raw = bytearray(base64.b64decode(lines[2]))
    raw[0] ^= 1
    lines[2] = base64.b64encode(raw).decode()
    (step / "model.tlog-proof").write_text("\n".join(lines))


@on_checkpoint("the log proof cut short", ANYONE)
def _(run: Run, step: Path) -> None:
    lines = (step / "model.tlog-proof").read_text().split("\n")
    del lines[2]
    (step / "model.tlog-proof").write_text("\n".join(lines))


@on_checkpoint("a log proof whose ledger head another key signed", ANYONE)
def _(run: Run, step: Path) -> None:
    run.ledger_key = fixed_ed25519("someone else's ledger")
    checkpoint.write_log_proof(step, run.proof(run.tree.size - 1))


@on_checkpoint("a log proof of 1 MB", ANYONE)
def _(run: Run, step: Path) -> None:
    path = step / "model.tlog-proof"
    path.write_text(path.read_text() + "\n" * (1 << 20))


@on_checkpoint("the folder renamed to another round's", ANYONE)
def _(run: Run, step: Path) -> Path:
    return step.rename(step.with_name("step-000009"))


@on_checkpoint("one bit of an ancestor's weights flipped", ANYONE)
def _(run: Run, step: Path) -> None:
    flip(run.step(1) / "model/model.safetensors", -1)


@on_checkpoint("an ancestor removed", ANYONE)
def _(run: Run, step: Path) -> None:
    shutil.rmtree(run.step(1))


@on_checkpoint("an ancestor replaced by a link to its copy", ANYONE)
def _(run: Run, step: Path) -> None:
    shutil.move(run.step(2), run.folder / "copy")
    run.step(2).symlink_to(run.folder / "copy")


@on_checkpoint("a maintainer's signature moved here from another checkpoint", ANYONE)
def _(run: Run, step: Path) -> None:
    path = checkpoint.add_maintainer_signature(run.step(2), fixed_root_key(7))
    shutil.copytree(path.parent, step / "signatures")


@on_checkpoint("an ancestor's log proof removed", ANYONE)
def _(run: Run, step: Path) -> None:
    (run.step(1) / "model.tlog-proof").unlink()


def change_rounds(what: str, by: str, change: Callable[[Run, Path], Any]) -> None:
    """A case in which most rounds have no checkpoint, and their agreements in `rounds/` are not what they should be."""

    def make(run: Run, step: Path) -> Path:
        last = sparse(run)
        change(run, run.checkpoints / checkpoint.ROUNDS)
        return last

    on_checkpoint(what, by)(make)


def cut_round(run: Run, rounds: Path) -> None:
    path = rounds / checkpoint.round_name(2)
    path.write_bytes(path.read_bytes()[:100])


def swap_rounds(run: Run, rounds: Path) -> None:
    for number, other in ((2, 3), (3, 2)):
        (rounds / checkpoint.round_name(number)).write_bytes(run.agreements[other].to_bytes())


def link_round(run: Run, rounds: Path) -> None:
    shutil.move(rounds / checkpoint.round_name(2), run.folder / "round.json")
    (rounds / checkpoint.round_name(2)).symlink_to(run.folder / "round.json")


def link_rounds(run: Run, rounds: Path) -> None:
    shutil.move(rounds, run.folder / "rounds")
    rounds.symlink_to(run.folder / "rounds")


def swap_published(run: Run, rounds: Path) -> None:
    (rounds / checkpoint.round_name(5)).write_bytes(run.agreements[4].to_bytes())


change_rounds("rounds/ left out", ANYONE, lambda run, rounds: shutil.rmtree(rounds))
change_rounds(
    "the agreement of the newest round between checkpoints left out",
    ANYONE,
    lambda run, rounds: (rounds / checkpoint.round_name(4)).unlink(),
)
change_rounds(
    "the agreement of a round in the middle left out",
    ANYONE,
    lambda run, rounds: (rounds / checkpoint.round_name(3)).unlink(),
)
change_rounds("the agreement of a round cut short", ANYONE, cut_round)
change_rounds("the agreements of two rounds swapped", ANYONE, swap_rounds)
change_rounds("the agreement of a round replaced by a link to its copy", ANYONE, link_round)
change_rounds("rounds/ replaced by a link to its copy", ANYONE, link_rounds)
change_rounds("another round's agreement where a checkpoint's own belongs", ANYONE, swap_published)


# --- someone with a key of their own ----------------------------------------------------------------------------------


@on_checkpoint("signed again with another key", OTHER_KEY)
def _(run: Run, step: Path) -> None:
    checkpoint.sign_checkpoint(step, fixed_root_key(9))


@on_checkpoint("signed again with another key, which checkpoint.json names", OTHER_KEY)
def _(run: Run, step: Path) -> None:
    edit_info(step, root_public_key=public_pem(fixed_root_key(9).public_key).decode())
    checkpoint.sign_checkpoint(step, fixed_root_key(9))


@on_checkpoint("NaN weights, run card and folder signed with another key", OTHER_KEY)
def _(run: Run, step: Path) -> None:
    other = fixed_root_key(9)
    tensors = {EMBED: ((8, 4), [*values_of(31), NAN]), NORM: ((4,), values_of(4))}
    (step / "model/model.safetensors").write_bytes(safetensors_bytes(tensors))
    pem = public_pem(other.public_key).decode()
    edit_info(step, root_public_key=pem, run_card=json.loads(run.card.sign(other).to_bytes()))
    checkpoint.sign_checkpoint(step, other)


@on_checkpoint("a whole run of the same name by another host", OTHER_KEY)
def _(run: Run, step: Path) -> None:
    shutil.rmtree(run.checkpoints)
    build_run(run.folder, keys=9)


# --- the host: signed and logged with the run's own keys --------------------------------------------------------------


def reweigh(what: str, tensors: dict[str, tuple[tuple[int, ...], list[float]]], **header: Any) -> None:
    """A case in which the host publishes other weights."""

    def make(run: Run, step: Path) -> None:
        (step / "model/model.safetensors").write_bytes(safetensors_bytes(tensors, **header))
        run.resign(step)

    on_checkpoint(what, HOST)(make)


GOOD = {EMBED: ((8, 4), values_of(32)), NORM: ((4,), values_of(4))}
reweigh("other weights than the members agreed on", GOOD)
reweigh("a NaN in the weights", GOOD | {NORM: ((4,), [*values_of(3), NAN])})
reweigh("an infinity in the weights", GOOD | {EMBED: ((8, 4), [-INFINITY, *values_of(31)]), NORM: ((4,), values_of(4))})
reweigh("a tensor that is not part of the state", GOOD | {"model.extra": ((2,), values_of(2))})
reweigh("a tensor of another shape", GOOD | {EMBED: ((4, 8), values_of(32))})
reweigh("a tensor left out", {NORM: ((4,), values_of(4))})
reweigh("a tensor of another type", GOOD, **{NORM: {"dtype": "F16", "shape": [8], "data_offsets": [128, 144]}})
reweigh("two tensors over the same bytes", GOOD, **{NORM: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}})
reweigh(
    "a tensor beyond the end of the file", GOOD, **{NORM: {"dtype": "F32", "shape": [8], "data_offsets": [128, 160]}}
)
reweigh(
    "a tensor whose bytes are not its shape's",
    GOOD,
    **{NORM: {"dtype": "F32", "shape": [5], "data_offsets": [128, 144]}},
)


@on_checkpoint("the safetensors header cut short", HOST)
def _(run: Run, step: Path) -> None:
    path = step / "model/model.safetensors"
    path.write_bytes(path.read_bytes()[:40])
    run.resign(step)


@on_checkpoint("a tensor's name twice in the safetensors header", HOST)
def _(run: Run, step: Path) -> None:
    data = safetensors_bytes(GOOD)
    header = data[8 : 8 + struct.unpack("<Q", data[:8])[0]]
    twice = header[:-1] + b', "' + NORM.encode() + b'": {"dtype": "F32", "shape": [4], "data_offsets": [128, 144]}}'
    (step / "model/model.safetensors").write_bytes(len(twice).to_bytes(8, "little") + twice + data[8 + len(header) :])
    run.resign(step)


@on_checkpoint("bytes after the last tensor", HOST)
def _(run: Run, step: Path) -> None:
    with open(step / "model/model.safetensors", "ab") as file:
        file.write(b"tail")
    run.resign(step)


@on_checkpoint("pickled weights beside the agreed ones", HOST)
def _(run: Run, step: Path) -> None:
    (step / "model/pytorch_model.bin").write_bytes(b"\x80\x04.")
    run.resign(step)


@on_checkpoint("an adapter_config.json that names another base model", HOST)
def _(run: Run, step: Path) -> None:
    (step / "model/adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    run.resign(step)


@on_checkpoint("an adapter beside the agreed weights", HOST)
def _(run: Run, step: Path) -> None:
    (step / "model/adapter_model.safetensors").write_bytes(safetensors_bytes(GOOD))
    run.resign(step)


@on_checkpoint("a shard index beside the one weight file", HOST)
def _(run: Run, step: Path) -> None:
    (step / "model/model.safetensors.index.json").write_text("{}")
    run.resign(step)


@on_checkpoint("shards whose index names the wrong one", HOST)
def _(run: Run, step: Path) -> None:
    model = step / "model"
    (model / "model.safetensors").unlink()
    (model / "model-00001-of-00002.safetensors").write_bytes(safetensors_bytes({EMBED: GOOD[EMBED]}))
    (model / "model-00002-of-00002.safetensors").write_bytes(safetensors_bytes({NORM: GOOD[NORM]}))
    weight_map = dict.fromkeys((EMBED, NORM), "model-00001-of-00002.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    run.resign(step)


@on_checkpoint("config.json left out", HOST)
def _(run: Run, step: Path) -> None:
    (step / "model/config.json").unlink()
    run.resign(step)


@on_checkpoint("checkpoint.json names the state of other weights", HOST)
def _(run: Run, step: Path) -> None:
    (step / "model/model.safetensors").write_bytes(safetensors_bytes(GOOD))
    edit_info(step, state=run.state_of(step, 3).model_dump(mode="json"))
    run.resign(step)


@on_checkpoint("checkpoint.json of 17 MB", HOST)
def _(run: Run, step: Path) -> None:
    with open(step / "model/checkpoint.json", "ab") as file:
        file.write(b" " * (17 << 20))
    checkpoint.sign_checkpoint(step, run.root)


@on_checkpoint("a JSON key twice in checkpoint.json", HOST)
def _(run: Run, step: Path) -> None:
    path = step / "model/checkpoint.json"
    path.write_bytes(b'{"round":4,' + path.read_bytes()[1:])
    checkpoint.sign_checkpoint(step, run.root)


@on_checkpoint("checkpoint.json nested 100,000 levels deep", HOST)
def _(run: Run, step: Path) -> None:
    (step / "model/checkpoint.json").write_bytes(b'{"agreement":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    checkpoint.sign_checkpoint(step, run.root)


@on_checkpoint("checkpoint.json not in canonical form", HOST)
def _(run: Run, step: Path) -> None:
    path = step / "model/checkpoint.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()), indent=1))
    checkpoint.sign_checkpoint(step, run.root)


@on_checkpoint("an unknown key in checkpoint.json", HOST)
def _(run: Run, step: Path) -> None:
    edit_info(step, bonus=1)
    checkpoint.sign_checkpoint(step, run.root)


@on_checkpoint("signed, and never entered in the ledger", HOST)
def _(run: Run, step: Path) -> Path:
    (run.step(1) / "model/README.md").write_text("Another model card.\n")
    checkpoint.sign_checkpoint(run.step(1), run.root)
    return run.step(1)


def sign_list(run: Run, step: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Sign a file list that the model-signing library would not have made."""
    bundle = json.loads((step / "model.sig").read_bytes())
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    change(statement)
    digests = b"".join(bytes.fromhex(item["digest"]) for item in statement["predicate"]["resources"])
    statement["subject"][0]["digest"]["sha256"] = canonical.sha256_hex(digests)
    payload = json.dumps(statement).encode()
    signature = run.root.sign(pae("application/vnd.in-toto+json", payload))
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    (step / "model.sig").write_text(json.dumps(bundle))


@on_checkpoint("a path with .. in the signed file list", HOST)
def _(run: Run, step: Path) -> None:
    def change(statement: dict[str, Any]) -> None:
        extra = {"name": "../model.tlog-proof", "algorithm": "sha256"}
        extra["digest"] = canonical.sha256_hex((step / "model.tlog-proof").read_bytes())
        statement["predicate"]["resources"].append(extra)

    sign_list(run, step, change)


@on_checkpoint("an absolute path in the signed file list", HOST)
def _(run: Run, step: Path) -> None:
    def change(statement: dict[str, Any]) -> None:
        extra = {"name": "/etc/hostname", "algorithm": "sha256", "digest": "0" * 64}
        statement["predicate"]["resources"].append(extra)

    sign_list(run, step, change)


@on_checkpoint("a file twice in the signed file list", HOST)
def _(run: Run, step: Path) -> None:
    sign_list(
        run, step, lambda statement: statement["predicate"]["resources"].append(statement["predicate"]["resources"][0])
    )


@on_checkpoint("a signature that ignores some paths", HOST)
def _(run: Run, step: Path) -> None:
    (step / "model/.gitignore").write_text("secret\n")
    sign_list(run, step, lambda statement: statement["predicate"]["serialization"].update(ignore_paths=[".gitignore"]))


@on_checkpoint("a signature that allows links", HOST)
def _(run: Run, step: Path) -> None:
    def change(statement: dict[str, Any]) -> None:
        statement["predicate"]["serialization"]["allow_symlinks"] = True

    sign_list(run, step, change)


def change_agreement(what: str, change: Callable[[Run, dict[str, Any]], Any]) -> None:
    """A case in which the host shows another agreement of round 3."""

    def make(run: Run, step: Path) -> None:
        value = info_of(step)["agreement"]
        value = change(run, value) or value
        edit_info(step, agreement=value)
        run.resign(step)

    on_checkpoint(what, HOST)(make)


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


@on_checkpoint("no agreement", HOST)
def _(run: Run, step: Path) -> None:
    edit_info(step, agreement=None)
    run.resign(step)


@on_checkpoint("a parent that no one has", HOST)
def _(run: Run, step: Path) -> None:
    edit_info(step, parent="0" * 64)
    run.resign(step)


@on_checkpoint("a parent of another run", HOST)
def _(run: Run, step: Path) -> None:
    other = build_run(run.folder / "other", rounds=2, name="other")
    shutil.rmtree(run.step(2))
    shutil.copytree(other.step(2), run.step(2))
    edit_info(step, parent=other.payloads[2])
    run.resign(step)


@on_checkpoint("a parent of a later round", HOST)
def _(run: Run, step: Path) -> Path:
    edit_info(run.step(2), parent=run.payloads[3])
    run.resign(run.step(2))
    return run.step(2)


@on_checkpoint("a parent from which the members did not work", HOST)
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


@on_checkpoint("genesis with another state than the run card's", HOST)
def _(run: Run, step: Path) -> Path:
    genesis = run.step(0)
    (genesis / "model/model.safetensors").write_bytes(safetensors_bytes(GOOD))
    edit_info(genesis, state=run.state_of(genesis, 0).model_dump(mode="json"))
    run.resign(genesis)
    return genesis


@on_checkpoint("a contributor named with more than was agreed", HOST)
def _(run: Run, step: Path) -> None:
    contributors = info_of(step)["contributors"]
    contributors[0]["tokens"] += 1
    edit_info(step, contributors=contributors)
    run.resign(step)


@on_checkpoint("a contributor who took no part", HOST)
def _(run: Run, step: Path) -> None:
    contributors = info_of(step)["contributors"]
    contributors[0]["peer_id"] = "12D3KooW" + "A" * 44
    edit_info(step, contributors=contributors)
    run.resign(step)


@on_checkpoint("a contributor named twice", HOST)
def _(run: Run, step: Path) -> None:
    edit_info(step, contributors=info_of(step)["contributors"] * 2)
    checkpoint.sign_checkpoint(step, run.root)


@on_checkpoint("the run card of another run", HOST)
def _(run: Run, step: Path) -> None:
    other = build_run(run.folder / "other", rounds=0, name="other")
    edit_info(step, run_card=other.card_envelope)
    run.resign(step)


@on_checkpoint("a run card whose spec was changed", HOST)
def _(run: Run, step: Path) -> None:
    spec = run.card.spec.model_copy(update={"run": run.card.spec.run.model_copy(update={"seed": 1})})
    card = run.card.model_copy(update={"spec": spec})
    edit_info(step, run_card=json.loads(card.sign(run.root).to_bytes()))
    run.resign(step)


@on_checkpoint("a run card whose ledger key is another run's", HOST)
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


change_rounds("another agreement of a round than its checkpoint shows", HOST, invent_round)


def set_ledger(run: Run, step: Path, tree: merkle.Tree, head: note.LedgerHead, head_note: str) -> None:
    parent = checkpoint.read_info(run.step(2)).ledger
    edit_info(step, ledger=LedgerState.of(tree, head, parent).model_dump(mode="json"))
    (step / "model/ledger/checkpoint").write_text(head_note)


@on_checkpoint("a ledger head that another key signed", HOST)
def _(run: Run, step: Path) -> None:
    head = run.head()
    set_ledger(run, step, run.tree, head, note.sign_head(head, fixed_ed25519("someone else's ledger")))
    run.resign(step)


@on_checkpoint("a ledger head with a broken signature", HOST)
def _(run: Run, step: Path) -> None:
    path = step / "model/ledger/checkpoint"
    path.write_text(path.read_text().replace("\n13\n", "\n12\n"))
    run.resign(step)


@on_checkpoint("a ledger head other than checkpoint.json says", HOST)
def _(run: Run, step: Path) -> None:
    shutil.copy(run.step(2) / "model/ledger/checkpoint", step / "model/ledger/checkpoint")
    run.resign(step)


@on_checkpoint("a ledger older than the parent's", HOST)
def _(run: Run, step: Path) -> None:
    head = note.LedgerHead(run.head().origin, 3, run.tree.root_at(3))
    set_ledger(run, step, run.tree, head, note.sign_head(head, run.ledger_key))
    run.resign(step)


@on_checkpoint("a ledger that does not yet hold the parent", HOST)
def _(run: Run, step: Path) -> None:
    size = checkpoint.read_info(run.step(2)).ledger.size
    head = note.LedgerHead(run.head().origin, size, run.tree.root_at(size))
    set_ledger(run, step, run.tree, head, note.sign_head(head, run.ledger_key))
    run.resign(step)


@on_checkpoint("a ledger in which an old credit was rewritten", HOST)
def _(run: Run, step: Path) -> None:
    run.entries[2] = run.entries[2].model_copy(update={"tokens": 1})
    run.tree = merkle.Tree(merkle.leaf_hash(entry.to_bytes()) for entry in run.entries)
    head = run.head()
    set_ledger(run, step, run.tree, head, note.sign_head(head, run.ledger_key))
    run.resign(step)


@on_checkpoint("a ledger without its consistency proof", HOST)
def _(run: Run, step: Path) -> None:
    edit_info(step, ledger=info_of(step)["ledger"] | {"consistency": []})
    run.resign(step)


@on_checkpoint("a log proof for a leaf older than the ledger inside", HOST)
def _(run: Run, step: Path) -> None:
    checkpoint.sign_checkpoint(step, run.root)
    run.append(checkpoint.entry(step))
    index = run.tree.size - 1
    head = run.head()
    set_ledger(run, step, run.tree, head, note.sign_head(head, run.ledger_key))
    # The folder names a head that already holds its own leaf: impossible without a second signature, so sign again.
    checkpoint.sign_checkpoint(step, run.root)
    run.entries[index] = checkpoint.entry(step)
    run.tree = merkle.Tree(merkle.leaf_hash(entry.to_bytes()) for entry in run.entries)
    checkpoint.write_log_proof(step, run.proof(index))


# --- receipts ---------------------------------------------------------------------------------------------------------


def edit_receipt(path: Path, **changes: Any) -> None:
    path.write_bytes(canonical.dumps(json.loads(path.read_bytes()) | changes))


@on_receipt("more tokens than were credited", ANYONE)
def _(run: Run, path: Path) -> None:
    edit_receipt(path, entry=run.entries[2].to_json() | {"tokens": 999_999})


@on_receipt("credit of another peer", ANYONE)
def _(run: Run, path: Path) -> None:
    edit_receipt(path, proof=run.proof(3).to_text())


@on_receipt("one bit of a hash in the proof flipped", ANYONE)
def _(run: Run, path: Path) -> None:
    proof = run.proof(6)
    spoiled = bytes([proof.hashes[0][0] ^ 1]) + proof.hashes[0][1:]
    changed = dataclasses.replace(proof, hashes=(spoiled, *proof.hashes[1:]))
    edit_receipt(path, entry=run.entries[6].to_json(), proof=changed.to_text())


@on_receipt("a tree size changed in the signed ledger head", ANYONE)
def _(run: Run, path: Path) -> None:
    edit_receipt(path, proof=run.proof(2).to_text().replace(f"\n{run.tree.size}\n", f"\n{run.tree.size + 1}\n"))


@on_receipt("a ledger head that another key signed", ANYONE)
def _(run: Run, path: Path) -> None:
    run.ledger_key = fixed_ed25519("someone else's ledger")
    edit_receipt(path, proof=run.proof(2).to_text())


@on_receipt("an entry of another run", ANYONE)
def _(run: Run, path: Path) -> None:
    edit_receipt(path, entry=run.entries[2].to_json() | {"run": "9" * 64})


@on_receipt("an entry of an unknown type", ANYONE)
def _(run: Run, path: Path) -> None:
    edit_receipt(path, entry={"type": "gift", "run": run.spec.digest})


@on_receipt("an entry with an unknown key", ANYONE)
def _(run: Run, path: Path) -> None:
    edit_receipt(path, entry=run.entries[2].to_json() | {"bonus": 1})


@on_receipt("a JSON key twice", ANYONE)
def _(run: Run, path: Path) -> None:
    path.write_bytes(b'{"proof":"",' + path.read_bytes()[1:])


@on_receipt("cut short", ANYONE)
def _(run: Run, path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@on_receipt("2 MB long", ANYONE)
def _(run: Run, path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" " * (2 << 20))


@on_receipt("without a proof", ANYONE)
def _(run: Run, path: Path) -> None:
    value = json.loads(path.read_bytes())
    del value["proof"]
    path.write_bytes(canonical.dumps(value))


@on_receipt("a link to a receipt", ANYONE)
def _(run: Run, path: Path) -> None:
    shutil.move(path, run.folder / "elsewhere.json")
    path.symlink_to(run.folder / "elsewhere.json")


@on_receipt("the run card signed with another key", OTHER_KEY)
def _(run: Run, path: Path) -> None:
    edit_receipt(path, run_card=json.loads(run.card.sign(fixed_root_key(9)).to_bytes()))


@on_receipt("a root key that signed nothing here", OTHER_KEY)
def _(run: Run, path: Path) -> None:
    edit_receipt(path, root_public_key="-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")


@on_receipt("a whole run of the same name by another host", OTHER_KEY)
def _(run: Run, path: Path) -> None:
    path.write_bytes(build_run(run.folder / "other", rounds=1, keys=9).receipt(2))


@on_receipt("a run card whose ledger key is another run's", HOST)
def _(run: Run, path: Path) -> None:
    key = note.verifier_key("potluck/other/0123456789abcdef", run.ledger_key.public_key())
    card = run.card.model_copy(update={"ledger_key": key})
    edit_receipt(path, run_card=json.loads(card.sign(run.root).to_bytes()))
