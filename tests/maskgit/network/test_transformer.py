"""The transformer against one written from scratch. (tests/maskgit/convert has the models that it covers.)"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import maskgit.network.transformer
from maskgit.config import TransformerConfig
from maskgit.network.dropout import layer_seeds
from maskgit.network.transformer import Transformer
from maskgit_kernels import backend

VARIANTS = [
    {"norm": norm, "tied": tied, "num_classes": classes, "input_mlp": mlp, "gelu": gelu}
    for norm, tied, classes, mlp, gelu in (
        ("pre", True, 0, False, "exact"),
        ("pre", False, 3, False, "tanh"),
        ("post", True, 3, False, "tanh"),
        ("post", False, 0, False, "exact"),
        ("pre", True, 3, True, "exact"),
        ("pre", True, 0, True, "tanh"),
    )
]


def make(config: TransformerConfig, **changes: object) -> Transformer:
    """A transformer with every parameter random, so that none can be left out unnoticed."""
    model = Transformer(dataclasses.replace(config, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.ndim < 2 else 0.0, 0.5)
    return model


def naive(model: Transformer, tokens: Tensor, labels: Tensor | None) -> Tensor:
    """The same function in plain float64 arithmetic, one image and one head at a time."""
    config, p = model.config, {name: value.double() for name, value in model.state_dict().items()}

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def norm(x: Tensor, name: str, eps: float) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]
        )

    def gelu(x: Tensor) -> Tensor:
        if config.gelu == "tanh":
            return x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2

    def attention(x: Tensor, name: str) -> Tensor:
        q, k, v = linear(x, f"{name}.qkv").split(config.dim, -1)
        heads = []
        for start in range(0, config.dim, config.head_dim):
            own = slice(start, start + config.head_dim)
            scores = q[:, own] @ k[:, own].T / math.sqrt(config.head_dim)
            weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
            heads.append(weights @ v[:, own])
        return linear(torch.cat(heads, -1), f"{name}.proj")

    outputs = []
    for image, row in enumerate(tokens):
        x = p["token_embedding.weight"][row]
        if config.num_classes:
            label = config.num_classes if labels is None else int(labels[image])
            x = torch.cat([x, p["token_embedding.weight"][config.codebook_size + 1 + label][None]])
        x = norm(x + p["position_embedding"], "embedding_norm", 1e-12)
        if config.input_mlp:
            x = linear(norm(gelu(linear(x, "input_mlp.0")), "input_mlp.2", 1e-12), "input_mlp.4")
        for i in range(config.depth):
            block = f"blocks.{i}"
            if config.norm == "pre":
                x = x + attention(norm(x, f"{block}.norm1", config.norm_eps), f"{block}.attention")
                hidden = gelu(linear(norm(x, f"{block}.norm2", config.norm_eps), f"{block}.mlp.0"))
                x = x + linear(hidden, f"{block}.mlp.2")
            else:
                x = norm(x + attention(x, f"{block}.attention"), f"{block}.norm1", config.norm_eps)
                hidden = gelu(linear(x, f"{block}.mlp.0"))
                x = norm(x + linear(hidden, f"{block}.mlp.2"), f"{block}.norm2", config.norm_eps)
        if config.norm == "pre":
            x = norm(x, "final_norm", 1e-12)
        x = norm(gelu(linear(x[: config.num_tokens], "head.0")), "head.2", 1e-12)
        if config.tied:
            outputs.append(x @ p["token_embedding.weight"][: config.codebook_size].T + p["bias"])
        else:
            outputs.append(linear(x, "unembedding"))
    return torch.stack(outputs)


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda c: "-".join(f"{k}={v}" for k, v in c.items()))
def test_against_naive(tiny_transformer_config: TransformerConfig, changes: dict) -> None:
    model = make(tiny_transformer_config, norm_eps=1e-3, **changes)
    tokens = torch.randint(17, (3, 16))
    labels = torch.tensor([0, 2, 3]) if changes["num_classes"] else None
    expected = naive(model, tokens, labels)
    logits = model(tokens, labels)
    assert logits.shape == (3, 16, 16)  # the codes only: no column for the mask token or the labels
    scale = float(expected.abs().max())
    assert (logits - expected).abs().max() < 1e-5 * scale
    torch.testing.assert_close(model.double()(tokens, labels), expected, rtol=1e-9, atol=1e-9 * scale)


def test_labels(tiny_transformer_config: TransformerConfig) -> None:
    model = make(tiny_transformer_config, num_classes=3)
    tokens = torch.full((2, 16), model.config.mask_token_id)
    logits = model(tokens, torch.tensor([0, 1]))
    assert not torch.allclose(logits[0], logits[1])
    assert torch.equal(model(tokens), model(tokens, torch.tensor([3, 3])))  # 3 stands for "no class"
    with pytest.raises(ValueError, match="without classes"):
        make(tiny_transformer_config)(tokens, torch.tensor([0, 1]))


def test_wrong_number_of_tokens(tiny_transformer_config: TransformerConfig) -> None:
    with pytest.raises(ValueError, match="takes 16 tokens an image, got 25"):
        make(tiny_transformer_config)(torch.zeros(1, 25, dtype=torch.int64))


def test_every_position_sees_every_other(tiny_transformer_config: TransformerConfig) -> None:
    model = make(tiny_transformer_config)
    tokens = torch.randint(16, (1, 16))
    for changed in (0, 15):
        other = tokens.clone()
        other[0, changed] = model.config.mask_token_id
        assert ((model(other) - model(tokens)).abs().amax(-1) > 0).all()


def test_initialisation(tiny_transformer_config: TransformerConfig) -> None:
    model = Transformer(dataclasses.replace(tiny_transformer_config, dim=64, mlp_dim=256, tied=False))
    matrices = {name: p for name, p in model.named_parameters() if p.ndim == 2}
    for name, matrix in matrices.items():
        assert float(matrix.detach().abs().max()) <= 0.04, name  # cut at two deviations
        # Which leaves a deviation of 0.8796 * 0.02.
        assert abs(float(matrix.detach().std()) - 0.01759) < 0.0015, name
    assert len(matrices) == 2 + 4 * 2 + 2  # embeddings; four in each block; the head's two
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert torch.equal(parameter.detach().unique(), torch.tensor([0.0 if name.endswith("bias") else 1.0])), name
    assert torch.equal(Transformer(tiny_transformer_config).bias.detach(), torch.zeros(16, 16))


def test_dropout_is_for_training(tiny_transformer_config: TransformerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict] = []
    real = maskgit.network.transformer.attention_packed

    def spy(*args: Tensor, **options: object) -> Tensor:
        asked.append(options)
        return real(*args, **options)

    monkeypatch.setattr(maskgit.network.transformer, "attention_packed", spy)
    model = make(tiny_transformer_config, dropout=0.0, attention_dropout=0.5)
    tokens = torch.randint(17, (1, 16))
    assert torch.equal(model(tokens), model(tokens))
    assert [options for options in asked] == [{"dropout_p": 0.0, "seed": None}] * 4
    asked.clear()
    model.train()
    torch.manual_seed(1)
    first, second = model(tokens), model(tokens)
    assert not torch.equal(first, second)
    assert [options["dropout_p"] for options in asked] == [0.5] * 4
    assert len({int(options["seed"]) for options in asked}) == 4  # another mask in every layer and every step
    torch.manual_seed(1)
    assert torch.equal(model(tokens), first)
    # Dropout on the residual stream, likewise.
    model = make(tiny_transformer_config, dropout=0.5)
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


def test_seeds_of_dropout_are_drawn_at_once(
    tiny_transformer_config: TransformerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For all layers, in training only, and where a multiple of 16 bytes begins."""
    drawn: list[Tensor] = []
    randint = torch.randint

    def noted_randint(*args: Any, **options: Any) -> Tensor:
        drawn.append(randint(*args, **options))
        return drawn[-1]

    monkeypatch.setattr(torch, "randint", noted_randint)
    tokens = randint(17, (1, 16))
    for changes, train, draws in (
        ({"attention_dropout": 0.5}, True, 1),
        ({"attention_dropout": 0.5}, False, 0),
        ({}, True, 0),
    ):
        make(tiny_transformer_config, dropout=0.0, **changes).train(train)(tokens)
        assert len(drawn) == draws
        drawn.clear()
    seeds = layer_seeds(3, 0.5, torch.device("cpu"))
    assert all(seed is not None and seed.data_ptr() % 16 == 0 for seed in seeds)
    assert len({int(seed) for seed in seeds if seed is not None}) == 3


