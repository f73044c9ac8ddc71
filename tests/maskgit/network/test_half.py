"""The half-precision copies: the same bits as under autocast, without its casts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from benchmarks.autoregressive import CausalDecoder
from benchmarks.training_step import autocast_on_a_gpu
from maskgit.config import HaltonConfig, Stage, TokenizerConfig, TransformerConfig
from maskgit.decoding import DECODERS, DecodeConfig
from maskgit.decoding.graphs import Batch
from maskgit.network.copies import half_copy
from maskgit.network.halton import HaltonTransformer
from maskgit.network.partial import Context
from maskgit.network.transformer import Transformer
from maskgit.pipeline import MaskGIT, networks
from maskgit.tokenizer import VQGAN
from maskgit_kernels import backend

CODES, GRID = 24, 4
N = GRID * GRID
KINDS: dict[str, dict[str, Any] | None] = {
    "pre-norm": {},
    "post-norm": {"norm": "post"},
    "untied": {"tied": False},
    "qk norm": {"qk_norm": True},
    "input mlp": {"input_mlp": True, "gelu": "exact"},
    "halton": None,
}
TOKENIZER = TokenizerConfig(
    image_size=8,
    codebook_size=CODES,
    codebook_dim=8,
    latent_channels=32,
    stem_channels=32,
    encoder=(Stage(32, 1, resample=True, attention=True), Stage(64, 1)),
    decoder=(Stage(64, 1, resample=True), Stage(32, 1)),
)
DTYPES = [torch.bfloat16, torch.float16]


def make(kind: str) -> Transformer | HaltonTransformer:
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(codebook_size=CODES, num_tokens=N, dim=32, depth=2, heads=2, mlp_dim=48, num_classes=3)
    changes = KINDS[kind]
    model = (
        HaltonTransformer(HaltonConfig(**sizes))
        if changes is None
        else Transformer(TransformerConfig(**sizes, **changes))
    )
    for parameter in model.parameters():  # larger than at initialisation, so that every part counts
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def make_tokenizer() -> VQGAN:
    torch.manual_seed(0)
    tokenizer = VQGAN(TOKENIZER).eval()
    for parameter in tokenizer.parameters():
        nn.init.normal_(parameter, std=0.1)
    return tokenizer.to(memory_format=torch.channels_last)


def assert_as_autocast(
    network: nn.Module, dtype: torch.dtype, call: Callable[[Any], Tensor], device: str = "cpu"
) -> None:
    ours = half_copy(network, dtype)
    with torch.inference_mode(), torch.autocast(device, dtype, cache_enabled=False):
        found, expected = call(ours), call(network)
    assert found.dtype == expected.dtype and torch.equal(found, expected)
    assert torch.isfinite(found).all() and found.float().std() > 0


def some_tokens(device: str = "cpu") -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randint(CODES + 1, (3, N)).to(device), torch.tensor([0, 2, 3]).to(device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_logits(kind: str, dtype: torch.dtype) -> None:
    tokens, labels = some_tokens()
    assert_as_autocast(make(kind), dtype, lambda network: network(tokens, labels))
    assert_as_autocast(make(kind), dtype, lambda network: network(tokens))


@pytest.mark.parametrize("kind", KINDS)
def test_some_rows(kind: str) -> None:
    tokens, labels = some_tokens()
    changed = torch.zeros(3, N, dtype=torch.bool)
    changed[:, 2:7] = True

    def reuse(network: Any) -> Tensor:
        context = Context()
        first = network(tokens, labels, context)
        context.choose(changed, 6)
        return torch.cat([first, network(tokens.roll(1), labels, context)])

    assert_as_autocast(make(kind), torch.bfloat16, reuse)
    if kind != "halton":
        rows = torch.tensor([1, 17, 40])
        assert_as_autocast(make(kind), torch.bfloat16, lambda network: network(tokens, labels, rows=rows))


@pytest.mark.parametrize("kind", ["pre-norm", "untied"])
def test_one_token_after_another(kind: str) -> None:
    """The baseline takes a transformer to pieces."""
    tokens, labels = some_tokens()

    def decode(network: Any) -> Tensor:
        decoder = CausalDecoder(network, len(tokens), labels)
        return decoder.logits(decoder.advance(tokens[:, :5]))

    assert_as_autocast(make(kind), torch.bfloat16, decode)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tokenizer(dtype: torch.dtype) -> None:
    images, tokens = torch.rand(2, 3, 8, 8) * 2 - 1, torch.randint(CODES, (2, N))
    assert_as_autocast(make_tokenizer(), dtype, lambda network: network.latents(images))
    assert_as_autocast(make_tokenizer(), dtype, lambda network: network.encode(images))
    assert_as_autocast(make_tokenizer(), dtype, lambda network: network.decode(tokens))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu(kind: str) -> None:
    tokens, labels = some_tokens("cuda")
    for dtype in DTYPES:
        assert_as_autocast(make(kind).cuda(), dtype, lambda network: network(tokens, labels), "cuda")
        decoded = torch.randint(CODES, (2, N), device="cuda")
        assert_as_autocast(make_tokenizer().cuda(), dtype, lambda network, x=decoded: network.decode(x), "cuda")


@pytest.mark.parametrize("kind", [*KINDS, "tokenizer"])
def test_what_is_cast_and_what_is_shared(kind: str) -> None:
    network = make_tokenizer() if kind == "tokenizer" else make(kind)
    before = {name: (tensor, tensor.clone()) for name, tensor in network.named_parameters()}
    ours = dict(half_copy(network, torch.bfloat16).named_parameters())
    for name, tensor in network.named_parameters():
        assert (
            tensor is before[name][0]
            and torch.equal(tensor, before[name][1])
            and tensor.requires_grad == (name != "codebook.weight")
        )
        if name in ours and ours[name].dtype == torch.float32:
            assert ours[name] is tensor
    cast = {name for name, tensor in ours.items() if tensor.dtype == torch.bfloat16}
    layers = {
        f"{name}.{part}"
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        for part, _ in module.named_parameters()
    }
    assert cast == layers | ({"bias"} if kind == "halton" else set())
    if kind == "tokenizer":
        assert all(
            ours[name].is_contiguous(memory_format=torch.channels_last) for name in cast if name.endswith("weight")
        )


# --- launches and casts -----------------------------------------------------------------------------------------------


def from_a_weight(value: Any) -> bool:
    """Whether a node's value is that of a parameter, or of a part of it."""
    while isinstance(value, Node) and value.op == "call_function" and is_view(value):
        value = value.args[0]
    return isinstance(value, Node) and value.op == "get_attr" and "param" in str(value.target)


