"""A trained model is a folder: ``card.json``, which says all about it, and ``weights.safetensors``.

Reading a card, or loading a model without weights, needs no torch: the families import it, and are imported
when a model of theirs is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from wsiscore.engines.choice import Engine, Precision, choose, may_have_gpu
from wsiscore.errors import ModelError, OutputError
from wsiscore.files import replacing
from wsiscore.models.card import CARD, Card, Weights, card_json, read_card
from wsiscore.models.compiled import CompiledGenerator
from wsiscore.models.contract import Family, Generator, GeneratorSpec, Maps, Networked
from wsiscore.models.registry import family

__all__ = [
    "Model",
    "default_model",
    "find_model",
    "import_published",
    "load_model",
    "model_names",
    "read_card",
    "write_card",
    "write_model",
]

WEIGHTS = "weights.safetensors"


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
    if weights is not None:
        content = save({name: np.require(value, requirements="C") for name, value in weights.items()})
        entry = Weights(WEIGHTS, hashlib.sha256(content).hexdigest())
        with replacing(folder / WEIGHTS) as part:
            part.write_bytes(content)
    return write_card(folder, replace(card, weights=entry))


def write_card(folder: Path, card: Card) -> Card:
    """Write the card of a model whose weights are in the folder, or will be; return it with its `folder` set.

    Raises
    ------
    OutputError
        If the folder cannot be written.
    """
    card = replace(card, folder=folder)
    with replacing(folder / CARD) as part:
        part.write_text(json.dumps(card_json(card), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return card


@dataclass(frozen=True, slots=True)
class Model:
    """A generator with the card it was made from: what `wsiscore.inference.infer` runs.

    Parameters
    ----------
    card
        What there is to know of it.
    generator
        Ready to run; it may give fewer channels than the card names.
    """

    card: Card
    generator: Generator

    @property
    def spec(self) -> GeneratorSpec:
        """What the generator reads and gives."""
        return self.generator.spec

    @property
    def device(self) -> str:
        """Where it computes."""
        return self.generator.device

    @property
    def computed_by(self) -> dict[str, str]:
        """Engine and precision of its network; empty if it has none."""
        if not isinstance(self.generator, Networked):
            return {}
        return {"engine": self.generator.engine, "precision": self.generator.precision}

    @property
    def provenance(self) -> dict[str, str | None]:
        """What a result must say of its model, as `Card.provenance`."""
        return self.card.provenance()

    @property
    def identity(self) -> dict[str, Any]:
        """All of the card that decides the maps, JSON-ready: two models of one identity give the same maps."""
        spec = self.card.spec
        numbers: dict[str, Any] = {
            "mpp": spec.mpp,
            "multiple_px": spec.multiple_px,
            "dtype": spec.dtype,
            "output": spec.output,
        }
        numbers["norm"] = self.spec.norm
        return {
            "family": self.card.family,
            "config": dict(self.card.config),
            "weights_sha256": self.card.weights.sha256 if self.card.weights else None,
            **numbers,
            **self.computed_by,
        }

    def __call__(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Turn (B, 3, H, W) RGB in 0..255 into (B, C, H, W) maps in [0, 1]."""
        return self.generator(tiles)

    def weights(self) -> dict[str, npt.NDArray[Any]]:
        """Return a copy of the generator's weights by name."""
        return self.generator.weights()


