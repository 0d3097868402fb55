"""What decides the values of a mosaic, and whether one on disk may be continued."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from wsiscore.errors import MosaicError
from wsiscore.tiles import TileList

__all__ = ["Identity", "metadata", "refuse_other"]


@dataclass(frozen=True, slots=True)
class Identity:
    """All that decides the values of a mosaic besides its tiles; a mosaic of another identity is never continued.

    Parameters
    ----------
    slide_sha256
        Content of the slide, as `wsiscore.slide.slide.Slide.sha256`.
    model
        Of the model, as `wsiscore.models.store.Model.identity`.
    batch_size
        Tiles a batch: the last digits of a network's sums may depend on it.
    device
        Kind of device: ``cpu``, ``cuda`` or ``mps``.
    arithmetic
        Version of the computation from pixels to maps.
    """

    slide_sha256: str
    model: Mapping[str, Any]
    batch_size: int
    device: str
    arithmetic: int


def metadata(
    layout: str, tiles: TileList, channels: Sequence[str], identity: Identity, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the metadata of a mosaic as they are read back from JSON, with tuples as lists.

    Parameters
    ----------
    layout
        Name of the format on disk.
    tiles, channels, identity, about
        As in `wsiscore.mosaic.Mosaic.create`.
    """
    meta = {"channels": list(channels), "tiles": tiles.to_json(), "identity": asdict(identity), **about}
    meta["format"] = layout
    return cast(dict[str, Any], json.loads(json.dumps(meta)))


def refuse_other(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any], *, complete: bool) -> None:
    """Raise an error unless a mosaic has the wanted metadata, or is complete and holds the wanted maps and more.

    Parameters
    ----------
    path
        Of the mosaic, for the message.
    found, wanted
        Metadata as of `metadata`; `found` may have further keys.
    complete
        Whether the mosaic is complete.

    Raises
    ------
    MosaicError
        Names what differs.
    """
    changed = sorted(key for key in wanted if _comparable(key, wanted[key]) != _comparable(key, found.get(key)))
    what_to_do = "delete it or choose another folder with -o"
    if changed == ["channels"]:
        if lacking := [name for name in wanted["channels"] if name not in found["channels"]]:
            raise MosaicError(f"{path} was made without the maps {', '.join(lacking)}; {what_to_do}")
        if [name for name in found["channels"] if name in wanted["channels"]] == wanted["channels"]:
            if complete:
                return
            raise MosaicError(f"{path} is unfinished and holds more maps; finish it with --maps all, or {what_to_do}")
    if changed:
        names = sorted({name for key in changed for name in _differing(key, wanted.get(key), found.get(key))})
        raise MosaicError(f"{path} was started with other settings ({', '.join(names)}); {what_to_do}")


def _comparable(key: str, value: Any) -> Any:
    """Return what of a metadata value decides the maps: not where the slide lies or where its regions are from."""
    if key == "tiles" and isinstance(value, dict):
        return {name: part for name, part in value.items() if name not in ("slide", "roi_source")}
    return value


def _differing(key: str, wanted: Any, found: Any) -> list[str]:
    """Return the names of what differs in one metadata value: the parts of an identity, else its key."""
    if key != "identity" or not isinstance(found, dict):
        return [key]
    return [name for name in wanted if wanted[name] != found.get(name)]
