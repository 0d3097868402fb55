"""The card of a model: its description and settings, as ``card.json`` in its folder."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wsiscore.cells.rules import KINDS, Rules
from wsiscore.errors import ModelError
from wsiscore.models.contract import GeneratorSpec

__all__ = ["CARD", "INDEX_ERROR", "Card", "Measurement", "Weights", "card_json", "read_card"]

CARD = "card.json"
INDEX_ERROR = "mean absolute error of the index, points"
"""Metric of a `Measurement` of the index, as a report quotes it."""
_NUMBER = (int, float)
_TEXTS = ("name", "family", "version", "description", "licence", "trained_on")
_CARD_KEYS = dict.fromkeys(_TEXTS, (str,)) | {
    "polarity": (str, type(None)),
    "chosen_on": (list,),
    "tested_on": (list,),
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
    "norm": (str,),
}
_MEASUREMENT_KEYS = {"set": (str,), "metric": (str,), "value": (*_NUMBER, str), "command": (str,)}
_WEIGHTS_KEYS = {"file": (str,), "sha256": (str,)}
_MOST_BYTES = 4 << 20
_MPP = (0.05, 20.0)  # as of slides
_LARGEST_TILE_PX = 4096
_MOST_CHANNELS = 64
_DTYPES = ("float16", "uint8")
_LARGEST_SETTING = 4096  # of the whole numbers in a config: widths, depths, counts
_WORDS = {str: "text", int: "a whole number", float: "a number", list: "a list", dict: "an object"}


@dataclass(frozen=True, slots=True)
class Measurement:
    """A measurement of a model on a set of images.

    Parameters
    ----------
    set, metric, value
        Name of the set, measure with its unit, and value.
    command
        The command that measures it.
    errors
        Of an index, its absolute error on each image of the set, in points; empty if they are not known one by one.
    """

    set: str
    metric: str
    value: float | str
    command: str
    errors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Weights:
    """The file of a model's weights, beside its card, and the file's SHA-256 in hexadecimal."""

    file: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Card:
    """Description and settings of a model.

    Parameters
    ----------
    name, family, version
        Name of the model, of the generator family that runs it, and its version.
    description, licence, trained_on
        Sentences for the user.
    spec
        Input and output of the generator, with the defaults for finding cells.
    config
        The family's `Config`, by field; fields left out have their default.
    chosen_on
        Measurements on sets by which its weights, thresholds or training data were chosen.
    tested_on
        Measurements on sets by which nothing was chosen; a report quotes, of these alone, those of the metric "mean
        absolute error of the index, points".
    weights
        None for a family without any.
    polarity
        How it was checked that its ``positive`` channel is of stained nuclei; ``unchecked`` if it was not, None for a
        family in which it cannot be otherwise.
    folder
        Folder that the card was read from; None for a new card.
    """

    name: str
    family: str
    version: str
    description: str
    licence: str
    trained_on: str
    spec: GeneratorSpec
    config: Mapping[str, Any]
    chosen_on: tuple[Measurement, ...] = ()
    tested_on: tuple[Measurement, ...] = ()
    weights: Weights | None = None
    polarity: str | None = "unchecked"
    folder: Path | None = None

    @property
    def index_errors(self) -> dict[str, float]:
        """Mean absolute error of the index in points, by set of `tested_on`; a report quotes them."""
        quoted = (entry for entry in self.tested_on if entry.metric == INDEX_ERROR)
        return {entry.set: entry.value for entry in quoted if not isinstance(entry.value, str)}

    @property
    def index_errors_by_image(self) -> dict[str, list[float]]:
        """The errors of the index, image by image, of each set that nothing was chosen by and has them."""
        quoted = (entry for entry in self.tested_on if entry.metric == INDEX_ERROR)
        return {entry.set: list(entry.errors) for entry in quoted if entry.errors}

    def provenance(self) -> dict[str, str | None]:
        """Return the model's entry in a result, JSON-ready: name, family, version, weights_sha256."""
        return {
            "name": self.name,
            "family": self.family,
            "version": self.version,
            "weights_sha256": self.weights.sha256 if self.weights else None,
        }


def read_card(folder: Path) -> Card:
    """Read the card in a model's folder.

    Raises
    ------
    ModelError
        If there is none, or it is broken or sets what no model has; the text says where.
    """
    path = folder / CARD
    data = _read_json(folder)
    if isinstance(data, dict) and "measured_on" in data:  # of an earlier version, which did not distinguish the two
        data["tested_on"], data["chosen_on"] = [], data.pop("measured_on")
    _check(data, _CARD_KEYS, str(path))
    for key, value in data["config"].items():
        _check_setting(value, f"{path}: 'config.{key}'")
    return Card(
        **{key: data[key] for key in (*_TEXTS, "polarity", "config")},
        spec=_read_spec(data["spec"], data["family"], str(path)),
        chosen_on=_read_measurements(data, "chosen_on", str(path)),
        tested_on=_read_measurements(data, "tested_on", str(path)),
        weights=_read_weights_entry(data["weights"], str(path)),
        folder=folder,
    )


