"""Synthetic fields and slides with known nuclei: Ki67 IHC, and the same tissue in other stains.

A field is rendered by the Beer–Lambert law, ``rgb = glass · 10^-(hematoxylin · v_h + dab · v_d + residual)``, and by a
model of the camera. `Appearance` has the parameters of a slide: dyes, nuclei, tissue, camera. `Layout` has the tumour
and the empty glass.
"""
