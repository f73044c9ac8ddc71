"""Networks that turn pictures into features: EfficientNet-Lite0, which works offline, and the Inception of the FID."""

from __future__ import annotations

import abc
import functools
import hashlib
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from maskgit.data.pixels import to_signed
from maskgit.data.reading import read_image
from maskgit.tokenizer.imagenet import IMAGENET_MEAN, IMAGENET_STD, efficientnet_lite0

INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
"""Name under which pytorch-fid keeps its weights in PyTorch's hub folder."""
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
INCEPTION_URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{INCEPTION_FILE}"


class WeightsError(ValueError):
    """Weights that are missing or not the right ones; the message says how to get them."""


# --- networks ---------------------------------------------------------------------------------------------------------


class FeatureNetwork(nn.Module, abc.ABC):
    """A frozen classifier of ImageNet, cut before its last layer: pictures to features, features to class logits."""

    name: str
    """As on the command line, in reports and in the names of cached files."""
    preparation: str
    """What `prepare` does, in words that change when it does: features of another preparation are not comparable."""

    @abc.abstractmethod
    def prepare(self, picture: Image.Image) -> Tensor:
        """RGB picture of any size -> float32 [3, S, S], what the network takes."""

    @abc.abstractmethod
    def forward(self, batch: Tensor) -> Tensor:
        """Prepared pictures [B, 3, S, S] -> features [B, D]."""

    @abc.abstractmethod
    def logits(self, features: Tensor) -> Tensor:
        """Features [n, D] -> class logits [n, C]."""

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 over name, preparation and weights: features of equal digests are comparable."""
        digest = hashlib.sha256(f"{self.name}\n{self.preparation}\n".encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


class EfficientNetFeatures(FeatureNetwork):
    """The pooled last features of EfficientNet-Lite0, D = 1280, and its 1000 classes of ImageNet."""

    name = "efficientnet-lite0"
    size = 224
    preparation = f"bicubic {size}, antialiased"

    def __init__(self) -> None:
        super().__init__()
        self.network: Any = efficientnet_lite0().requires_grad_(False)

    def prepare(self, picture: Image.Image) -> Tensor:
        pixels = to_signed(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
        return _imagenet_input(pixels[None], self.size)[0]

    def forward(self, batch: Tensor) -> Tensor:
        return self.network.extract_features(batch).mean((2, 3))

    def logits(self, features: Tensor) -> Tensor:
        return self.network._fc(features)


class InceptionFeatures(FeatureNetwork):
    """The last pooling layer, D = 2048, of the Inception network that FID and Inception score are defined with.

    Its features are those of `python -m pytorch_fid`, except that pictures of several sizes can be in one folder.
    Its logits, of 1008 classes, leave the bias out, as the original code of the Inception score does.
    """

    name = "inception"
    size = 299
    preparation = f"bilinear {size}"

    def __init__(self, network: Any) -> None:
        """`network`: what pytorch-fid's `fid_inception_v3` returns."""
        super().__init__()
        self.network: Any = network.eval().requires_grad_(False)
        self.classifier: Any = self.network.fc
        self.network.fc = nn.Identity()

    def prepare(self, picture: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
        return F.interpolate(pixels[None], (self.size, self.size), mode="bilinear", align_corners=False)[0] * 2 - 1

    def forward(self, batch: Tensor) -> Tensor:
        return self.network(batch)

    def logits(self, features: Tensor) -> Tensor:
        return F.linear(features, self.classifier.weight)


def inception(weights: Path | None = None) -> InceptionFeatures:
    """The Inception network of the FID, built by pytorch-fid. Nothing is downloaded.

    Args:
        weights: pytorch-fid's file of weights; None: where pytorch-fid itself keeps it, below $TORCH_HOME.

    Raises:
        ImportError: pytorch-fid is missing; the message names the extra to install.
        WeightsError: the file is missing, or it is another one. With other weights the result would not be the FID.
    """
    path = weights or Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if not path.is_file():
        raise WeightsError(
            f"no Inception weights for the FID: there is no file {path}\n"
            f"  Download {INCEPTION_URL} (91 MB) to there,\n"
            "  or name a copy with --inception-weights FILE. `python -m pytorch_fid` downloads it too."
        )
    try:
        from pytorch_fid import inception as library
    except ImportError as error:
        raise ImportError("the FID needs the package pytorch-fid: pip install 'maskgit-inpaint[metrics]'") from error
    if hashlib.sha256(path.read_bytes()).hexdigest() != INCEPTION_SHA256:
        raise WeightsError(
            f"{path}: not the weights that the FID is defined with (SHA-256 {INCEPTION_SHA256}); "
            f"download {INCEPTION_URL} again"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise WeightsError(f"{path}: can't be loaded: {error}") from error
    # pytorch-fid builds the network only together with downloading and unpickling its weights.
    download, library.load_state_dict_from_url = library.load_state_dict_from_url, lambda *_, **__: state
    try:
        return InceptionFeatures(library.fid_inception_v3())
    finally:
        library.load_state_dict_from_url = download


# --- features ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def extract_features(
    network: FeatureNetwork,
    pictures: Sequence[Path | Image.Image],
    batch_size: int = 32,
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    """The features, float32 [n, D] on the CPU, of files or RGB pictures, read and prepared in threads.

    Args:
        network: on the device where it shall run; pictures of any size are squeezed to its square.
        progress: called with the number of pictures that were done since the last call.

    Raises:
        ImageError: a file that can't be read as an image.
    """

    def load(picture: Path | Image.Image) -> Tensor:
        return network.prepare(picture if isinstance(picture, Image.Image) else read_image(picture))

    device = next(network.parameters()).device
    batches = []
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(pictures), batch_size):
            batch = torch.stack(list(pool.map(load, pictures[start : start + batch_size])))
            batch = batch.to(device).contiguous(memory_format=torch.channels_last)
            batches.append(network(batch).float().cpu())
            if progress:
                progress(len(batch))
    return torch.cat(batches)


@torch.inference_mode()
def pooled_features(network: nn.Module, images: Tensor, size: int = 224, batch_size: int = 32) -> Iterator[Tensor]:
    """Pooled last features of EfficientNet-Lite0 for images that are tensors already, batch by batch.

    Args:
        network: has `extract_features`, images [B, 3, size, size], normalized as ImageNet's, to [B, D, h, w].
        images: float [n, 3, S, S] in [-1, 1], on any device; they are resized to `size`, bicubic.

    Yields:
        float64 [up to batch_size, D] on the CPU; in order.
    """
    parameter = next(network.parameters())
    for part in images.split(batch_size):
        part = _imagenet_input(part.to(parameter.device, parameter.dtype), size)
        part = part.contiguous(memory_format=torch.channels_last)
        yield network.extract_features(part).double().mean((2, 3)).cpu()  # type: ignore[operator]


def _imagenet_input(images: Tensor, size: int) -> Tensor:
    """Images [B, 3, H, W] in [-1, 1] -> [B, 3, size, size], normalized as ImageNet's."""
    mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    images = F.interpolate(images, (size, size), mode="bicubic", align_corners=False, antialias=True).clamp(-1, 1)
    return ((images + 1) / 2 - mean) / std
