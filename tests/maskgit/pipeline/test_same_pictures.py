"""The embedded model gives the same picture whichever implementation runs."""

from importlib import resources

import numpy as np
import pytest
from PIL import Image

from maskgit import MaskGIT
from maskgit_kernels import backend


@pytest.mark.slow
def test_triton_and_torch_fill_a_hole_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(backend, "_requested", "auto")
    with resources.as_file(resources.files("maskgit") / "assets" / "samples") as samples:
        image = Image.open(sorted(samples.iterdir())[0]).convert("RGB")
    mask = np.zeros((image.height, image.width), dtype=bool)
    mask[image.height // 4 : image.height // 2, image.width // 4 : image.width // 2] = True
    model = MaskGIT.from_pretrained(precision="float32")
    pictures = {}
    for kernels in ("torch", "triton"):
        backend.use(kernels)
        pictures[kernels] = np.asarray(model.inpaint([image], [mask], steps=2)[0].image)
    assert not np.array_equal(pictures["torch"], np.asarray(image))
    assert np.array_equal(pictures["torch"], pictures["triton"])