def _read_json(folder: Path) -> Any:
    path = folder / CARD
    try:
        if not path.is_file():
            raise ModelError(f"{folder} is not a model: it has no readable {CARD}")
        if path.stat().st_size > _MOST_BYTES:
            raise ModelError(f"{path} is larger than {_MOST_BYTES >> 20} MiB, which no card is")
        return json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise ModelError(f"{folder} is not a model: it has no readable {CARD}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{path} is not JSON: {error}") from error


def card_json(card: Card) -> dict[str, Any]:
    """Return a card as `read_card` reads it, JSON-ready."""
    data = asdict(card)
    del data["folder"], data["spec"]["family"]
    data["spec"]["rules"] = card.spec.rules.to_json() if card.spec.rules else {}
    return data


def _read_spec(data: Mapping[str, Any], family_name: str, where: str) -> GeneratorSpec:
    data = {"norm": "tile", **data} if isinstance(data, dict) else data  # which earlier cards lack
    _check(data, _SPEC_KEYS, f"{where}: 'spec'")
    channels = data["channels"]
    for key, value, is_right, wanted in (
        ("mpp", data["mpp"], _MPP[0] <= data["mpp"] <= _MPP[1], f"{_MPP[0]:g} to {_MPP[1]:g} µm/px"),
        ("tile_px", data["tile_px"], 1 <= data["tile_px"] <= _LARGEST_TILE_PX, f"1 to {_LARGEST_TILE_PX}"),
        ("multiple_px", data["multiple_px"], 1 <= data["multiple_px"] <= _LARGEST_TILE_PX, f"1 to {_LARGEST_TILE_PX}"),
        ("dtype", data["dtype"], data["dtype"] in _DTYPES, " or ".join(_DTYPES)),
        ("channels", len(channels), 1 <= len(channels) <= _MOST_CHANNELS, f"1 to {_MOST_CHANNELS} names"),
    ):
        if not is_right:
            raise ModelError(f"{where}: 'spec.{key}' is {str(value)[:40]}; wanted {wanted}")
    try:
        rules = _read_rules(data["rules"], data["channels"])
        return GeneratorSpec(**{**data, "family": family_name, "channels": tuple(data["channels"]), "rules": rules})
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise ModelError(f"{where}: 'spec' is wrong: {error}") from error


def _check_setting(value: Any, where: str) -> None:
    """Raise a ModelError for numbers with which no network can be built, in lists too."""
    if isinstance(value, list):
        for part in value:
            _check_setting(part, where)
    elif isinstance(value, int) and abs(value) > _LARGEST_SETTING:
        raise ModelError(f"{where} is {str(value)[:40]}; wanted at most {_LARGEST_SETTING}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ModelError(f"{where} is {value}; wanted a finite number")


def _read_rules(data: Mapping[str, Any], channels: Iterable[str]) -> Rules | None:
    """Return the rules of the kind that the channels are of; None for a picture."""
    for kind in KINDS:
        if kind.channels <= set(channels):
            return kind.from_json(data)
    return None


def _read_measurements(data: Mapping[str, Any], key: str, where: str) -> tuple[Measurement, ...]:
    return tuple(_read_measurement(entry, key, where) for entry in data[key])


def _read_measurement(data: Any, key: str, where: str) -> Measurement:
    known = {name: value for name, value in data.items() if name != "errors"} if isinstance(data, dict) else data
    _check(known, _MEASUREMENT_KEYS, f"{where}: an entry of {key!r}")
    errors, value = data.get("errors", []), data["value"]
    if not isinstance(errors, list) or not all(map(_is_error, errors)):
        raise ModelError(f"{where}: 'errors' of an entry of {key!r} must be a list of numbers in [0, 100]")
    if isinstance(value, float) and not math.isfinite(value):
        raise ModelError(f"{where}: 'value' of an entry of {key!r} is {value}; wanted a finite number or a text")
    if data["metric"] == INDEX_ERROR and not (isinstance(value, str) or _is_error(value)):
        raise ModelError(f"{where}: 'value' of an entry of {key!r} is {str(value)[:40]}; wanted points in [0, 100]")
    return Measurement(**known, errors=tuple(float(value) for value in errors))


def _is_error(value: Any) -> bool:
    """Return whether a value is an absolute error of an index, in points."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 100


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
        raise ModelError(f"{where}: the key {extra[0]!r} is not known here; wanted {', '.join(keys)}")
