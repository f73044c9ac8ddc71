"""The transformer of Halton-MaskGIT. (tests/maskgit/convert has it against a computation of its own.)"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from maskgit.config import HaltonConfig
from maskgit.network.folder import Model, ModelError, load_model, save_model
from maskgit.network.halton import HaltonTransformer
from maskgit.network.transformer import RMS_NORM_EPS, QKNorm
from maskgit.pipeline import MaskGIT
from maskgit.tokenizer import VQGAN
from maskgit_kernels import backend

CONFIG = HaltonConfig(
    codebook_size=16, num_tokens=16, dim=32, depth=2, heads=2, mlp_dim=40, num_classes=3, dropout=0.5, registers=2
)


@pytest.fixture
def model() -> HaltonTransformer:
    """With every parameter random."""
    model = HaltonTransformer(CONFIG).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3)
    return model


@torch.no_grad()
def test_labels_and_tokens(model: HaltonTransformer) -> None:
    tokens = torch.randint(17, (2, 16))
    assert model(tokens).shape == (2, 16, 16)
    assert torch.equal(model(tokens), model(tokens, torch.tensor([3, 3])))  # 3 stands for "no class"
    same = tokens[:1].expand(2, -1)
    assert not torch.allclose(*model(same, torch.tensor([0, 1])))
    with pytest.raises(ValueError, match="takes 16 tokens an image, got 25"):
        model(torch.zeros(1, 25, dtype=torch.int64))


@torch.no_grad()
def test_every_position_sees_every_other(model: HaltonTransformer) -> None:
    tokens = torch.randint(16, (1, 16))
    for changed in (0, 15):
        other = tokens.clone()
        other[0, changed] = CONFIG.mask_token_id
        assert ((model(other) - model(tokens)).abs().amax(-1) > 0).all()


@torch.no_grad()
def test_blocks_start_as_identities() -> None:
    """All gates are zero at first: a position's logits depend on its own token and place only, not on the class."""
    model = HaltonTransformer(CONFIG).eval()
    tokens = torch.randint(16, (1, 16))
    other = tokens.clone()
    other[0, 5] = CONFIG.mask_token_id
    changed = (model(other, torch.tensor([1])) != model(tokens)).any(-1)[0]
    assert changed.nonzero().flatten().tolist() == [5]


def test_dropout_is_for_training(model: HaltonTransformer) -> None:
    tokens = torch.randint(17, (1, 16))
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    torch.manual_seed(1)
    first, second = model(tokens), model(tokens)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(model(tokens), first)
    first.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_activations_that_are_computed_anew(model: HaltonTransformer) -> None:
    """Less is kept, with the same dropout and gradients."""
    tokens, labels = torch.randint(17, (2, 16)), torch.tensor([1, 3])
    kept, found = [0, 0], []

    def pack(x: Tensor) -> Tensor:
        kept[model.checkpoint_blocks] += x.numel()
        return x

    for model.train().checkpoint_blocks in (False, True):
        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = model(tokens, labels).square().mean()
        found.append(torch.autograd.grad(loss, list(model.parameters())))
    assert kept[1] < 0.5 * kept[0]
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_queries_and_keys_are_normalized_and_values_are_not(dtype: torch.dtype) -> None:
    """By PyTorch's RMSNorm in float64, of which rounding takes away no more than from PyTorch's in that precision."""
    packed, grad = (torch.randn(2, 5, 3, 48, dtype=torch.float64) * 3 for _ in range(2))

    def both(function: Callable[[Tensor], Tensor], dtype: torch.dtype) -> list[Tensor]:
        leaf = packed.to(dtype).requires_grad_()
        out = function(leaf)
        return [out, *torch.autograd.grad(out, leaf, grad.to(out.dtype))]

    def plain(packed: Tensor) -> Tensor:
        q, k, v = packed.unbind(2)
        return torch.stack([*(F.rms_norm(x, x.shape[-1:], eps=RMS_NORM_EPS) for x in (q, k)), v], 2)

    exact, base = both(plain, torch.float64), both(plain, dtype)
    for found, x, truth in zip(both(QKNorm.apply, dtype), base, exact, strict=True):
        assert found.dtype == dtype
        assert (found - truth).square().mean().sqrt() <= 2 * (x - truth).square().mean().sqrt() + 1e-12
    assert torch.autograd.gradcheck(QKNorm.apply, packed.requires_grad_())


def test_trains_compiled_as_one_graph_with_the_same_dropout(model: HaltonTransformer) -> None:
    model = HaltonTransformer(dataclasses.replace(CONFIG, attention_dropout=0.5)).train()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokens, compiled = torch.randint(17, (2, 16)), torch.compile(model, fullgraph=True, backend="aot_eager")

    def run(network: torch.nn.Module, seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        logits = network(tokens)
        return [logits, *torch.autograd.grad(logits.square().mean(), list(model.parameters()))]

    for seed in (1, 2):
        torch.testing.assert_close(run(compiled, seed), run(model, seed))
    assert not torch.equal(run(model, 1)[0], run(model, 2)[0])


@pytest.mark.usefixtures("cpp_compiler")
def test_trains_compiled_by_inductor(model: HaltonTransformer) -> None:
    tokens = torch.randint(17, (2, 16))
    expected = torch.autograd.grad(model(tokens).square().mean(), list(model.parameters()))
    compiled = torch.compile(model, fullgraph=True)
    found = torch.autograd.grad(compiled(tokens).square().mean(), list(model.parameters()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_gradients_of_attention_are_never_put_together(
    model: HaltonTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the graph of a training step with Triton's kernels; of what has tokens only registers are, behind them."""
    pytest.importorskip("triton")
    monkeypatch.setattr(backend, "_requested", "triton")

    def step(tokens: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(model(tokens).square().mean(), list(model.parameters()))

    nodes = make_fx(step, tracing_mode="fake", _allow_non_fake_inputs=True)(torch.randint(17, (2, 16))).graph.nodes
    assert [str(node.target) for node in nodes].count("maskgit_kernels.attention_backward.default") == CONFIG.depth
    joined = [node for node in nodes if str(node.target) in ("aten.stack.default", "aten.cat.default")]
    assert [node.meta["val"].shape for node in joined if node.meta["val"].ndim > 2] == [(2, 16 + CONFIG.registers, 32)]


@torch.no_grad()
@pytest.mark.parametrize("registers", [0, 2])
def test_model_folder(tmp_path: Path, tiny_tokenizer: VQGAN, registers: int) -> None:
    model = HaltonTransformer(dataclasses.replace(CONFIG, registers=registers)).eval()
    save_model(tmp_path, Model(tiny_tokenizer, model, ["a", "b", "c"]))
    again = load_model(tmp_path).transformer
    assert isinstance(again, HaltonTransformer) and again.config == model.config
    tokens = torch.randint(17, (2, 16))
    assert torch.equal(again(tokens), model(tokens))
    pictures = MaskGIT.from_pretrained(tmp_path, device="cpu").generate(2, labels=["c", None], steps=2)
    assert [picture.size for picture in pictures] == [(16, 16)] * 2
    # A folder of another kind is refused, not misread.
    config = json.loads((tmp_path / "config.json").read_text())
    config["transformer"]["kind"] = "other"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="config.json: not a transformer configuration: .*kind"):
        load_model(tmp_path)
