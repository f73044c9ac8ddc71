"""How good are the pictures: of one picture against its original, of one set of pictures against another, of tokens.

`python -m maskgit.metrics REAL GENERATED` measures two folders, `python -m maskgit.metrics.card` a model. Imports
`pictures`, `pipeline` and what is below them.
"""

from maskgit.metrics.pairs import psnr, ssim
from maskgit.metrics.sets import (
    class_score,
    codebook_usage,
    fit_gaussian,
    frechet_distance,
    manifold_scores,
    monge_distance,
)

__all__ = [
    "class_score",
    "codebook_usage",
    "fit_gaussian",
    "frechet_distance",
    "manifold_scores",
    "monge_distance",
    "psnr",
    "ssim",
]
