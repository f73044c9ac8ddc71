"""The autoregressive baseline: the same transformer, one token after another in raster order, with a key-value cache.

It answers one question: how long does an autoregressive decoder of this very size take, so that its time can stand
beside that of parallel decoding (Chang et al., "MaskGIT", CVPR 2022, section 4.2). The weights are those of a
transformer that was trained to see all known tokens at once and to predict the token at its own place. Here each place
sees only the places before it, and predicts its token from the one before. No training has prepared the weights for
that: **the pictures are not meant to be good, only the time is.**
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.checks import check_decoding, check_tokens
from benchmarks.harness import Case, Comparison
from benchmarks.models import decode_tokens, make_models
from benchmarks.setting import Setting
from maskgit import MaskGIT
from maskgit.decoding import DecodeConfig
from maskgit.network.transformer import Attention, Block, Transformer
from maskgit_kernels.decode_step import decode_step

STEPS = (8, 12)
ROUNDS = 5


class CausalDecoder:
    """A transformer run causally over the raster order, with the keys and values of the past kept.

    Its sequence is the class token, if there is one, the mask token as the start, then the image's tokens; each output
    predicts the token after its input. Runs in the precision of an enclosing autocast. Labels are int64 [B] in [0, C];
    C (or None) means no class.

    Raises:
        ValueError: labels for a model without classes, or a transformer in training mode.
    """

    def __init__(self, transformer: Transformer, batch: int, labels: Tensor | None = None) -> None:
        config = transformer.config
        if transformer.training:
            raise ValueError("the transformer is in training mode: call eval() first")
        if labels is not None and not config.num_classes:
            raise ValueError("labels were given, but the model was trained without classes (num_classes is 0)")
        self.transformer = transformer
        self._blocks = cast(list[Block], list(transformer.blocks))
        self.position = 0
        """How many of the image's tokens have been predicted."""
        self._past = 0  # entries of the cache in use
        self._cache: list[tuple[Tensor, Tensor]] = []  # keys and values [B, H, N (+ 1), D] of each block
        if config.num_classes:
            if labels is None:
                labels = torch.full((batch,), config.num_classes, device=transformer.position_embedding.device)
            # Its position embedding is the last, its place here the first: everything may see it.
            self._run((labels + config.codebook_size + 1)[:, None], transformer.position_embedding[-1:])

    def advance(self, inputs: Tensor) -> Tensor:
        """Predict the next n tokens: hidden states [B, n, dim] for `logits`.

        The inputs, int64 [B, n], are the tokens from one before the first of them; the image's first has the mask token
        before it. ValueError where the image has fewer tokens left.
        """
        stop = self.position + inputs.shape[1]
        if stop > self.transformer.config.num_tokens:
            raise ValueError(f"token {stop} of an image of {self.transformer.config.num_tokens}")
        hidden = self._run(inputs, self.transformer.position_embedding[self.position : stop])
        self.position = stop
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [B, n, V] from the last n hidden states [B, n, dim] of the latest `advance`."""
        transformer, config = self.transformer, self.transformer.config
        x = transformer.head(transformer.final_norm(hidden))
        if config.tied:
            bias = transformer.bias[self.position - x.shape[1] : self.position]
            return F.linear(x, transformer.token_embedding.weight[: config.codebook_size]) + bias
        return transformer.unembedding(x)

    def _run(self, inputs: Tensor, position_embedding: Tensor) -> Tensor:
        """Tokens int64 [B, n] at the end of the sequence -> hidden states [B, n, dim]."""
        transformer = self.transformer
        x = transformer.token_embedding(inputs) + position_embedding
        x = transformer.input_mlp(transformer.embedding_norm(x))  # [B, n, dim]
        for index, block in enumerate(self._blocks):
            if block.pre_norm:
                x = x + self._attend(index, block.attention, block.norm1(x))
                x = x + block.mlp(block.norm2(x))
            else:
                x = block.norm1(x + self._attend(index, block.attention, x))
                x = block.norm2(x + block.mlp(x))
        self._past += inputs.shape[1]
        return x

    def _attend(self, index: int, attention: Attention, x: Tensor) -> Tensor:
        """The attention of one block, of x [B, n, dim] over the past and x itself; fills the block's cache."""
        count = x.shape[1]
        q, k, v = attention.project(x).permute(2, 0, 3, 1, 4).unbind(0)  # [B, H, n, D]
        if index == len(self._cache):  # in the dtype that the first keys turn out to have
            shape = (*k.shape[:2], len(self.transformer.position_embedding), k.shape[3])
            self._cache.append((k.new_empty(shape), v.new_empty(shape)))
        keys, values = self._cache[index]
        stop = self._past + count
        keys[:, :, self._past : stop], values[:, :, self._past : stop] = k, v
        # A single query sees all of the past; of several, each sees itself and those before it.
        visible = None if count == 1 else x.new_ones(count, stop, dtype=torch.bool).tril(self._past)
        out = F.scaled_dot_product_attention(q, keys[:, :, :stop], values[:, :, :stop], visible)
        return attention.proj(out.transpose(1, 2).flatten(2))


