"""From run.toml and a folder to a run that can be served: pinned, signed, its genesis in the ledger. `host` calls it.

The first start looks at the model, digests the data, pins the run spec, builds the genesis, evaluates it, and signs it last
of all. A later start finds all that, checks that run.toml still describes the same run, and goes on. A first start that
failed or was killed begins again, since nobody can have joined a run without a genesis.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization

from coordinator import base_model
from coordinator.checkpoints import Checkpoints
from coordinator.evaluator import Evaluator
from coordinator.ledger import Ledger
from coordinator.run_folder import RunFolder
from coordinator.store import open_store
from peer.training.data import Dataset, build_dataset, check_data
from peer.training.data_file import check_file
from peer.training.genesis import build_genesis, load_state, prepare_model
from peer.training.model import load_tokenizer
from peer.training.model_check import ModelFacts, check_model, check_plan
from peer.training.quiet import no_progress_bars
from protocol import canonical, checkpoint, disk, note
from protocol.checkpoint import step_name
from protocol.disk import write_file
from protocol.errors import InputError, PotluckError, RunSpecError
from protocol.files import file_sha256
from protocol.keys import RootKey
from protocol.ledger_entry import RunEntry
from protocol.run_card import MAX_RUN_CARD_BYTES, RunCard
from protocol.run_spec import RunConfig, RunSpec
from protocol.state import StateManifest
from protocol.trust import trusted_roots
from protocol.verify import verify_checkpoint

logger = logging.getLogger(__name__)

MAX_NAME_CHARS = 200
SPARE_BYTES = 4 << 20  # for ledger, keys, plot and the like
Tell = Callable[[str], None]  # one line for the host's screen


@dataclass(frozen=True)
class Run:
    """A run that is ready to be served."""

    config: RunConfig
    card: RunCard
    card_bytes: bytes
    root: RootKey
    data: Path
    genesis: Path  # the folder step-000000
    genesis_state: StateManifest
    base_model: Path | None  # LoRA only
    ledger: Ledger
    checkpoints: Checkpoints
    evaluator: Evaluator


def open_run(config_path: Path, config: RunConfig, folder: RunFolder, tell: Tell = logger.info) -> Run:
    """Make the run ready, or go on with the one in the folder, which the caller has locked.

    Args:
        tell: hears what the model is, before it is built.

    Raises:
        RunSpecError: run.toml describes another run than the one in the folder.
        InputError: the model or the data cannot be used, the folder was damaged, or the disk is full.
        NetworkError: the model's hub cannot be reached.
    """
    data = config_path.parent / config.data.path
    check_file(data)
    data = data.resolve()
    if _is_started(folder):
        return _resume(config_path, config, folder, data)
    return _first_start(config_path, config, folder, data, tell)


def _is_started(folder: RunFolder) -> bool:
    """Whether the genesis was ever entered in the ledger, as its second leaf."""
    genesis = folder.checkpoints / step_name(0)
    if folder.run_json.exists() and folder.run_card.exists() and _has_leaves(folder):
        return True
    if genesis.exists():
        raise InputError(
            f"{folder.path}: holds a genesis, but not the ledger and the run card that belong to it",
            "restore the folder from a backup, or choose another folder",
        )
    return False


def _has_leaves(folder: RunFolder) -> bool:
    """Whether the ledger holds more than its first leaf."""
    if not folder.store.exists():
        return False
    engine = open_store(folder.store)
    try:
        with engine.connect() as connection:
            return bool(connection.exec_driver_sql("SELECT COUNT(*) > 1 FROM leaves").scalar_one())
    finally:
        engine.dispose()


def _first_start(config_path: Path, config: RunConfig, folder: RunFolder, data: Path, tell: Tell) -> Run:
    check_data(config.data, data)
    base, build = config_path.parent, folder.path / "genesis.building"
    for path in (folder.run_json, folder.run_card, *folder.path.glob("ledger.db*")):
        path.unlink(missing_ok=True)
    folder.renew_damaged()
    _check_source(config, base)
    dataset: Dataset | None = None

    def look(plan: Path) -> None:  # at all but the weights, before these come from a hub
        nonlocal dataset
        check_plan(plan, config.method, config.data)
        dataset = _read_data(config, data, plan, folder.path, tell)

    with no_progress_bars(), contextlib.ExitStack() as failed:
        model = prepare_model(config.model, base, folder.path / "hub", before_weights=look)
        facts = check_model(model, config.method, config.data)
        tell(f"model: {facts}")
        dataset = dataset or _read_data(config, data, model, folder.path, tell)
        _check_place(folder, model, facts)
        for path in (build, folder.base_model, folder.licenses):
            failed.callback(shutil.rmtree, path, ignore_errors=True)
        base_model.copy_model(model, folder.base_model)
        spec = config.pin(
            model_digest=base_model.model_digest(folder.base_model),
            model_name=_model_name(config, base, model),
            parameters=facts.parameters,
            trainable=facts.trainable,
            data_digest=file_sha256(data),
            data_size_bytes=data.stat().st_size,
        )
        base_model.copy_licenses(model, folder.licenses)
        shutil.rmtree(build, ignore_errors=True)
        state = build_genesis(spec, folder.base_model, build)
        lora = folder.base_model if spec.method.kind == "lora" else None
        evaluator = Evaluator(spec, build, lora, data, dataset)
        logger.info("evaluating the model before training")
        evaluation = evaluator.evaluate()  # what is wrong with the data shows here, and nothing is signed yet
        write_file(folder.path / "source.json", _source(config))
        write_file(folder.run_json, spec.to_bytes())
        root = folder.root_key()
        card = _card(folder, spec, state.digest)
        card_bytes = card.sign(root).to_bytes()
        write_file(folder.run_card, card_bytes)
        run = _assemble(config, folder, card, card_bytes, root, data, evaluator, state.manifest())
        failed.callback(run.ledger.engine.dispose)
        run.checkpoints.publish(state.manifest(), evaluation, lambda out: _copy_files(build, out))
        logger.info("genesis %s…: held-out loss %.4f", state.digest[:16], evaluation.held_out_loss)
        failed.pop_all()
        return _reopened(run, folder)
    raise AssertionError("an ExitStack swallows nothing")


def _check_place(folder: RunFolder, model: Path, facts: ModelFacts) -> None:
    """Check that a start can write what it has to, a copy of the model and the genesis twice, and takes nothing away.

    Raises:
        InputError: there is no room, or the model lies where a start clears up.
    """
    if model.resolve().is_relative_to(folder.path) and not model.is_relative_to(folder.path / "hub"):
        raise InputError(
            f"{model}: the model lies in the run's own folder, where a start clears up", "move it to another place"
        )
    sizes = {path: path.stat().st_size for path in base_model.files_to_copy(model)}
    besides = sum(size for path, size in sizes.items() if path.suffix != ".safetensors")
    disk.check_room(folder.path, sum(sizes.values()) + 2 * (4 * facts.trainable + besides) + SPARE_BYTES)


def _read_data(config: RunConfig, data: Path, model: Path, place: Path, tell: Tell) -> Dataset:
    """All of the data, as the members will read them, before anything is copied; the host is told what is not used.

    Raises:
        InputError: the data cannot be used; the line is named.
    """
    with tempfile.TemporaryDirectory(prefix="tokenizer-", dir=place) as name:  # as the genesis will hold it
        folder = Path(name)
        with disk.writing(folder):
            load_tokenizer(model).save_pretrained(name)
        dataset = build_dataset(config.data, load_tokenizer(folder), data)
    for sentence in dataset.notes():
        tell(f"{data}: {sentence}")
    return dataset


def _check_source(config: RunConfig, base: Path) -> None:
    """A checkpoint of another run is verified before anything of it is loaded.

    The folder alone is asked about: that the confirmed key signed these very files, and that members agreed on the
    weights. How that run came to them, back to its genesis, is no promise of this one: its spec pins the weights by their
    digest, and to its members they are a base model like any other. `potluck verify` checks the chain.

    Raises:
        InputError: it does not check out, or is signed by a key that this host has not confirmed.
    """
    if config.model.checkpoint is None:
        return
    trusted = set(trusted_roots()) | ({config.model.key} if config.model.key else set())
    report = verify_checkpoint(base / config.model.checkpoint, trusted=trusted, alone=True)
    if not report.ok:
        hint = "" if report.fingerprint in trusted else "if that key is the right one, name it: model.key in run.toml"
        raise InputError(f"model.checkpoint {config.model.checkpoint}: {report.verdict}", hint)


def _reopened(run: Run, folder: RunFolder) -> Run:
    """The same run, its evaluator reading from the published genesis from now on."""
    shutil.rmtree(folder.path / "genesis.building", ignore_errors=True)
    if run.base_model is None:
        shutil.rmtree(folder.base_model, ignore_errors=True)  # the genesis holds all of it
    run.evaluator.genesis_model = run.genesis / checkpoint.MODEL
    return run


def _resume(config_path: Path, config: RunConfig, folder: RunFolder, data: Path) -> Run:
    try:
        spec = RunSpec.from_bytes(folder.run_json.read_bytes())
    except PotluckError as error:
        raise InputError(f"{folder.run_json}: {error.message}", "restore the run folder from a backup") from error
    config = RunConfig.load(config_path, spec)
    _check_same(config, spec, folder, data, config_path)
    root = folder.root_key()
    card_bytes = folder.run_card.read_bytes()
    if len(card_bytes) > MAX_RUN_CARD_BYTES:
        raise InputError(f"{folder.run_card}: too long for a run card", "restore the folder from a backup")
    try:
        card = RunCard.open(card_bytes, root.public_key)
    except PotluckError as error:
        raise InputError(f"{folder.run_card}: {error.message}", "restore the run folder from a backup") from error
    if card != _card(folder, spec, card.genesis):
        raise InputError(
            f"{folder.path}: the run card names other keys or another spec than lie in the folder",
            "restore the folder from a backup; a run never changes its keys",
        )
    genesis = folder.checkpoints / step_name(0)
    lora = folder.base_model if spec.method.kind == "lora" else None
    evaluator = Evaluator(spec, genesis / checkpoint.MODEL, lora, data)
    run = _assemble(config, folder, card, card_bytes, root, data, evaluator, None)
    report = verify_checkpoint(run.genesis, trusted={root.keyid})
    if not report.ok:
        raise InputError(f"{run.genesis}: {report.verdict}", "restore the run folder from a backup")
    newest = run.checkpoints.parent()
    if newest is not None:
        head = note.open_head(checkpoint.read_head_note(newest.folder), card.ledger_key)
        run.ledger.check_extends(head, str(newest.folder))
    if run.base_model is not None and base_model.model_digest(run.base_model) != spec.model.digest:
        raise InputError(f"{run.base_model}: the base model was changed", "restore the run folder from a backup")
    return run


def _assemble(
    config: RunConfig,
    folder: RunFolder,
    card: RunCard,
    card_bytes: bytes,
    root: RootKey,
    data: Path,
    evaluator: Evaluator,
    genesis_state: StateManifest | None,
) -> Run:
    engine = open_store(folder.store)
    with contextlib.ExitStack() as stack:
        stack.callback(engine.dispose)
        first = RunEntry(run=card.run, genesis=card.genesis, root_key=root.keyid)
        ledger = Ledger(engine, folder.ledger_key(), note.origin(card.spec.run.name, card.run), first)
        checkpoints = Checkpoints(folder, ledger, card, card_bytes, root)
        checkpoints.recover()
        run = Run(
            config=config,
            card=card,
            card_bytes=card_bytes,
            root=root,
            data=data,
            genesis=folder.checkpoints / step_name(0),
            genesis_state=genesis_state or load_state(evaluator.genesis_model).manifest(),
            base_model=evaluator.base_model,
            ledger=ledger,
            checkpoints=checkpoints,
            evaluator=evaluator,
        )
        stack.pop_all()
        return run
    raise AssertionError("an ExitStack swallows nothing")


def _card(folder: RunFolder, spec: RunSpec, genesis: str) -> RunCard:
    raw = folder.membership_key().public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    origin = note.origin(spec.run.name, spec.digest)
    return RunCard(
        run=spec.digest,
        spec=spec,
        genesis=genesis,
        ledger_key=note.verifier_key(origin, folder.ledger_key().public_key()),
        membership_key=raw.hex(),
    )


def _check_same(config: RunConfig, spec: RunSpec, folder: RunFolder, data: Path, config_path: Path) -> None:
    """Raises: RunSpecError: run.toml, the model's source or the data are not what the run was started with."""
    now = config.pin(
        model_digest=spec.model.digest,
        model_name=spec.model.name,
        parameters=spec.model.parameters,
        trainable=spec.model.trainable,
        data_digest=file_sha256(data),
        data_size_bytes=data.stat().st_size,
    )
    changes = list(_differences(spec.model_dump(mode="json"), now.model_dump(mode="json"), ""))
    source_path = folder.path / "source.json"
    if source_path.exists() and source_path.read_bytes() != _source(config):
        changes.append(f"model: was {source_path.read_text(errors='replace')}, is {_source(config).decode()}")
    if changes:
        raise RunSpecError(
            f"{config_path}: not the run in {folder.path}: {'; '.join(changes[:5])}",
            "change it back, or start a new run: another run.name, or another folder with --folder",
        )


def _differences(before: Any, now: Any, where: str) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before | now:  # a later field at its default is left out
            yield from _differences(before.get(key), now.get(key), f"{where}.{key}" if where else key)
    elif before != now:
        yield f"{where}: was {json.dumps(before)}, is {json.dumps(now)}"


def _source(config: RunConfig) -> bytes:
    """What run.toml says about where the model comes from: paths are not part of the run spec."""
    return canonical.dumps(config.model.model_dump(mode="json", exclude={"license"}, exclude_none=True))


def _model_name(config: RunConfig, base: Path, model: Path) -> str:
    """What the model is called in the spec, which all volunteers see: text that a screen can show, and not too long."""
    source = config.model
    if source.hub is not None:
        name = f"{source.hub}@{source.revision}"
    elif source.checkpoint is not None:
        name = f"checkpoint {checkpoint.payload_digest(base / source.checkpoint)}"
    else:
        name = os.fsencode(model.resolve().name).decode(errors="replace")
    plain = "".join(character if character.isprintable() else "�" for character in name) or "model"
    return plain if len(plain) <= MAX_NAME_CHARS else plain[: MAX_NAME_CHARS - 1] + "…"


def _copy_files(source: Path, destination: Path) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, destination)
