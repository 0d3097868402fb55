"""What the attributes of a mosaic must be: one table, by which they are checked when it is opened.

A mosaic may be copied, edited, or made by another program. ``tiles`` and ``rules`` are checked by what reads them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wsiscore.errors import MosaicError
from wsiscore.quality.measures import MEASURES
from wsiscore.stain import Stain

__all__ = ["FORMAT", "FORMATS_READ", "check_attributes"]

FORMAT = "wsiscore-mosaic-3"
"""Of the mosaics that are written."""
FORMATS_READ = ("wsiscore-mosaic-1", "wsiscore-mosaic-2", FORMAT)
"""The first had one file a chunk, no checksums and no identity; the second maps of cells in float16."""

_MOST_CHANNELS = 64
_MOST_OD = 5
_MOST_PX = 2**31
_SHOWN = 60  # characters of a wrong value
_IDENTITY: Mapping[str, type] = {
    "slide_sha256": str,
    "model": dict,
    "batch_size": int,
    "device": str,
    "arithmetic": int,
}


def check_attributes(path: Path, about: Mapping[str, Any]) -> None:
    """Refuse a mosaic that lacks an attribute, or has one with which nothing can be computed.

    Parameters
    ----------
    path
        Of the mosaic, for the message.
    about
        Its attributes, as `wsiscore.ome_zarr.metadata`; unknown ones are left alone.

    Raises
    ------
    MosaicError
        Names the attribute, what it is, and what is wanted; or the format, if that is of another version.
    KeyError, TypeError
        If they are none of a mosaic.
    """
    if about["format"] not in FORMATS_READ:
        raise MosaicError(f"{path} has format {about['format']!r}, this version reads {FORMAT!r}; infer again")
    needed = _NEEDED if about["format"] == FORMATS_READ[0] else {*_NEEDED, "identity"}
    for name, (wanted, is_right) in _ATTRIBUTES.items():
        if is_right(about[name]) if name in about else name not in needed:
            continue
        found = json.dumps(about[name])[:_SHOWN] if name in about else "missing"
        raise MosaicError(
            f"{path}: its attribute {name!r} is {found}; wanted {wanted}. "
            "Copy the mosaic again, or delete it and score the slide itself"
        )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_text_or_null(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_number(value: Any, least: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _is_object(value: Any, is_right: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(map(is_right, value.values()))


def _is_list(value: Any, is_right: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(is_right, value))


def _is_plain(value: Any) -> bool:
    """Return whether JSON has finite numbers only."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def _are_names(value: Any) -> bool:
    return _is_list(value, _is_text) and 1 <= len(value) == len(set(value)) <= _MOST_CHANNELS


def _are_points(value: Any) -> bool:
    return _is_object(value, lambda each: _is_number(each, 0, 100))


def _are_points_by_image(value: Any) -> bool:
    return _is_object(value, lambda some: _is_list(some, lambda each: _is_number(each, 0, 100)))


def _is_identity(value: Any) -> bool:
    return isinstance(value, dict) and all(type(value.get(name)) is kind for name, kind in _IDENTITY.items())


def _is_size(value: Any) -> bool:
    return _is_list(value, lambda each: type(each) is int and 1 <= each <= _MOST_PX) and len(value) == 2


def _is_stain(value: Any) -> bool:
    try:
        Stain.from_json(value)
    except (KeyError, TypeError, ValueError):
        return False
    return True


_NEEDED = {"channels", "tiles", "model", "output"}
_ATTRIBUTES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "channels": (f"1 to {_MOST_CHANNELS} different names of maps", _are_names),
    "tiles": ("a tile list", lambda value: isinstance(value, dict)),
    "model": ("an object of texts with the model's name", lambda value: _is_object(value, _is_text_or_null)),
    "output": ("the name of a kind of output", _is_text),
    "identity": (f"an object with {', '.join(_IDENTITY)}", _is_identity),
    "slide_size_px": ("two whole numbers", _is_size),
    "virtual": ("an object of texts", lambda value: _is_object(value, _is_text_or_null)),
    "dab_ground_od": (f"an optical density in [0, {_MOST_OD}]", lambda value: _is_number(value, 0, _MOST_OD)),
    "polarity": ("a text or null", _is_text_or_null),
    "index_errors": ("an object of numbers in [0, 100]", _are_points),
    "index_errors_by_image": ("an object of lists of numbers in [0, 100]", _are_points_by_image),
    "stain": ("the vectors and the white level of a stain", _is_stain),
    "pink_share": ("a number in [0, 1]", lambda value: _is_number(value, 0, 1)),
    "found": ("an object of finite numbers", lambda value: isinstance(value, dict) and _is_plain(value)),
    "measures": (", ".join(MEASURES), lambda value: value == list(MEASURES)),
}
