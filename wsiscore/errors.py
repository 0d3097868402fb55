"""The exceptions of wsiscore, drawn as a tree.

::

    WsiscoreError
    ├── SlideError (ValueError)         a slide cannot be opened or read
    │   └── ResolutionError             its micrometres per pixel are unknown
    ├── RoiError (ValueError)           an annotation file or an outline cannot be used
    ├── ModelError (ValueError)         a model is unknown, broken, or of another family
    ├── MosaicError (ValueError)        a mosaic or tile list is unfinished, stale or foreign
    │   └── DamagedMosaicError          chunks of it are missing or have the wrong checksum
    ├── CorrectionError (ValueError)    corrected cells cannot be used, or a report was issued already
    ├── ExportError (ValueError)        results cannot be written in the format of another system
    ├── ManifestError (ValueError)      a manifest of slides cannot be used
    ├── TruthError (ValueError)         predictions and what they are measured against do not go together
    └── OutputError (OSError)           a result cannot be written

The text of each says what was found, what was wanted and what to do. The command line turns these, and only
these, into one line and exit status 1.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "CorrectionError",
    "DamagedMosaicError",
    "ExportError",
    "ManifestError",
    "ModelError",
    "MosaicError",
    "OutputError",
    "ResolutionError",
    "RoiError",
    "SlideError",
    "TruthError",
    "WsiscoreError",
]


class WsiscoreError(Exception):
    """An error that the user can correct; the text says how."""


class SlideError(WsiscoreError, ValueError):
    """A slide cannot be opened or read."""


class ResolutionError(SlideError):
    """A slide does not say how many micrometres a pixel is."""


class RoiError(WsiscoreError, ValueError):
    """An annotation file cannot be read, or an outline cannot be used on this slide."""


class ModelError(WsiscoreError, ValueError):
    """A model is unknown, its files are broken, or its weights belong to another family."""


class MosaicError(WsiscoreError, ValueError):
    """A mosaic or a tile list is unfinished, stale, or was not written by wsiscore."""


class DamagedMosaicError(MosaicError):
    """Chunks of a mosaic are missing or have the wrong checksum.

    Parameters
    ----------
    text
        What is damaged, and what to do.
    tiles
        (row, col) of the tiles that must be computed again.
    """

    def __init__(self, text: str, tiles: Sequence[tuple[int, int]]) -> None:
        super().__init__(text, list(tiles))
        self.tiles = list(tiles)

    def __str__(self) -> str:
        return str(self.args[0])


class CorrectionError(WsiscoreError, ValueError):
    """Corrected cells cannot be used, or would replace a report that somebody issued; what was there stands."""


class ExportError(WsiscoreError, ValueError):
    """Results are not there, or cannot be written in the format of another system."""


class ManifestError(WsiscoreError, ValueError):
    """A manifest of slides cannot be read, or a field of it cannot be used."""


class TruthError(WsiscoreError, ValueError):
    """Predictions or the truth they are measured against cannot be read, or do not go together."""


class OutputError(WsiscoreError, OSError):
    """A result cannot be written."""
