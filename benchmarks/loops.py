"""Other people's loops, and ours: `lab`, from pictures to pictures, and `tokens`, without a tokenizer.

The course-lab programs, each in float32 and eager mode: encode the picture, predict, draw with torch.distributions,
decode to pixels, and encode those pixels again at the next step; attention is written out, convolutions are in
PyTorch's default layout. They crash on more than one picture; here the same loop takes a batch.

The loop of public MaskGIT code, for `maskgit-256`, is float32 and eager, its transformer that of `naive_transformer`,
its step the chain of `naive_decode`; with guidance it makes two passes, one after the other.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.checks import check_decoding, check_inpainting, check_logits, check_tokens
from benchmarks.harness import Case, Comparison, WrongResultError
from benchmarks.models import DTYPES, decode_tokens, make_models, pictures_with_holes, size, transformer_of
from benchmarks.naive_decode import eager_decode_step
from benchmarks.naive_transformer import NaiveTransformer, forward_flops
from benchmarks.setting import Setting
from maskgit import MaskGIT
from maskgit.canvas.holes import cells_with_holes
from maskgit.decoding import DecodeConfig
from maskgit.decoding.schedules import mask_counts
from maskgit.memory import keep_freed_memory
from maskgit.network.transformer import Transformer
from maskgit.tokenizer import VQGAN
from maskgit.tokenizer.layers import AttentionBlock

STEPS = 8
CHOICE_TEMPERATURE = 4.5
ROUNDS = {1: 5, 8: 3}
TOKENS_MODEL, TOKENS_BATCH, GUIDANCE_SCALE = "maskgit-256", 8, 3.0
TOKEN_ROUNDS = {0.0: 2, GUIDANCE_SCALE: 1}  # by guidance scale: on a CPU these rounds take 45 and 90 seconds
SAME_PIXELS = 1e-3  # largest difference between the decoders, of pixels in about [-1, 1]
SAME_TOKENS = 0.99  # share of the encoders' tokens that must agree: near ties, rounding decides


class NaiveAttentionBlock(nn.Module):
    """The tokenizer's self-attention, written out."""

    def __init__(self, ours: AttentionBlock) -> None:
        super().__init__()
        self.norm, self.q, self.k, self.v, self.proj = ours.norm, ours.q, ours.k, ours.v, ours.proj

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, h, w]."""
        batch, channels, height, width = x.shape
        normed = self.norm(x)
        q = self.q(normed).reshape(batch, channels, height * width).permute(0, 2, 1)  # [B, h * w, C]
        k = self.k(normed).reshape(batch, channels, height * width)
        v = self.v(normed).reshape(batch, channels, height * width)
        weights = torch.softmax(torch.bmm(q, k) * channels**-0.5, dim=2)  # [B, h * w, h * w]
        out = torch.bmm(v, weights.permute(0, 2, 1))
        return x + self.proj(out.reshape(batch, channels, height, width))


class NaiveTokenizer(nn.Module):
    """A copy of our tokenizer, in the default memory layout, with distances to all codes written out."""

    def __init__(self, ours: VQGAN) -> None:
        super().__init__()
        self.vqgan = copy.deepcopy(ours).to(memory_format=torch.contiguous_format)
        for half in (self.vqgan.encoder, self.vqgan.decoder):
            for number, layer in enumerate(half):
                if isinstance(layer, AttentionBlock):
                    half[number] = NaiveAttentionBlock(layer)

    def encode(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> int64 [B, N]."""
        latents = self.vqgan.latents(images).permute(0, 2, 3, 1).contiguous()  # [B, h, w, D]
        flat, codes = latents.view(-1, latents.shape[-1]), self.vqgan.codebook.weight
        distances = flat.pow(2).sum(1, keepdim=True) + codes.pow(2).sum(1) - 2 * torch.matmul(flat, codes.t())
        return torch.argmin(distances, dim=1).view(len(images), -1)

    def decode(self, tokens: Tensor) -> Tensor:
        """int64 [B, N] -> [B, 3, S, S]."""
        grid = self.vqgan.config.grid
        codes = self.vqgan.codebook(tokens).view(len(tokens), grid, grid, -1)
        return self.vqgan.decode_latents(codes.permute(0, 3, 1, 2).contiguous())


