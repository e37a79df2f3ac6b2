"""Fitted estimators as ONNX: each kind of part by the module that knows how its library computes it.

Importing the package registers them all; `registry` finds the one for a part.
"""

from export.tabular.convert import (  # noqa: F401 - each registers what it converts
    encoders,
    forests,
    light_gbm,
    linear,
    meta,
    neighbours,
    preprocessing,
    texts,
    xg_boost,
)
