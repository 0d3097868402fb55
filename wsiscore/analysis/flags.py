"""The words of the column ``flags``, each with its sentence for a reader: the one list of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

__all__ = ["FLAGS", "UNSUITABLE", "flag_sentence", "join_flags", "split_flags"]

FLAGS: Final[dict[str, str]] = {
    "not_h_dab": "The stain is not hematoxylin and DAB, so there is no call.",
    "cells_edited": "The cells were corrected by hand after the model found them.",
    "indeterminate": "The index is too close to the cutoff, for its uncertainty, to say on which side it lies.",
    "limit_decides": "The side of the cutoff depends on how brown a nucleus must be to count as positive.",
    "hot_spot_differs": "The protocols of counting disagree about the side of the cutoff.",
    "models_disagree": "The models that were compared disagree about the index.",
    "blocks_few": "The index varies over distances too long for this area: the interval of sampling is a lower bound.",
    "found_tissue": "No regions were given: all tissue that was found is counted, tumour or not.",
    "tiles_missing": "Some tiles could not be read; counts and area leave them out.",
    "pale": "The stain is weaker than the model was tested on.",
    "over_stained": "The background is stained so strongly that nuclei are hard to tell from it.",
    "pen": "Pen marks lie in the regions.",
    "blur": "Parts of the regions are out of focus.",
    "fold": "Folds of tissue lie in the regions.",
    "mpp_implausible": "The nuclei have an implausible size for the stated µm/px.",
}
"""Each word and its sentence, in the order in which flags are listed: the most important first."""

UNSUITABLE: Final = frozenset({"not_h_dab"})
"""Flags of a slide that gets no call."""

_ORDER = {word: place for place, word in enumerate(FLAGS)}


def flag_sentence(word: str) -> str:
    """Return the sentence of a flag; of a word that is not in `FLAGS`, as of a later version, the word itself."""
    return FLAGS.get(word, word)


def join_flags(flags: Iterable[str]) -> str:
    """Return flags as a table has them: each once, in the order of `FLAGS`, joined by ``;``."""
    return ";".join(sorted(set(flags), key=lambda word: (_ORDER.get(word, len(_ORDER)), word)))


def split_flags(text: str) -> tuple[str, ...]:
    """Return the flags of what `join_flags` returned."""
    return tuple(filter(None, text.split(";")))
