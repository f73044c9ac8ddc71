"""Every model size in one table of frozen dataclasses, and their JSON form.

A preset is a tokenizer and the transformer that goes with it. No default is declared twice: code that needs a
value asks the config for it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints


class ConfigError(ValueError):
    """A configuration that cannot be built; the message names the field and the value."""


MAX_LAYERS = 500  # blocks of a transformer
MAX_STAGES = 32  # of an encoder or decoder
MAX_BLOCKS = 256  # residual blocks of all its stages
MAX_WIDTH = 2**17
MAX_COUNT = 2**24

# Least and most of each whole number, by its name in any of the classes. More is beyond any model that there is: a
# slip, or it would have layers made until the memory is full.
LIMITS: dict[str, tuple[int, int]] = {
    "image_size": (1, 2**14),
    **dict.fromkeys(("codebook_size", "num_tokens"), (1, MAX_COUNT)),
    **dict.fromkeys(("channels", "codebook_dim", "latent_channels", "stem_channels", "groups"), (1, MAX_WIDTH)),
    **dict.fromkeys(("dim", "heads", "mlp_dim"), (1, MAX_WIDTH)),
    "num_classes": (0, MAX_COUNT),
    "registers": (0, MAX_WIDTH),
    "blocks": (0, MAX_BLOCKS),
    "depth": (1, MAX_LAYERS),
}


def short_repr(value: Any) -> str:
    """What a value looks like, as far as an error has room for it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def some(names: Collection[str]) -> str:
    """The first few names in order, as far as an error has room for them, and how many more there are."""
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(sorted(names)[:3]) + rest


@functools.cache
def _words(kind: type) -> dict[str, tuple[str, ...]]:
    """For each field of a class that holds one of a few words, which."""
    return {name: get_args(hint) for name, hint in get_type_hints(kind).items() if get_origin(hint) is Literal}


def _check_fields(config: Any) -> None:
    """Raise a ConfigError for a whole number out of its limits, and a word that is none of those that may be."""
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), field.name
        if name in LIMITS and not LIMITS[name][0] <= value <= LIMITS[name][1]:
            least, most = LIMITS[name]
            raise ConfigError(f"{name} {value} is {f'less than {least}' if value < least else f'more than {most}'}")
        words = _words(config.__class__).get(name)
        if words and value not in words:
            raise ConfigError(f"{name} {short_repr(value)} is neither {' nor '.join(map(repr, words))}")


@dataclass(frozen=True)
class Stage:
    """One level of the VQGAN's encoder or decoder: residual blocks, then, if asked, a change of resolution."""

    channels: int
    """Width of the stage's residual blocks."""
    blocks: int = 2
    """Number of residual blocks."""
    attention: bool = False
    """Put a self-attention block after each residual block."""
    resample: bool = False
    """After the stage, halve (encoder) or double (decoder) the resolution."""

    def __post_init__(self) -> None:
        _check_fields(self)


