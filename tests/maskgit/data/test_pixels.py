"""Bytes and the numbers that the networks see."""

import torch

from maskgit.data import AvatarDataset
from maskgit.data.pixels import plain_views, to_bytes, to_signed


def test_bytes_come_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(2, 2, 8, 8).to(memory_format=torch.channels_last)
    signed = to_signed(pixels)
    assert signed.dtype == torch.float32 and signed.is_contiguous(memory_format=torch.channels_last)
    assert (signed.min(), signed.max()) == (-1, 1) and signed[0, 0, 0, 1] == 1 / 127.5 - 1
    assert torch.equal(to_bytes(signed), pixels) and pixels[0, 0, 0, 1] == 1  # neither is written into
    values = torch.tensor([-1.5, -1.0, 0.0, 0.999, 2.0])
    assert to_bytes(values).tolist() == [0, 0, 128, 255, 255] and values[0] == -1.5


def test_plain_views() -> None:
    images = AvatarDataset(split="val")
    views = plain_views(images, torch.tensor([3, 0]))
    assert views.dtype == torch.uint8 and views.shape == (2, 3, 64, 64)
    assert torch.equal(views[0].permute(1, 2, 0), torch.from_numpy(images.image(3)))
    assert torch.equal(views[1].permute(1, 2, 0), torch.from_numpy(images.image(0)))
