"""Decoding tokens: `config` and presets, `schedules`, `plan`, `loop`, and `graphs`, the loop as a CUDA graph.

And `draft`, which says what is to be decoded although there is a draft of it, and `masking`, the masks of training,
which follow the same schedules. It knows tokens, masks and logits, but no model and no picture, and may import
`maskgit_kernels` only.
"""

from maskgit.decoding.config import DECODERS, ORDERS, DecodeConfig, decoder
from maskgit.decoding.loop import decode, decode_steps
from maskgit.decoding.plan import DecodePlan, changed_counts, decode_plan, masked_counts

__all__ = [
    "DECODERS",
    "ORDERS",
    "DecodeConfig",
    "DecodePlan",
    "changed_counts",
    "decode",
    "decode_plan",
    "decode_steps",
    "decoder",
    "masked_counts",
]
