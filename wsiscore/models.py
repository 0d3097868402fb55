"""A trained model is a folder: ``card.json``, which says all about it, and ``weights.safetensors``.

Reading a card, or loading a model without weights, needs no torch: the families import it, and are imported
when a model of theirs is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from wsiscore.errors import ModelError, OutputError
from wsiscore.generators import CellRules, Family, Generator, GeneratorSpec, family

__all__ = [
    "Card",
    "Measurement",
    "Weights",
    "default_model",
    "find_model",
    "import_published",
    "load_model",
    "model_names",
    "read_card",
    "write_model",
]

CARD = "card.json"
WEIGHTS = "weights.safetensors"
_NUMBER = (int, float)
_TEXTS = ("name", "family", "version", "description", "licence", "trained_on")
_CARD_KEYS = dict.fromkeys(_TEXTS, (str,)) | {
    "polarity": (str, type(None)),
    "measured_on": (list,),
    "config": (dict,),
    "spec": (dict,),
    "weights": (dict, type(None)),
}
_SPEC_KEYS = {
    "mpp": _NUMBER,
    "tile_px": (int,),
    "margin_px": (int,),
    "multiple_px": (int,),
    "channels": (list,),
    "dtype": (str,),
    "rules": (dict,),
}
_RULES_KEYS = {"threshold": _NUMBER, "radius_um": _NUMBER}
_MEASUREMENT_KEYS = {"set": (str,), "metric": (str,), "value": (*_NUMBER, str), "command": (str,)}
_WEIGHTS_KEYS = {"file": (str,), "sha256": (str,)}
_WORDS = {str: "text", int: "a whole number", float: "a number", list: "a list", dict: "an object"}


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a model reached on a set of images.

    Parameters
    ----------
    set, metric, value
        On what, in which measure and unit, how much.
    command
        The command that measured it.
    """

    set: str
    metric: str
    value: float | str
    command: str


@dataclass(frozen=True, slots=True)
class Weights:
    """The file of a model's weights, beside its card, and the file's SHA-256 in hexadecimal."""

    file: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Card:
    """What there is to know of a model.

    Parameters
    ----------
    name, family, version
        What it is called, the generator family that runs it, and which one of that name it is.
    description, licence, trained_on
        Sentences for the reader.
    spec
        What the generator reads and gives, with the defaults for finding cells.
    config
        The family's `Config`, by field; fields left out have their default.
    measured_on
        What it reached, and where.
    weights
        None for a family without any.
    polarity
        How it was found that its ``positive`` channel means stained nuclei; ``unchecked`` if it was not, None
        where it cannot be otherwise.
    folder
        Where the card was read from; None if it was not.
    """

    name: str
    family: str
    version: str
    description: str
    licence: str
    trained_on: str
    spec: GeneratorSpec
    config: Mapping[str, Any]
    measured_on: tuple[Measurement, ...] = ()
    weights: Weights | None = None
    polarity: str | None = "unchecked"
    folder: Path | None = None

    def provenance(self) -> dict[str, str | None]:
        """Return what a result must say of its model, JSON-ready: name, family, version, weights_sha256."""
        return {
            "name": self.name,
            "family": self.family,
            "version": self.version,
            "weights_sha256": self.weights.sha256 if self.weights else None,
        }


def model_names() -> tuple[str, ...]:
    """Return the names of the models that come with the package, sorted."""
    return tuple(sorted(path.parent.name for path in _shipped().glob(f"*/{CARD}")))


def default_model() -> str:
    """Return the name of the model used where none is asked for.

    Raises
    ------
    ModelError
        If the package came without its models.
    """
    path = _shipped() / "DEFAULT"
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ModelError(f"{path} is missing: this wsiscore came without its models; install it anew") from error


def find_model(model: str | Path) -> Path:
    """Return a model's folder.

    Parameters
    ----------
    model
        Name of a model that comes with the package, or else a folder; a `Path` is always a folder.

    Raises
    ------
    ModelError
        If there is neither.
    """
    if isinstance(model, str) and model in model_names():
        return _shipped() / model
    if not Path(model).is_dir():
        there = ", ".join(model_names()) or "none"
        raise ModelError(f"no model or folder is called '{model}'; models there are: {there}")
    return Path(model)


def read_card(folder: Path) -> Card:
    """Read the card in a model's folder.

    Raises
    ------
    ModelError
        If there is none, or it is broken; the text says where.
    """
    path = folder / CARD
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{folder} is not a model: it has no readable {CARD}") from error
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    _check(data, _CARD_KEYS, str(path))
    return Card(
        **{key: data[key] for key in (*_TEXTS, "polarity", "config")},
        spec=_read_spec(data["spec"], data["family"], str(path)),
        measured_on=tuple(_read_measurement(entry, str(path)) for entry in data["measured_on"]),
        weights=_read_weights_entry(data["weights"], str(path)),
        folder=folder,
    )


def write_model(folder: Path, card: Card, weights: Mapping[str, Any] | None) -> Card:
    """Write a model's folder, over an older one of the same family's making if there is one.

    Parameters
    ----------
    folder
        Made if it is not there.
    card
        Its `weights` and `folder` are set here.
    weights
        Name -> array (NumPy, or torch on the CPU); None for a family without any.

    Returns
    -------
    The card as written.

    Raises
    ------
    OutputError
        If the folder cannot be written.
    """
    from safetensors.numpy import save

    entry = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if weights is not None:
            content = save({name: np.require(value, requirements="C") for name, value in weights.items()})
            entry = Weights(WEIGHTS, hashlib.sha256(content).hexdigest())
            _replace_file(folder / WEIGHTS, content)
        card = replace(card, weights=entry, folder=folder)
        text = json.dumps(_card_json(card), indent=2, ensure_ascii=False) + "\n"
        _replace_file(folder / CARD, text.encode())
    except OSError as error:
        raise OutputError(f"the model cannot be written to {folder}: {error.strerror}") from error
    return card