@dataclass(frozen=True)
class TokenizerConfig:
    """A VQGAN (Esser et al., CVPR 2021), described by its list of stages."""

    image_size: int = 64
    """Side of the square images, in pixels."""
    codebook_size: int = 1024
    """Number of codes V."""
    codebook_dim: int = 256
    """Width of a code."""
    latent_channels: int = 256
    """Channels between the encoder's last convolution and the 1x1 quant convolution, and on the way back."""
    stem_channels: int = 128
    """Width after the encoder's first convolution."""
    encoder: tuple[Stage, ...] = ()
    """Stages in the order in which they run, from full resolution to the latent grid."""
    decoder: tuple[Stage, ...] = ()
    """Stages in the order in which they run, from the latent grid to full resolution."""
    encoder_middle: bool = True
    """Two residual blocks (and attention) at the bottom of the encoder. Without them a token sees little beyond its own
    patch: the same patch gives the same token anywhere, which is easier to predict."""
    encoder_norm: Literal["group", "position"] = "group"
    """GroupNorm, whose statistics are those of the whole picture, or a LayerNorm over the channels of each position:
    then nothing but the pixels around a patch has a say in its token."""
    downsample: Literal["convolution", "mean"] = "convolution"
    """How the encoder halves the resolution: a convolution of stride 2, or the mean of 2x2 (google-research)."""
    middle_attention: bool = True
    """Self-attention between the two residual blocks at the bottom of encoder and decoder."""
    output_activation: bool = True
    """SiLU between the decoder's last GroupNorm and its last convolution (the lab's VQGAN has none)."""
    groups: int = 32
    """Groups of every GroupNorm."""
    unit_pixels: bool = False
    """The layers see and make pixels in [0, 1] (google-research); what goes in and out is in [-1, 1] all the same."""

    def __post_init__(self) -> None:
        _check_fields(self)
        if not self.encoder or not self.decoder:
            raise ConfigError("a tokenizer needs at least one encoder and one decoder stage")
        for channels in {self.stem_channels, *(stage.channels for stage in self.encoder + self.decoder)}:
            if channels % self.groups:
                raise ConfigError(f"{channels} channels do not divide into {self.groups} GroupNorm groups")
        first = self.decoder[0].channels
        for name, width, stages in (("encoder", self.stem_channels, self.encoder), ("decoder", first, self.decoder)):
            blocks = sum(stage.blocks for stage in stages)
            for number, most, what in ((len(stages), MAX_STAGES, "stages"), (blocks, MAX_BLOCKS, "blocks")):
                if number > most:
                    raise ConfigError(f"{name} has {number} {what}, which is more than {most}")
            for stage in stages:
                if not stage.blocks and stage.channels != width:
                    raise ConfigError(
                        f"{name} stage {stage} has no blocks, so its width must be that of the layer before it, {width}"
                    )
                width = stage.channels
        down, up = (sum(stage.resample for stage in stages) for stages in (self.encoder, self.decoder))
        if down != up:
            raise ConfigError(f"the encoder halves the resolution {down} times but the decoder doubles it {up} times")
        if self.image_size % self.patch:
            below = self.image_size // self.patch * self.patch
            nearest = " or ".join(str(size) for size in (below, below + self.patch) if size)
            raise ConfigError(
                f"image_size {self.image_size} is not a multiple of the patch size {self.patch}: take {nearest}"
            )

    @property
    def patch(self) -> int:
        """Pixels per side of the patch that one token stands for."""
        return 2 ** sum(stage.resample for stage in self.encoder)

    @property
    def grid(self) -> int:
        """Tokens per side."""
        return self.image_size // self.patch

    @property
    def num_tokens(self) -> int:
        """Tokens per image, N."""
        return self.grid**2


@dataclass(frozen=True)
class _OverGrid:
    """What the configurations of all transformers have in common; the defaults are the paper's."""

    codebook_size: int = 1024
    """Number of codes V; the mask token has id V."""
    num_tokens: int = 256
    """Tokens per image N (a square grid, row-major)."""
    dim: int = 768
    """Width of the residual stream."""
    depth: int = 24
    """Number of blocks."""
    heads: int = 16
    """Attention heads; the head_dim is dim / heads."""
    mlp_dim: int = 3072
    """Hidden width of the MLP."""
    dropout: float = 0.1
    """Dropout on the embeddings and on both residual branches (of a HaltonConfig inside the SwiGLU and behind the
    attention)."""
    attention_dropout: float = 0.0
    """Dropout on the attention weights, to the nearest 1/256."""
    num_classes: int = 0
    """Number of classes C; 0 for an unconditional model. One more label, C, stands for a dropped class."""

    def __post_init__(self) -> None:
        _check_fields(self)
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} is not in [0, 1)")
        if self.dim % self.heads:
            raise ConfigError(f"dim {self.dim} does not divide into {self.heads} heads")
        if math.isqrt(self.num_tokens) ** 2 != self.num_tokens:
            raise ConfigError(f"num_tokens {self.num_tokens} is not a square grid")

    @property
    def mask_token_id(self) -> int:
        """The id that stands for a token to be predicted: V."""
        return self.codebook_size

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.heads


