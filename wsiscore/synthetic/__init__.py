"""Fields painted by Beer–Lambert's law, whose every nucleus is known: Ki67, and the same tissue in other stains.

A field is light through two dyes: ``rgb = glass · 10^-(hematoxylin · v_h + dab · v_d + residual)``, then a camera.
`Look` is what one slide, its laboratory and its scanner have in common; `Layout` says where tumour and glass lie.
"""
