"""A model that somebody signed with the stock tool and a key: `potluck verify MODEL --signature S --key K`.

It is the smaller question: whether these are the files that the key signed, all of them and no other. A model's
signature names no run. So it says nothing of who trained it, of a ledger, of what came before, or of anything newer; a
checkpoint does.

    model_signing sign key MODEL --signature S --private_key …        made what is checked
    verify_model(Path("MODEL"), Path("S"), [key])                     returns the report
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from protocol import files
from protocol.errors import InputError, PotluckError, SignatureError, UnsupportedError
from protocol.inspection import note_extras, refuse
from protocol.keys import fingerprint
from protocol.model_signature import WHOLE, ModelSignature
from protocol.recognise import is_checkpoint
from protocol.report import MODEL_KIND, NotChecked, Report

LIMITS = "this does not prove which run made it, that a ledger holds it, what it came from, or that it is the newest"


def verify_model(model: Path, signature: Path, keys: Sequence[ec.EllipticCurvePublicKey]) -> Report:
    """Check a model against a signature, wherever that lies.

    Args:
        model: a folder, or the one file that the model is. The signature may lie in the folder: it is no part of it.
        signature: an OMS bundle.
        keys: at least one, which the user trusts; one of them must have signed.

    Raises:
        InputError: the model or the signature is not there, or the model is a checkpoint.
        UnsupportedError: the signature is of a kind that only the stock tool checks.
    """
    if not model.is_dir() and not model.is_file():
        raise InputError(f"{model}: no such file or folder", "give the model that was signed")
    if is_checkpoint(model.resolve()):
        raise InputError(
            f"{model}: a checkpoint of a run, which is checked as a whole", "leave --signature out, or give its model/"
        )
    if not signature.is_file():
        raise InputError(f"{signature}: no such file", "give the signature of the model with --signature")
    model, signature = model.resolve(), signature.resolve()
    report = Report(model.name, MODEL_KIND, notes=[LIMITS])
    here, held = dict[str, Path](), list[tuple[ModelSignature, str]]()  # held: the signature, and whose it is
    parsed = _read(signature)

    def layout() -> str:
        found, problems = files.survey(model, allow_empty_dirs=True) if model.is_dir() else ({model.name: model}, [])
        here.update({name: path for name, path in found.items() if path != signature})
        refuse(problems)
        return f"{len(here)} files, no links"

    def signed() -> str:
        if isinstance(parsed, PotluckError):
            raise parsed
        signer = fingerprint(_signer(parsed, keys))
        held.append((parsed, signer))
        note_extras(report, parsed)
        return f"{signature.name} holds, by the key {signer}"

    def each_file() -> str:
        if not held:
            raise NotChecked("needs the signature, which does not hold")
        listed = held[0][0]
        alone = set(listed.files) == {WHOLE} and model.is_file()
        refuse(listed.differences({WHOLE: model} if alone else here))
        return f"{len(here)} files, each as it was signed"

    for name, rule in (("folder", layout), ("signature", signed), ("files", each_file)):
        report.run(name, rule)
    for _, signer in held:
        report.confirm(signer, {signer})
    return report


def _read(signature: Path) -> ModelSignature | PotluckError:
    """The signature, or why it is none. Raises: UnsupportedError: nothing is wrong with it."""
    try:
        return ModelSignature.read(signature)
    except UnsupportedError:
        raise
    except PotluckError as error:
        return error


def _signer(signature: ModelSignature, keys: Sequence[ec.EllipticCurvePublicKey]) -> ec.EllipticCurvePublicKey:
    """The key that made it. Raises: SignatureError: none of these did."""
    errors = []
    for key in keys:
        try:
            signature.verify(key)
        except SignatureError as error:
            errors.append(error)
        else:
            return key
    if len(errors) == 1:
        raise errors[0]
    raise SignatureError(f"made with none of the {len(keys)} keys that were given")