@dataclass(frozen=True)
class TransformerConfig(_OverGrid):
    """A bidirectional transformer over the token grid."""

    norm: Literal["pre", "post"] = "pre"
    """LayerNorm before each branch (GPT-2) or after each sum (BERT, the lab)."""
    norm_eps: float = 1e-5
    """Epsilon of the LayerNorms inside the blocks."""
    tied: bool = True
    """Share the output projection with the token embedding, with a bias for each position and code."""
    input_mlp: bool = False
    """Linear, GELU, LayerNorm, Linear between the embeddings and the first block (as in Besnier & Chen, 2023)."""
    gelu: Literal["exact", "tanh"] = "exact"
    """Every GELU: exact, or the approximation by a tanh that is JAX's default (google-research)."""
    qk_norm: bool = False
    """RMSNorm on queries and keys, over all heads together as in Halton-MaskGIT: learns in fewer steps, see
    benchmarks/speedrun.md. (Henry et al., "Query-key normalization for transformers", EMNLP 2020, do so by head.)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.norm_eps <= 1:
            raise ConfigError(f"norm_eps {self.norm_eps} is not in [0, 1]")


@dataclass(frozen=True)
class HaltonConfig(_OverGrid):
    """The transformer of Halton-MaskGIT (Besnier et al., ICLR 2025); the defaults are its released model, for 384x384.

    A diffusion transformer's blocks: the class sets shift, scale and gate of RMSNorms. SwiGLU, RMSNorm on queries and
    keys, register tokens.
    """

    codebook_size: int = 16384
    num_tokens: int = 576
    dim: int = 1024
    mlp_dim: int = 2816
    attention_dropout: float = 0.1
    num_classes: int = 1000
    registers: int = 1
    """Learned tokens that the image's tokens can attend to, without a place in the grid."""
    kind: Literal["halton"] = "halton"
    """Tells this from a TransformerConfig in the JSON form."""


def check_fit(tokenizer: TokenizerConfig, transformer: TransformerConfig | HaltonConfig) -> None:
    """Raise ConfigError where a transformer isn't one over the tokens of a tokenizer."""
    for field in ("codebook_size", "num_tokens"):
        ours, theirs = getattr(tokenizer, field), getattr(transformer, field)
        if ours != theirs:
            raise ConfigError(f"{field} is {ours} in the tokenizer and {theirs} in the transformer")


@dataclass(frozen=True)
class ModelConfig:
    """A tokenizer and the transformer over its tokens."""

    tokenizer: TokenizerConfig
    transformer: TransformerConfig

    def __post_init__(self) -> None:
        check_fit(self.tokenizer, self.transformer)


def taming_tokenizer(image_size: int) -> TokenizerConfig:
    """taming-transformers' f16 VQGAN: ch 128, ch_mult (1, 1, 2, 2, 4), two blocks a level, attention on 16x16."""
    widths = (128, 128, 256, 256, 512)
    last = len(widths) - 1
    return TokenizerConfig(
        image_size=image_size,
        encoder=tuple(Stage(width, 2, attention=i == last, resample=i < last) for i, width in enumerate(widths)),
        decoder=tuple(Stage(widths[i], 3, attention=i == last, resample=i > 0) for i in reversed(range(len(widths)))),
    )


LAB_TOKENIZER = TokenizerConfig(
    encoder=(Stage(128), Stage(128), Stage(256, resample=True), Stage(256), Stage(512, resample=True)),
    decoder=(
        Stage(512, 3, attention=True, resample=True),
        Stage(256, 3),
        Stage(256, 3, resample=True),
        Stage(128, 3),
        Stage(128, 3),
    ),
    output_activation=False,
)
"""The course lab's VQGAN: resampling at its stages 2 and 4, counted from 0 at full resolution."""