class LabProgram:
    """Inpainting as the programs do it."""

    def __init__(self, tokenizer: VQGAN, transformer: Transformer) -> None:
        self.tokenizer = NaiveTokenizer(tokenizer).eval()
        self.transformer = NaiveTransformer(transformer).eval()

    @torch.no_grad()
    def inpaint(self, images: Tensor, masked: Tensor, steps: int = STEPS) -> Tensor:
        """Images [B, 3, S, S] in [-1, 1], masked bool [B, N] -> filled images."""
        mask_id, at_first = self.transformer.config.mask_token_id, masked.sum(1)
        for step in range(steps):
            tokens = self.tokenizer.encode(images)
            logits = self.transformer(tokens.masked_fill(masked, mask_id))  # [B, N, V + 1]
            ratio = (step + 1) / steps
            tokens, masked = self._draw(logits, tokens, masked, at_first, ratio)
            images = self.tokenizer.decode(tokens)
        return images

    def _draw(
        self, logits: Tensor, tokens: Tensor, masked: Tensor, at_first: Tensor, ratio: float
    ) -> tuple[Tensor, Tensor]:
        probabilities = logits.softmax(dim=-1)
        drawn = torch.distributions.Categorical(logits=logits).sample()
        while torch.any(drawn == self.transformer.config.mask_token_id):
            drawn = torch.distributions.Categorical(logits=logits).sample()
        drawn = torch.where(masked, drawn, tokens)
        chosen = probabilities.gather(-1, drawn.unsqueeze(-1)).squeeze(-1)
        noise = torch.distributions.Gumbel(0.0, 1.0).sample(chosen.shape).to(chosen.device)
        confidence = torch.where(masked, chosen + CHOICE_TEMPERATURE * (1 - ratio) * noise, torch.inf)
        left = (at_first * np.cos(ratio * np.pi / 2)).long()  # [B]
        threshold = torch.sort(confidence, dim=-1).values.gather(-1, left[:, None])
        return drawn, confidence < threshold

    def __call__(self, images: list[Image.Image], holes: list[np.ndarray], steps: int = STEPS) -> list[Image.Image]:
        """Pictures in, pictures out: what is timed."""
        config, device = self.tokenizer.vqgan.config, self.transformer.position_embedding.device
        cells = np.stack([cells_with_holes(hole, config.grid, config.grid).ravel() for hole in holes])
        filled = self.inpaint(to_pixels(images, device), torch.from_numpy(cells).to(device), steps)
        bytes_ = ((filled.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(picture) for picture in bytes_]


def lab_comparisons(setting: Setting) -> Iterator[Comparison]:
    """One picture, and eight."""
    for batch in (1, 8):
        yield Comparison(
            "lab",
            f"b{batch}",
            {"lab_program": "", **{f"ours_{precision}": "" for precision in DTYPES}},
            functools.partial(lab_cases, batch, setting),
            shape={"model": "lab", "batch": batch, "steps": STEPS, "hole": "a quarter of the picture"},
            item="image",
            items=batch,
            flops=STEPS * forward_flops(size("lab", setting.quick).transformer, batch),
            rounds=None if setting.on_gpu else ROUNDS[batch],
            apart=True,
        )


def lab_cases(batch: int, setting: Setting) -> dict[str, Case]:
    """The programs and ours on `batch` pictures of the model's size."""
    models = make_models("lab", setting.device, setting.quick)
    plain = models["float32"]
    program = LabProgram(plain.tokenizer, transformer_of(plain))
    images, holes = pictures_with_holes(batch, plain.tokenizer.config.image_size)
    run = functools.partial(program, images, holes)
    made = {"lab_program": Case(run, functools.partial(check_program, program, plain))}
    for precision, model in models.items():
        made[f"ours_{precision}"] = Case(
            functools.partial(model.inpaint, images, holes, steps=STEPS),
            functools.partial(check_lab, model, program),
            dtype=DTYPES[precision],
            start=keep_freed_memory,
        )
    return made


def check_program(program: LabProgram, ours: MaskGIT) -> None:
    """The programs' networks compute what ours do in float32, and a step fills the hole."""
    check_logits(transformer_of(ours), program.transformer)
    images, holes = pictures_with_holes(1, ours.tokenizer.config.image_size)
    pixels = to_pixels(images, ours.device)
    with torch.no_grad():
        expected, got = ours.tokenizer.encode(pixels), program.tokenizer.encode(pixels)
        same = float((expected == got).float().mean())
        if same < SAME_TOKENS:
            raise WrongResultError(f"only {same:.1%} of the tokens are those of our encoder")
        error = float((ours.tokenizer.decode(expected) - program.tokenizer.decode(expected)).abs().max())
    if not error < SAME_PIXELS:
        raise WrongResultError(f"the decoded pixels differ from ours by {error:.2g}")
    picture = np.array(program(images, holes, steps=1)[0])
    if np.array_equal(picture[holes[0]], np.array(images[0])[holes[0]]):
        raise WrongResultError("nothing was filled")


def check_lab(model: MaskGIT, program: LabProgram) -> None:
    """The logits are the programs', up to this precision, and the pictures are inpaintings."""
    check_logits(model, program.transformer)
    check_inpainting(model)


def to_pixels(images: list[Image.Image], device: torch.device) -> Tensor:
    """RGB pictures -> float32 [B, 3, S, S] in [-1, 1]."""
    pixels = np.stack([np.array(image) for image in images])
    return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


# --- tokens only ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def naive_decode(
    transformer: NaiveTransformer, labels: Tensor, steps: int = STEPS, guidance_scale: float = 0.0
) -> Tensor:
    """Tokens int64 [B, N] from nothing, for labels int64 [B]; guidance needs a second pass at each step."""
    config = transformer.config
    masked = torch.ones(len(labels), config.num_tokens, dtype=torch.bool, device=labels.device)
    tokens = torch.zeros_like(masked, dtype=torch.int64)
    no_class = torch.full_like(labels, config.num_classes)
    left = mask_counts(masked.sum(1).cpu(), steps, "cosine").to(labels.device)  # [T, B]
    for step in range(steps):
        visible = tokens.masked_fill(masked, config.mask_token_id)
        logits = transformer(visible, labels)
        unguided = transformer(visible, no_class) if guidance_scale else None
        tokens, masked = eager_decode_step(
            logits,
            tokens,
            masked,
            left[step],
            choice_temperature=CHOICE_TEMPERATURE * (1 - (step + 1) / steps),
            guidance_logits=unguided,
            guidance_scale=guidance_scale,
        )
    return tokens