def test_activation_checkpointing_replays_dropout(tiny_transformer_config: TransformerConfig) -> None:
    model = make(tiny_transformer_config, dropout=0.0, attention_dropout=0.5).train()
    tokens, found = torch.randint(17, (2, 16)), []
    for model.checkpoint_blocks in (False, True):
        torch.manual_seed(3)
        found.append(torch.autograd.grad(model(tokens).square().mean(), list(model.parameters())))
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradients_of_attention_are_never_put_together(
    tiny_transformer_config: TransformerConfig, monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    """In the graph of a training step with Triton's kernels."""
    pytest.importorskip("triton")
    monkeypatch.setattr(backend, "_requested", "triton")
    model = make(tiny_transformer_config, dim=32, heads=2, dropout=0.0, attention_dropout=dropout).train()

    def step(tokens: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(model(tokens).square().mean(), list(model.parameters()))

    graph = make_fx(step, tracing_mode="fake", _allow_non_fake_inputs=True)(torch.randint(17, (2, 16))).graph
    names = [str(node.target) for node in graph.nodes]
    assert names.count("maskgit_kernels.attention_backward.default") == model.config.depth
    assert not {"aten.stack.default", "aten.cat.default"} & set(names)


def test_trains_compiled_as_one_graph_with_the_same_dropout() -> None:
    """Two blocks, so that a second seed would show if seeds were compiled in."""
    config = TransformerConfig(
        codebook_size=16, num_tokens=16, dim=32, depth=2, heads=2, mlp_dim=40, dropout=0.3, attention_dropout=0.5
    )
    model, tokens = make(config).train(), torch.randint(17, (2, 16))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")

    def run(network: torch.nn.Module, seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        logits = network(tokens)
        return [logits, *torch.autograd.grad(logits.square().mean(), list(model.parameters()))]

    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in (1, 2):
            torch.testing.assert_close(run(compiled, seed), run(model, seed))
