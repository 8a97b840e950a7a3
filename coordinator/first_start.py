"""The first start of a run: looks at the model and the data, pins the run spec, builds the genesis. `launch` calls it.

The genesis is evaluated, and signed last of all: what is wrong with the model or the data shows before that.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from pathlib import Path

from coordinator import base_model
from coordinator.checkpoints import Checkpoints
from coordinator.evaluator import Evaluator
from coordinator.model_source import prepare_model
from coordinator.run import Run, make_card, open_ledger
from coordinator.run_config import RunConfig
from coordinator.run_data import RunData, Telling
from coordinator.run_folder import RunFolder
from peer.training import bf16
from peer.training.data import Dataset
from peer.training.genesis import build_genesis
from peer.training.model_check import ModelFacts, check_model, check_plan
from peer.training.quiet import no_progress_bars
from protocol import canonical, checkpoint, disk
from protocol.data_spec import PinnedDataSet
from protocol.disk import write_file
from protocol.errors import InputError
from protocol.run_spec import RunSpec
from protocol.trust import trusted_roots
from protocol.verify import verify_checkpoint

logger = logging.getLogger(__name__)

MAX_NAME_CHARS = 200
SPARE_BYTES = 4 << 20  # for ledger, keys, plot and the like


def first_start(config_path: Path, config: RunConfig, folder: RunFolder, data: RunData, telling: Telling) -> Run:
    """Make a run in a folder where there is none yet, or what an earlier try has left.

    Args:
        telling: hears what the model is, before it is built, and how far the data are prepared.

    Raises:
        InputError: the model or the data cannot be used, or the disk is full.
        NetworkError: the model's hub, or a source of the data, cannot be reached.
    """
    data.check()
    build = folder.path / "genesis.building"
    for path in (folder.run_json, folder.run_card, *folder.path.glob("ledger.db*")):
        path.unlink(missing_ok=True)
    folder.renew_damaged()
    _check_source(config, config_path.parent)
    with no_progress_bars(), contextlib.ExitStack() as failed:
        model, facts, dataset = _look(config_path.parent, config, folder, data, telling)
        config = _with_base(config, model, telling)
        for path in (build, folder.base_model, folder.licenses):
            failed.callback(shutil.rmtree, path, ignore_errors=True)
        spec = _copy_and_pin(config_path.parent, config, folder, data, model, facts)
        shutil.rmtree(build, ignore_errors=True)
        state = build_genesis(spec, folder.base_model, build)
        lora = folder.base_model if spec.method.kind == "lora" else None
        evaluator = Evaluator(spec, build, lora, data.path, dataset, config.host.device)
        spec = evaluator.spec = _as_the_model_can(spec, evaluator, telling)
        logger.info("evaluating the model before training")
        evaluation = evaluator.evaluate()  # what is wrong with the data shows here, and nothing is signed yet
        write_file(folder.path / "source.json", source_of(config))
        write_file(folder.run_json, spec.to_bytes())
        root = folder.root_key()
        card = make_card(folder, spec, state.digest)
        card_bytes = card.sign(root).to_bytes()
        write_file(folder.run_card, card_bytes)
        ledger = open_ledger(folder, card, root)
        failed.callback(ledger.store.close)
        checkpoints = Checkpoints(folder, ledger, card, card_bytes, root)
        checkpoints.recover()
        checkpoints.publish(state.manifest(), evaluation, lambda out: _copy_files(build, out))
        logger.info("genesis %s…: held-out loss %.4f", state.digest[:16], evaluation.held_out_loss)
        failed.pop_all()
    shutil.rmtree(build, ignore_errors=True)
    if lora is None:
        shutil.rmtree(folder.base_model, ignore_errors=True)  # the genesis holds all of it
    evaluator.genesis_model = folder.genesis / checkpoint.MODEL
    return Run(folder, card, card_bytes, root, state.manifest(), ledger, checkpoints, evaluator)


def _look(
    base: Path, config: RunConfig, folder: RunFolder, data: RunData, telling: Telling
) -> tuple[Path, ModelFacts, Dataset | None]:
    """The model's folder, what it is, and the data file as the members will read it; nothing is copied yet."""
    read: list[Dataset | None] = []

    def look(plan: Path) -> None:  # at all but the weights, before these come from a hub
        check_plan(plan, config.method, config.data_rules)
        read.append(data.read(plan, telling))

    model = prepare_model(config.model, base, folder.path / "hub", before_weights=look)
    facts = check_model(model, config.method, config.data_rules)
    telling.tell(f"model: {facts}")
    for line in config.advice:
        telling.tell(line)
    if not read:
        read.append(data.read(model, telling))
    _check_place(folder, model, facts)
    return model, facts, read[0]


def _with_base(config: RunConfig, model: Path, telling: Telling) -> RunConfig:
    """How members hold a LoRA run's base, where run.toml leaves that open: in bf16 if it changes nothing, else fp32."""
    method = config.method
    if method.kind != "lora" or "base" in method.model_fields_set:
        return config
    if method.use_dora or method.modules_to_save or not bf16.changes_nothing(model):
        telling.tell("method.base: fp32; 4 bytes a parameter")
        return config
    telling.tell("method.base: bf16; the model's files hold the same values, in 2 bytes a parameter instead of 4")
    return config.model_copy(update={"method": method.model_copy(update={"base": "bf16"})})


def _copy_and_pin(
    base: Path, config: RunConfig, folder: RunFolder, data: RunData, model: Path, facts: ModelFacts
) -> RunSpec:
    """Copy the model and its licenses into the run's folder, and pin what was copied."""
    base_model.copy_model(model, folder.base_model)
    spec = config.pin(
        model_digest=base_model.model_digest(folder.base_model),
        model_name=_model_name(config, base, model),
        parameters=facts.parameters,
        trainable=facts.trainable,
        untrained=facts.untrained,
        **data.pins().as_arguments(),
    )
    base_model.copy_licenses(model, folder.licenses)
    return spec


def _as_the_model_can(spec: RunSpec, evaluator: Evaluator, telling: Telling) -> RunSpec:
    """Documents that share a sequence are kept apart where the model can; where not, that is told."""
    if not isinstance(spec.data, PinnedDataSet) or not spec.data.documents_apart or evaluator.keeps_apart():
        return spec
    telling.tell("this model does not keep documents apart: each also sees those before it in its sequence")
    return spec.model_copy(update={"data": spec.data.model_copy(update={"documents_apart": False})})


def source_of(config: RunConfig) -> bytes:
    """What run.toml says about where the model comes from: paths are not part of the run spec."""
    return canonical.dumps(config.model.model_dump(mode="json", exclude={"license"}, exclude_none=True))


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


def _check_source(config: RunConfig, base: Path) -> None:
    """A checkpoint of another run is verified before anything of it is loaded.

    The folder alone is asked about: that the confirmed key signed these very files, and that members agreed on the
    weights. How that run came to them, back to its genesis, is no promise of this one: its spec pins the weights by
    their digest, and to its members they are a base model like any other. `potluck verify` checks the chain.

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