def token_comparisons(setting: Setting) -> Iterator[Comparison]:
    """Without guidance, and with; ours in bfloat16, which a user gets where the hardware has it."""
    for guidance_scale in (0.0, GUIDANCE_SCALE):
        passes = STEPS * (2 if guidance_scale else 1)
        yield Comparison(
            "tokens",
            f"{TOKENS_MODEL}-b{TOKENS_BATCH}{'-guided' if guidance_scale else ''}",
            {"naive_loop": "", "ours_bf16": ""},
            functools.partial(token_cases, guidance_scale, setting),
            shape={"model": TOKENS_MODEL, "batch": TOKENS_BATCH, "steps": STEPS, "guidance_scale": guidance_scale},
            item="image",
            items=TOKENS_BATCH,
            flops=passes * forward_flops(size(TOKENS_MODEL, setting.quick).transformer, TOKENS_BATCH),
            rounds=None if setting.on_gpu else TOKEN_ROUNDS[guidance_scale],
            apart=True,
        )


def token_cases(guidance_scale: float, setting: Setting) -> dict[str, Case]:
    """The naive loop and ours."""
    model = make_models(TOKENS_MODEL, setting.device, setting.quick)["bf16"]
    naive = NaiveTransformer(transformer_of(model)).eval()
    config = DecodeConfig(steps=STEPS, guidance_scale=guidance_scale)
    labels = torch.arange(TOKENS_BATCH, device=setting.device) % naive.config.num_classes
    return {
        "naive_loop": Case(
            functools.partial(naive_decode, naive, labels, guidance_scale=guidance_scale),
            functools.partial(check_naive, naive, model, guidance_scale),
        ),
        "ours_bf16": Case(
            functools.partial(decode_tokens, model, config, TOKENS_BATCH, labels),
            functools.partial(check_loop, model, naive, guidance_scale),
            dtype=torch.bfloat16,
        ),
    }


def check_naive(naive: NaiveTransformer, ours: MaskGIT, guidance_scale: float) -> None:
    """The same logits as ours in float32, and a loop that ends with codes."""
    check_logits(transformer_of(ours), naive)
    labels = torch.zeros(1, dtype=torch.int64, device=ours.device)
    decode = functools.partial(naive_decode, naive, labels, 1, guidance_scale)
    check_tokens(decode, naive.config.codebook_size, repeats=False)


def check_loop(model: MaskGIT, naive: NaiveTransformer, guidance_scale: float) -> None:
    """The naive logits but for rounding; and a loop that ends with codes and repeats itself."""
    check_logits(model, naive)
    check_decoding(model, steps=1, guidance_scale=guidance_scale)
