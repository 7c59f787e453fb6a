"""Encodes pictures to latents and captions to text states, by a frozen VAE and a frozen text encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from asdm.data.datasets import Encoded, Example
from asdm.data.loader import Slot
from asdm.models.loading import weights_sha256

MEMORY_BYTES = 2**30  # of encoded examples that are kept, so that a small data set is encoded once


class Encoder:
    """VAE and text encoder of a pipeline, on the device where they are.

    Examples with an index are encoded one by one and kept in memory, so that their bits do not depend on the batch.
    """

    def __init__(self, pipeline: Any) -> None:
        self.vae, self.text, self.tokenizer = pipeline.vae, pipeline.text_encoder, pipeline.tokenizer
        for module in (self.vae, self.text):
            module.eval().requires_grad_(False)
        self.factor = float(self.vae.config.scaling_factor)
        self._kept: dict[int | str, tuple[torch.Tensor, ...]] = {}  # moments by index, states by caption
        self._bytes = 0

    @property
    def device(self) -> torch.device:
        return next(self.text.parameters()).device

    @torch.no_grad()
    def moments(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and spread (b, 4, h', w') of the latents of pictures (b, 3, h, w), scaled as the UNet expects them."""
        posterior = self.vae.encode(images.to(self.device, next(self.vae.parameters()).dtype)).latent_dist
        return posterior.mean.float() * self.factor, posterior.std.float() * self.factor

    @torch.no_grad()
    def states(self, captions: Sequence[str]) -> torch.Tensor:
        """Text states (b, tokens, c), which the UNet attends to."""
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer(
            list(captions), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).input_ids
        return self.text(tokens.to(self.device))[0].float()

    def nothing(self) -> torch.Tensor:
        """The states (tokens, c) of the empty caption, for classifier-free guidance."""
        return self._states_of("")

    def encode(self, slots: Sequence[Slot]) -> list[Encoded]:
        """The examples of all slots, encoded on the encoder's device."""
        ready: dict[int, Encoded] = {}
        together: list[tuple[int, Example]] = []
        for i, slot in enumerate(slots):
            if isinstance(slot.example, Encoded):
                mean, std, states = (x.to(self.device).float() for x in slot.example[:3])
                ready[i] = Encoded(mean, std, states, slot.example.caption)
            elif slot.number is not None:
                mean, std = self._remembered(slot.number, partial(self.moments, slot.example.image[None]))
                ready[i] = Encoded(mean, std, self._states_of(slot.example.caption), slot.example.caption)
            else:
                together.append((i, slot.example))
        if together:
            mean, std = self.moments(torch.stack([example.image for _, example in together]))
            states = self.states([example.caption for _, example in together])
            for row, (i, example) in enumerate(together):
                ready[i] = Encoded(mean[row], std[row], states[row], example.caption)
        return [ready[i] for i in range(len(slots))]

    def _states_of(self, caption: str) -> torch.Tensor:
        return self._remembered(caption, lambda: (self.states([caption]),))[0]

    def _remembered(self, key: int | str, encode: Callable[[], tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
        """What `encode` gives for a batch of one, without the batch; kept as long as there is memory."""
        if key in self._kept:
            return self._kept[key]
        encoded = tuple(tensor[0] for tensor in encode())
        size = sum(tensor.nbytes for tensor in encoded)
        if self._bytes + size <= MEMORY_BYTES:
            self._kept[key] = encoded
            self._bytes += size
        return encoded

    def sha256(self) -> str:
        """Hash of both encoders' weights, by which a cache of latents is matched with them."""
        digest = hashlib.sha256(repr(self.factor).encode())
        for module in (self.vae, self.text):
            digest.update(weights_sha256(module).encode())
        return digest.hexdigest()