def load_model(model: str | Path, device: str = "auto") -> Generator:
    """Load a model, ready to run.

    Parameters
    ----------
    model
        Name of a model that comes with the package, or a folder.
    device
        ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises
    ------
    ModelError
        If there is no such model or device, its card is broken, or its weights are missing, changed or of
        another family.
    """
    folder = find_model(model)
    card = read_card(folder)
    module = family(card.family)
    config = _config(module, card)
    weights = _load_weights(folder, card.weights) if card.weights else None
    try:
        generator = module.build(config, card.spec, weights, device)
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from error
    # A network without its weights would give noise.
    if weights is None and getattr(generator, "weights", dict)():
        raise ModelError(f"{folder / CARD} names no weights, and the family {card.family!r} cannot do without")
    return generator


def import_published(path: Path, name: str, folder: Path) -> Card:
    """Turn a published program's weights into a model.

    Parameters
    ----------
    path
        The file or folder as its authors distribute it; code in it is not run.
    name
        The family it belongs to.
    folder
        Where the model goes; its last part becomes the model's name.

    Raises
    ------
    ModelError
        If the family is unknown or has no published weights, or the file is not one of its.
    OutputError
        If the folder already holds a model, or cannot be written.
    """
    module = family(name)
    if not hasattr(module, "read_published"):
        raise ModelError(f"the family {name!r} has no published weights to import")
    if (folder / CARD).exists():
        raise OutputError(f"{folder} already holds a model; give another folder")
    config, weights = module.read_published(path)
    module.build(config, module.SPEC, weights, "cpu")  # refuses weights that do not fit
    card = Card(
        name=folder.resolve().name,
        family=name,
        version="published",
        description=f"Published weights of {name}, imported from {path.name}.",
        licence="That of the imported file; it does not come with wsiscore.",
        trained_on="What its authors trained it on; the file does not say.",
        spec=module.SPEC,
        config=asdict(config),
    )
    return write_model(folder, card, weights)


def _shipped() -> Path:
    """Return the folder of models: in the installed package, or in the repository."""
    package = Path(__file__).resolve().parent
    installed = package / "_models"
    return installed if installed.is_dir() else package.parent / "models"


def _config(module: Family, card: Card) -> Any:
    known = {field.name for field in fields(module.Config)}
    if unknown := sorted(set(card.config) - known):
        raise ModelError(
            f"the card of {card.name!r} sets {unknown[0]!r}, which the family {card.family!r} does not have;"
            f" it has: {', '.join(sorted(known)) or 'nothing to set'}"
        )
    try:
        # JSON has lists where a frozen Config has tuples.
        return module.Config(**{k: tuple(v) if isinstance(v, list) else v for k, v in card.config.items()})
    except (ValueError, TypeError) as error:
        raise ModelError(f"the card of {card.name!r} has a wrong 'config': {error}") from error


def _load_weights(folder: Path, entry: Weights) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    path = folder / entry.file
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} is missing or unreadable; copy the whole folder of the model again") from error
    found = hashlib.sha256(content).hexdigest()
    if found != entry.sha256:
        raise ModelError(
            f"{path} is truncated or changed: its SHA-256 is {found[:12]}…, the card says {entry.sha256[:12]}…;"
            " copy the whole folder of the model again"
        )
    try:
        return dict(load(content))
    except SafetensorError as error:
        raise ModelError(f"{path} is not a safetensors file: {error}") from error


def _replace_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)


def _card_json(card: Card) -> dict[str, Any]:
    spec = asdict(card.spec)
    data = asdict(card)
    del data["folder"], spec["family"]
    return data | {"spec": spec}


def _read_spec(data: Mapping[str, Any], family_name: str, where: str) -> GeneratorSpec:
    _check(data, _SPEC_KEYS, f"{where}: 'spec'")
    _check(data["rules"], _RULES_KEYS, f"{where}: 'spec.rules'")
    try:
        own = {"family": family_name, "channels": tuple(data["channels"]), "rules": CellRules(**data["rules"])}
        return GeneratorSpec(**{**data, **own})
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise ModelError(f"{where}: 'spec' is wrong: {error}") from error


def _read_measurement(data: Any, where: str) -> Measurement:
    _check(data, _MEASUREMENT_KEYS, f"{where}: an entry of 'measured_on'")
    return Measurement(**data)


def _read_weights_entry(data: Any, where: str) -> Weights | None:
    if data is None:
        return None
    _check(data, _WEIGHTS_KEYS, f"{where}: 'weights'")
    if Path(data["file"]).name != data["file"]:
        raise ModelError(f"{where}: 'weights.file' is a file beside the card, got {data['file']!r}")
    return Weights(**data)


def _check(data: Any, keys: Mapping[str, tuple[type, ...]], where: str) -> None:
    """Raise a ModelError unless `data` has exactly these keys, of these types."""
    if not isinstance(data, dict):
        raise ModelError(f"{where}: wanted an object with {', '.join(keys)}, got {json.dumps(data)[:40]}")
    for key, kinds in keys.items():
        if key not in data:
            raise ModelError(f"{where}: the key {key!r} is missing")
        if not isinstance(data[key], kinds) or isinstance(data[key], bool):
            wanted = " or ".join(_WORDS.get(kind, "null") for kind in kinds)
            raise ModelError(f"{where}: the key {key!r} must be {wanted}, got {json.dumps(data[key])[:40]}")
    if extra := sorted(set(data) - set(keys)):
        raise ModelError(f"{where}: the key {extra[0]!r} means nothing here; wanted {', '.join(keys)}")
