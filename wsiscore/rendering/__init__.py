"""Fields painted by Beer–Lambert's law, whose every nucleus is known: Ki67, and the same tissue in other stains.

A field is light through two dyes: ``rgb = glass · 10^-(hematoxylin · v_h + dab · v_d + residual)``, then a camera.
`Look` is what one slide, its laboratory and its scanner have in common; `Layout` says where tumour and glass lie.
"""

from wsiscore.rendering.field import Field, Known, render_field
from wsiscore.rendering.ground import Layout, smooth_noise
from wsiscore.rendering.look import Look
from wsiscore.rendering.nuclei import KINDS
from wsiscore.rendering.pairs import PairField, render_pair
from wsiscore.rendering.stains import STAINS

__all__ = [
    "KINDS",
    "STAINS",
    "Field",
    "Known",
    "Layout",
    "Look",
    "PairField",
    "render_field",
    "render_pair",
    "smooth_noise",
]
