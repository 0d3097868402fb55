"""Evaluation of virtual stains and segmentations against true ones; needs the extra ``evaluate``."""

from importlib.util import find_spec

from wsiscore.errors import WsiscoreError

if find_spec("skimage") is None:
    raise WsiscoreError("comparing images needs the package scikit-image; install it: pip install 'wsiscore[evaluate]'")
