"""How good are the pictures: of one picture against its original, of one set of pictures against another, of tokens.

`python -m maskgit.metrics REAL GENERATED` measures two folders, `python -m maskgit.metrics.card` a model. Imports
`pictures`, `pipeline` and what is below them.
"""

from maskgit.metrics.features import pooled_features
from maskgit.metrics.pairs import hole_errors, perceptual_distance, psnr, psnr_of_mean_error, ssim
from maskgit.metrics.sets import (
    Gaussian,
    Manifold,
    class_score,
    codebook_usage,
    fit_gaussian,
    frechet_distance,
    gaussian_of_moments,
    manifold_scores,
)

__all__ = [
    "Gaussian",
    "Manifold",
    "class_score",
    "codebook_usage",
    "fit_gaussian",
    "frechet_distance",
    "gaussian_of_moments",
    "hole_errors",
    "manifold_scores",
    "perceptual_distance",
    "pooled_features",
    "psnr",
    "psnr_of_mean_error",
    "ssim",
]