def is_view(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(x.alias_info and not x.alias_info.is_write for x in schema.returns)


def casts(graph: GraphModule) -> list[Node]:
    return [node for node in graph.graph.nodes if node.target == torch.ops.aten._to_copy.default]


def weight_casts(graph: GraphModule) -> int:
    return sum(from_a_weight(node.args[0]) for node in casts(graph))


def launches(graph: GraphModule) -> int:
    """Operators that do something; on a GPU each is a kernel at least."""
    operators = [node for node in graph.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    return sum(not is_view(node) for node in operators)


@pytest.fixture
def unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU runs what a GPU runs."""
    monkeypatch.setattr(networks, "can_pack", lambda: False)


@pytest.fixture(params=["logits", "head_sample"])
def head(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether a step draws from logits, or from what the head multiplies, as where Triton's kernels run."""
    if request.param == "head_sample":
        monkeypatch.setattr(backend, "resolve", lambda *args: "triton")
    return request.param


def make_pipeline(kind: str) -> MaskGIT:
    return MaskGIT(make_tokenizer(), make(kind), ["a", "b", "c"], device="cpu", precision="bf16")


def exported(model: MaskGIT, config: DecodeConfig) -> GraphModule:
    """The decoding loop of all steps as a graph."""
    loop = model._loop(config)

    def run(*tensors: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return [part for state in loop(Batch(*tensors)) for part in state]

    tokens, labels = some_tokens()
    return make_fx(run)(tokens, tokens == tokens, torch.tensor([1, 2, 3]), labels)


LOOPS = {
    "plain": DecodeConfig(steps=2),
    "guided": dataclasses.replace(DECODERS["valeo"], steps=2),
    "reuse": DecodeConfig(steps=2, reuse=1, remask=0.5),
}


@pytest.mark.parametrize("kind, loop", [("pre-norm", "guided"), ("untied", "plain"), ("halton", "reuse")])
def test_no_weight_is_cast_in_the_loop(
    unpacked: None, head: str, kind: str, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = exported(make_pipeline(kind), LOOPS[loop])
    assert weight_casts(ours) == 0
    monkeypatch.setattr(networks, "half_copy", lambda network, dtype: network)
    theirs = exported(make_pipeline(kind), LOOPS[loop])
    # Of each layer's weight and bias, at every step.
    assert weight_casts(theirs) > LOOPS[loop].steps * 8
    assert launches(theirs) - launches(ours) == weight_casts(theirs)
    assert len(casts(theirs)) - len(casts(ours)) == weight_casts(theirs)


def to_pretended_gpu(network: nn.Module) -> nn.Module:
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.empty_like(parameter, device="cuda"), parameter.requires_grad))
    return network


# Weights and biases of what a pass goes through.
CAST = {
    # 4 linear layers in each of 2 blocks, 1 in the head, and the matrix of the last product.
    "pre-norm": 2 * (2 * 4 + 1) + 1,
    # 5 linear layers without a bias in each block and 1 with one, another before the last product, which has a bias.
    "halton": 2 * (5 + 2) + 2 + 2,
    # Convolutions: 2 at first, 2 + 4 + 2 in the middle, 2 and 3 in residual blocks, 1 between, 1 at last.
    "tokenizer": 2 * (2 + 8 + 2 + 3 + 1 + 1),
}


@pytest.mark.parametrize("kind", CAST)
def test_launches_on_a_gpu(kind: str) -> None:
    network = make_tokenizer() if kind == "tokenizer" else make(kind)

    def traced(network: Any) -> GraphModule:
        return make_fx(lambda tokens: network.decode(tokens) if kind == "tokenizer" else network(tokens))(tokens)

    with FakeTensorMode(allow_non_fake_inputs=True), autocast_on_a_gpu(), torch.no_grad():
        tokens = torch.zeros(2, N, dtype=torch.int64, device="cuda")
        network = to_pretended_gpu(network)
        theirs, ours = traced(network), traced(half_copy(network, torch.bfloat16))
    assert (weight_casts(theirs), weight_casts(ours)) == (CAST[kind], 0)
    assert launches(theirs) - launches(ours) == CAST[kind]


# --- in the pipeline --------------------------------------------------------------------------------------------------


def pictures(model: MaskGIT, **options: Any) -> list[np.ndarray]:
    images = [np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8) for i in range(3)]
    masks = [np.random.default_rng(i).random((8, 8)) < 0.2 for i in range(3)]
    found = model.inpaint(
        [Image.fromarray(image) for image in images], masks, labels=[0, None, 2], paste=False, **options
    )
    made = model.generate(2, **options)
    return [np.asarray(picture) for picture in (*(result.image for result in found), *made)]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_those_of_autocast(
    unpacked: None, head: str, kind: str, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = pictures(make_pipeline(kind), config=LOOPS[loop])
    monkeypatch.setattr(networks, "half_copy", lambda network, dtype: network)
    for ours, theirs in zip(found, pictures(make_pipeline(kind), config=LOOPS[loop]), strict=True):
        assert np.array_equal(ours, theirs)


def test_changed_weights_are_used(unpacked: None) -> None:
    model, other = make_pipeline("pre-norm"), make_pipeline("pre-norm")
    before = pictures(model, steps=2)
    for changed in (model, other):
        with torch.no_grad():
            changed.transformer.blocks[0].mlp[0].weight.neg_()
            changed.tokenizer.post_quant_conv.weight.neg_()
    after = pictures(model, steps=2)
    assert not any(np.array_equal(x, y) for x, y in zip(before, after, strict=True))
    assert all(np.array_equal(x, y) for x, y in zip(after, pictures(other, steps=2), strict=True))


def test_the_original_weights_are_saved(unpacked: None, tmp_path: Any) -> None:
    model = make_pipeline("untied")
    pictures(model, steps=2)
    model.save_pretrained(tmp_path)
    again = MaskGIT.from_pretrained(tmp_path, device="cpu").transformer.state_dict()
    for name, tensor in model.transformer.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, again[name])
