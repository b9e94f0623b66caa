"""The encoders of `saelab.pursuit.encoders` by name; this file needs no torch."""

from typing import Literal

EncoderName = Literal[
    "omp",
    "omp-l0",
    "omp-l1",
    "omp-sqrt-l0",
    "omp-sqrt-l1",
    "mp",
    "lasso",
    "l0",
    "half",
    "cel0",
]
GREEDY = "omp-"
"""What the names of the penalised greedy rules begin with."""
