"""From pixels to tokens, filled step by step, and back: the two networks as they run fastest. Tensors only."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from maskgit.console import first_line
from maskgit.decoding import DecodeConfig, changed_counts, decode_plan, decode_steps, graphs, masked_counts
from maskgit.decoding.draft import doubtful
from maskgit.decoding.graphs import Batch, GraphCache, Loop
from maskgit.network.copies import Network, can_pack, half_copy, pack
from maskgit.network.halton import HaltonTransformer
from maskgit.network.partial import Context, MaskedRowsNetwork, ReusingNetwork
from maskgit.network.transformer import Transformer
from maskgit.tokenizer import VQGAN
from maskgit_kernels import backend

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_MASKED_STRIDE = 32  # numbers of masked tokens that a CUDA graph with reuse is made for


class Networks:
    """A tokenizer and a transformer on a device, and how they are run there; what `MaskGIT` is made of.

    Both are put in evaluation mode and moved to `device`, which must be there; `precision` is float32, bf16 or fp16.
    Raises a ValueError: a MASKGIT_GRAPHS that is neither 0 nor 1.
    """

    def __init__(
        self, tokenizer: VQGAN, transformer: Transformer | HaltonTransformer, device: torch.device, precision: str
    ) -> None:
        # channels_last: 1.7 times as fast to encode on a CPU.
        self.tokenizer = tokenizer.to(memory_format=torch.channels_last).eval()
        self.transformer = transformer.eval()
        self._place(device, precision)

    def _place(self, device: torch.device, precision: str) -> None:
        self.device, self.precision = device, precision
        self.tokenizer.to(device)
        self.transformer.to(device)
        self.graphs = GraphCache() if graphs.wanted() and device.type == "cuda" else None
        self._copies: dict[type[nn.Module], tuple[object, nn.Module]] = {}

    @property
    def dtype(self) -> torch.dtype:
        """Of matrix products and convolutions."""
        return DTYPES[self.precision]

    @property
    def autocast(self) -> bool:
        """Whether that is another than the weights'."""
        return self.dtype != torch.float32

    def _autocast(self) -> torch.autocast:
        # No cache: there are no weights to cast, and a graph must not leave any behind in its own memory.
        return torch.autocast(self.device.type, self.dtype, enabled=self.autocast, cache_enabled=False)

    def _packs(self) -> bool:
        return self.device.type == "cpu" and can_pack()

    def _fastest(self, network: Network) -> Network:
        """Tokenizer or transformer as it runs: a copy, made anew when weights have changed, if that is faster."""
        state = [(x.data_ptr(), 0 if x.is_inference() else x._version) for x in network.parameters()], self.precision
        before, copied = self._copies.get(type(network), (None, network))
        if before != state:
            copied = network
            if self._packs():
                copied = pack(network, self.dtype)
            elif self.autocast:
                copied = half_copy(network, self.dtype)
                if self.device.type == "cuda":  # other threads may use it on streams of their own
                    torch.cuda.current_stream(self.device).synchronize()
            self._copies[type(network)] = state, copied
            if network is self.transformer and self.graphs is not None:
                self.graphs.clear()  # they know weights by their places, and keep old copies alive
        return cast(Network, copied)

    @torch.inference_mode()
    def _encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] in [-1, 1] -> tokens int64 [B, N]."""
        encode = self._fastest(self.tokenizer).encode
        with self._autocast():
            return torch.cat([encode(part) for part in self._parts(images)])

    @torch.inference_mode()
    def _to_pixels(self, tokens: Tensor) -> Tensor:
        """Tokens [B, N] -> images [B, 3, S, S], about [-1, 1]."""
        decode = self._fastest(self.tokenizer).decode
        with self._autocast():
            return torch.cat([decode(part) for part in self._parts(tokens)])

    def _parts(self, batch: Tensor) -> Sequence[Tensor]:
        # CPU convolutions round differently in batches of different size (the transformer does not), and a code on
        # the border between two would flip. One image at a time is as fast there, within a third.
        return batch.split(1 if self.device.type == "cpu" else len(batch))

    @torch.inference_mode()
    def _doubtful(self, draft: Tensor, masked: Tensor, odds: Tensor, seeds: list[int], labels: Tensor | None) -> Tensor:
        """The part of `masked`, bool [B, N], that a draft's tokens [B, N] don't settle: see `decoding.draft`."""
        held = draft.masked_fill(masked, self.transformer.config.mask_token_id)
        with self._autocast():
            logits = self._fastest(self.transformer)(held, labels)
        return doubtful(logits[..., : self.tokenizer.config.codebook_size], draft, masked, self._numbers(seeds), odds)

    def _numbers(self, seeds: list[int]) -> Tensor:
        # Pinned: any other copy to a GPU would wait until the images are encoded.
        numbers = torch.tensor(seeds, dtype=torch.int64, pin_memory=self.device.type == "cuda")
        return numbers.to(self.device, non_blocking=True)

    # --- the decoding loop -------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _decode(
        self,
        tokens: Tensor,
        masked: Tensor,
        config: DecodeConfig,
        seeds: list[int],
        labels: Tensor | None,
        batch_size: int,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Tokens [B, N] and what is still masked, bool [B, N], after each step; `batch_size` is the run's usual B."""
        if labels is None:
            config = dataclasses.replace(config, guidance_scale=0.0)  # guided by no class, the logits stay the same
        batch = Batch(tokens, masked, self._numbers(seeds), labels)
        yield from self._states(batch, config, batch_size)

    def _states(self, batch: Batch, config: DecodeConfig, batch_size: int) -> Iterable[tuple[Tensor, Tensor]]:
        if self.graphs is None:
            return self._loop(config, int(batch.masked.sum(1).max()))(batch)
        most_masked = None
        if config.reuse:  # rounded up, so that few graphs do for all masks
            most = -(-int(batch.masked.sum(1).max()) // _MASKED_STRIDE) * _MASKED_STRIDE
            most_masked = min(batch.masked.shape[1], most)
        self._fastest(self.transformer)  # which drops the graphs of earlier weights
        key = (config, batch.labels is None, backend.resolve(None, self.device), most_masked)
        try:
            states = self.graphs.run(lambda: self._loop(config, most_masked), key, batch, batch_size)
            return zip(*states, strict=True)
        except RuntimeError as error:
            reason = first_line(error)
        # Only here is the memory of the failed capture free. If the loop itself is at fault, it fails again, as itself.
        steps = list(self._loop(config, most_masked)(batch))
        self.graphs = None
        warnings.warn(
            f"the decoding loop runs without a CUDA graph from now on, and more slowly, because capturing it failed: "
            f"{reason} (MASKGIT_GRAPHS=0 in the environment doesn't try)",
            RuntimeWarning,
            stacklevel=2,
        )
        return steps

    def _loop(self, config: DecodeConfig, most_masked: int | None = None) -> Loop:
        """The decoding loop for images of which at most so many tokens are masked; None: any number."""
        num_tokens, mask_token_id = self.tokenizer.config.num_tokens, self.transformer.config.mask_token_id
        plan = decode_plan(config, num_tokens, self.device)
        most_masked = num_tokens if most_masked is None else most_masked
        counts = (changed_counts if config.reuse else masked_counts)(config, num_tokens, most_masked)
        network = self._fastest(self.transformer)
        # Where it is packed, the rounding of its products doesn't depend on the number of rows (but for AMX's in bf16,
        # which depends on the number of images anyway).
        some_rows = self._packs() and isinstance(network, Transformer)
        # With Triton's kernels head_sample knows the fastest way from what the head multiplies to tokens. PyTorch would
        # gain nothing, and on a CPU the rounding of its products depends on how many rows there are.
        head = None
        if backend.resolve(None, self.device) == "triton":
            weight, bias = self.transformer.output_weights()
            if not self._packs():
                weight, _ = network.output_weights()  # may be cast already
            head = weight.detach().to(self.dtype), bias.detach()

        def evaluate(tokens: Tensor, labels: Tensor | None, context: Context | None = None, **rows: Tensor) -> Tensor:
            with self._autocast():
                if head is not None:
                    return network.hidden(tokens, labels, context, **rows).to(self.dtype)
                return network(tokens, labels, context, **rows)

        def loop(batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
            predict: Callable[[Tensor, Tensor | None], Tensor] = evaluate
            if config.reuse:
                predict = ReusingNetwork(evaluate, config.reuse, counts, mask_token_id)
            elif some_rows:
                predict = MaskedRowsNetwork(evaluate, counts, mask_token_id)

            def guided(tokens: Tensor) -> tuple[Tensor, Tensor]:
                assert batch.labels is not None
                no_class = torch.full_like(batch.labels, self.transformer.config.num_classes)
                both = predict(tokens.repeat(2, 1), torch.cat([batch.labels, no_class]))
                return both[: len(tokens)], both[len(tokens) :]

            states = decode_steps(
                lambda tokens: predict(tokens, batch.labels),
                batch.tokens,
                batch.masked,
                config,
                batch.seeds,
                mask_token_id=mask_token_id,
                tokens_to_guided=guided,
                head=head,
                plan=plan,
            )
            return (state[1:] for state in states)

        return loop