@torch.inference_mode()
def decode_autoregressively(
    transformer: Transformer,
    tokens: Tensor,
    masked: Tensor,
    seeds: Tensor,
    *,
    labels: Tensor | None = None,
    softmax_temperature: float = 1.0,
    positions: Sequence[int] | None = None,
) -> Tensor:
    """Fill the masked tokens in raster order: the baseline whose time is compared (see the module's docstring).

    A pass for each position that is masked in any image, N for a whole picture; known ones before it are passed along.
    Each token is drawn by `decode_step` with the position's number as the step, from the image's own seed.

    Args:
        transformer: in evaluation mode.
        tokens: int64 [B, N]; what they hold where masked does not matter. Not modified.
        masked: bool [B, N], True = to be filled.
        seeds: int64 [B], one per image.
        labels: int64 [B] as for the transformer.
        softmax_temperature: divides the logits.
        positions: ascending; all that are masked in any image. None: they are looked up. With these, nothing is read
            from the device or copied to it, so a CUDA graph can capture all passes.

    Returns:
        int64 [B, N].

    Raises:
        ValueError: arguments that do not fit each other; NaN logits on a CPU.
    """
    config = transformer.config
    if tokens.shape != masked.shape or tokens.dim() != 2 or tokens.shape[1] != config.num_tokens:
        raise ValueError(
            f"tokens and masked must both be [B, {config.num_tokens}], "
            f"got {list(tokens.shape)} and {list(masked.shape)}"
        )
    decoder = CausalDecoder(transformer, len(tokens), labels)
    sequence = F.pad(tokens, (1, 0), value=config.mask_token_id)  # [B, 1 + N]; entry n is the input that predicts n
    none_left = torch.zeros_like(seeds)
    for position in masked.any(0).nonzero().flatten().tolist() if positions is None else positions:
        here = slice(position, position + 1)
        hidden = decoder.advance(sequence[:, decoder.position : position + 1])
        drawn, _ = decode_step(
            decoder.logits(hidden[:, -1:]),
            tokens[:, here],
            masked[:, here],
            none_left,
            seeds=seeds,
            step=position,
            num_codes=config.codebook_size,
            softmax_temperature=softmax_temperature,
        )
        sequence[:, position + 1] = drawn[:, 0]
    return sequence[:, 1:].contiguous()


# --- the comparison ---------------------------------------------------------------------------------------------------


def comparisons(setting: Setting) -> Iterator[Comparison]:
    """A whole picture of tokens by a small model and a large one, at the precision of hardware with bf16."""
    for name, batch in {"embedded": 8, "maskgit-256": 1}.items():
        yield Comparison(
            "autoregressive",
            f"{name}-b{batch}",
            {"raster_order": "", **{f"parallel_{steps}_steps": "" for steps in STEPS}},
            functools.partial(cases, name, batch, setting),
            shape={"model": name, "batch": batch},
            dtype=torch.bfloat16,
            item="image",
            items=batch,
            rounds=None if setting.on_gpu else ROUNDS,
        )


def cases(name: str, batch: int, setting: Setting) -> dict[str, Case]:
    """One token after the other, and in a few steps."""
    model = make_models(name, setting.device, setting.quick)["bf16"]
    few = functools.partial(raster, model, 2, last=4)
    check = functools.partial(check_tokens, few, model.transformer.config.codebook_size)
    made = {"raster_order": Case(functools.partial(raster, model, batch), check)}
    for steps in STEPS:
        run = functools.partial(decode_tokens, model, DecodeConfig(steps=steps), batch, None)
        made[f"parallel_{steps}_steps"] = Case(run, functools.partial(check_decoding, model))
    return made


@torch.inference_mode()
def raster(model: MaskGIT, batch: int, last: int | None = None) -> Tensor:
    """Tokens int64 [B, N] made one by one: all of them, or the last few after tokens that are all 0."""
    network = model._fastest(model.transformer)
    assert isinstance(network, Transformer)
    tokens = torch.zeros(batch, network.config.num_tokens, dtype=torch.int64, device=model.device)
    masked = torch.ones_like(tokens, dtype=torch.bool)
    if last is not None:
        masked[:, :-last] = False
    with torch.autocast(model.device.type, torch.bfloat16, enabled=model.autocast, cache_enabled=False):
        return decode_autoregressively(network, tokens, masked, torch.arange(batch, device=model.device))