EMBEDDED_TOKENIZER = TokenizerConfig(
    codebook_size=1024,
    codebook_dim=16,
    latent_channels=128,
    stem_channels=32,
    # Little at full resolution, where a CPU spends its time, and a small field of view: flat areas get few codes.
    encoder=(Stage(32, 0, resample=True), Stage(128, 1, resample=True)),
    encoder_middle=False,
    encoder_norm="position",
    decoder=(Stage(128, 2, resample=True), Stage(64, 2, resample=True), Stage(32, 1)),
    middle_attention=False,
)

PRESETS: dict[str, ModelConfig] = {
    "embedded": ModelConfig(
        EMBEDDED_TOKENIZER,
        TransformerConfig(dim=256, depth=8, heads=4, mlp_dim=1024, dropout=0.1, num_classes=12, qk_norm=True),
    ),
    "lab": ModelConfig(
        LAB_TOKENIZER,
        TransformerConfig(
            dim=768, depth=15, heads=16, mlp_dim=1536, norm="post", norm_eps=1e-12, attention_dropout=0.1
        ),
    ),
    "maskgit-256": ModelConfig(taming_tokenizer(256), TransformerConfig(num_classes=1000)),
    "maskgit-512": ModelConfig(taming_tokenizer(512), TransformerConfig(num_tokens=1024, num_classes=1000)),
}
"""The presets by name. `lab` is the course lab's model, `maskgit-*` the paper's with the head count of seed 004."""


def preset(name: str) -> ModelConfig:
    """The preset called `name`. Raises ConfigError if there is none."""
    if name not in PRESETS:
        raise ConfigError(f"there is no preset {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def config_to_dict(config: Any) -> dict[str, Any]:
    """The JSON form of one of the dataclasses above."""
    return dataclasses.asdict(config)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


_FIELD_TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "int": (_is_int, "a whole number"),
    "int | None": (lambda value: value is None or _is_int(value), "a whole number or null"),
    "float": (lambda value: isinstance(value, float) or _is_int(value), "a number"),
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "str": (lambda value: isinstance(value, str), "text"),
}
"""What JSON must have for a field, by its annotation. The classes themselves check all others: words and stages."""


def check_json(kind: type, values: Any) -> dict[str, Any]:
    """Values from JSON, of the names and types of a dataclass's fields. Raises ConfigError, naming what isn't."""
    if not isinstance(values, dict):
        raise ConfigError(f"{short_repr(values)} is not a JSON object")
    fields = {field.name: str(field.type) for field in dataclasses.fields(kind)}
    for name, value in values.items():
        if name not in fields:
            raise ConfigError(f"there is no field {short_repr(name)}, which is {short_repr(value)}")
        fits, description = _FIELD_TYPES.get(fields[name], (lambda _: True, ""))
        if not fits(value):
            raise ConfigError(f"{name} {short_repr(value)} is not {description}")
    return values


def tokenizer_from_dict(values: dict[str, Any]) -> TokenizerConfig:
    """Rebuild a tokenizer's config from its JSON form. Raises ConfigError for unknown or impossible fields."""
    try:
        values = dict(check_json(TokenizerConfig, values))
        for name in ("encoder", "decoder"):
            if not isinstance(values.get(name), list | tuple):
                raise ConfigError(f"{name} {short_repr(values.get(name))} is not a list of stages")
            values[name] = tuple(Stage(**check_json(Stage, stage)) for stage in values[name])
        return TokenizerConfig(**values)
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"not a tokenizer configuration: {error}") from error


def transformer_from_dict(values: dict[str, Any]) -> TransformerConfig | HaltonConfig:
    """Rebuild a transformer's config from its JSON form. Raises ConfigError for unknown or impossible fields."""
    try:
        if not isinstance(values, dict) or "kind" not in values:
            return TransformerConfig(**check_json(TransformerConfig, values))
        if values["kind"] != "halton":
            raise ConfigError(f"there is no kind {short_repr(values['kind'])}")
        return HaltonConfig(**check_json(HaltonConfig, values))
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"not a transformer configuration: {error}") from error