def load_model(
    model: str | Path,
    device: str = "auto",
    *,
    maps: Maps = "all",
    norm: Literal["tile", "slide"] | None = None,
    engine: Engine | Literal["auto"] = "auto",
    precision: Precision | None = None,
) -> Model:
    """Load a model, ready to run.

    Parameters
    ----------
    model
        Name of a model that comes with the package, or a folder.
    device
        ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    maps
        ``all`` that its card names, or only those ``needed`` for cells or a picture, which may take less computing.
    norm
        What its normalisation takes its statistics from, as `GeneratorSpec.norm`; by default as its card says.
    engine
        What runs its network on the CPU: ``torch``, ``openvino``, ``onnx``, or ``auto``, as
        `wsiscore.engines.choice.choose`. A GPU always has torch.
    precision
        ``fp32``, ``bf16`` or ``int8``; by default fp32 on the CPU and mixed half precision on a GPU.

    Raises
    ------
    ModelError
        If there is no such model, device or engine, it has no such precision, its card is broken, or its weights are
        missing, changed or of another family.
    """
    folder = find_model(model)
    card = read_card(folder)
    config = _config(own := family(card.family), card)
    weights = _load_weights(folder, card.weights) if card.weights else None
    spec = card.spec if maps == "all" else replace(card.spec, channels=card.spec.needed)
    spec = replace(spec, norm=norm or spec.norm)
    try:
        generator = _generator(own, config, spec, weights, device, engine, precision)
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from error
    # A network without its weights would give noise.
    if weights is None and generator.weights():
        raise ModelError(f"{folder / CARD} names no weights, and the family {card.family!r} cannot do without")
    return Model(replace(card, config=own.current(card.config)), generator)


def _generator(
    own: Family,
    config: Any,
    spec: GeneratorSpec,
    weights: Mapping[str, Any] | None,
    device: str,
    engine: Engine | Literal["auto"],
    precision: Precision | None,
) -> Generator:
    """Build a family's generator, run by the engine that was chosen."""

    def by_family() -> Generator:
        return _in_precision(own.build(config, spec, weights, device), precision)

    if engine in ("openvino", "onnx") and device not in ("auto", "cpu"):
        raise ModelError(f"the engine {engine} runs on the CPU, not on {device}; give --device cpu or --engine torch")
    if weights is None or engine == "torch" or device not in ("auto", "cpu"):
        return by_family()
    if engine == "auto" and device == "auto" and may_have_gpu():
        generator = own.build(config, spec, weights, device)
        if generator.device != "cpu":
            return _in_precision(generator, precision)
    chosen = choose(engine, precision or "fp32", described=own.graph is not None)
    if chosen == "torch" or own.graph is None:
        return by_family()
    return CompiledGenerator(spec, partial(own.graph, config), weights, chosen, precision or "fp32")


def _in_precision(generator: Generator, precision: Precision | None) -> Generator:
    if precision is None:
        return generator
    if not isinstance(generator, Networked):
        raise ModelError(f"{generator.spec.family} has no network whose precision could be chosen; omit --precision")
    return generator.in_precision(precision)


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
    own = family(name)
    if own.read_published is None:
        raise ModelError(f"the family {name!r} has no published weights to import")
    if (folder / CARD).exists():
        raise OutputError(f"{folder} already holds a model; give another folder")
    config, weights = own.read_published(path)
    own.build(config, own.spec, weights, "cpu")  # refuses weights that do not fit
    card = Card(
        name=folder.resolve().name,
        family=name,
        version="published",
        description=f"{own.imported}, imported from {path.name}.",
        licence="That of the imported file; it does not come with wsiscore.",
        trained_on="What its authors trained it on; the file does not say.",
        spec=own.spec,
        config=asdict(config),
    )
    return write_model(folder, card, weights)


def _shipped() -> Path:
    """Return the folder of models: in the installed package, or in the repository."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "_models"
    return installed if installed.is_dir() else package.parent / "models"


def _config(own: Family, card: Card) -> Any:
    known = {field.name for field in fields(own.config)}
    try:
        config = own.current(card.config)
    except ValueError as error:
        raise ModelError(f"the card of {card.name!r} has a wrong 'config': {error}") from error
    if unknown := sorted(set(config) - known):
        raise ModelError(
            f"the card of {card.name!r} sets {unknown[0]!r}, which the family {card.family!r} does not have;"
            f" it has: {', '.join(sorted(known)) or 'nothing to set'}"
        )
    try:
        # JSON has lists where a frozen Config has tuples.
        return own.config(**{k: tuple(v) if isinstance(v, list) else v for k, v in config.items()})
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
        weights = dict(load(content))
    except SafetensorError as error:
        raise ModelError(f"{path} is not a safetensors file: {error}") from error
    broken = sorted(name for name, value in weights.items() if value.dtype.kind == "f" and not np.isfinite(value).all())
    if broken:
        raise ModelError(f"{path} holds numbers that are not finite ({broken[0]!r}); import or train the model again")
    return weights
