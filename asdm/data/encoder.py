"""Encodes pictures to latents and captions to text states, by a frozen VAE and a frozen text encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from asdm.data.datasets import Encoded
from asdm.data.loader import Slot
from asdm.models.families import Family
from asdm.models.loading import weights_sha256
from asdm.models.vae import honour_force_upcast

MEMORY_BYTES = 2**30  # of encoded examples that are kept, so that a small data set is encoded once
CHUNK_PIXELS = 2**21  # of pictures that are encoded at once: 8 of 512×512, whose largest map is 1 GiB in fp32
PARTS = ("mean", "std", "states")
POOLED, TIME_IDS = "pooled", "time_ids"  # of SDXL's examples as well


class Collated(NamedTuple):
    """A batch on the host: what of it goes to the device, stacked, and pinned where the device is an accelerator."""

    slots: list[Slot]
    images: torch.Tensor | None  # (n, 3, h, w), of the slots `to_encode`
    to_encode: list[int]
    encoded: dict[str, torch.Tensor]  # mean, std, states, … of all slots, where the data set holds these


class Encoder:
    """VAE and text encoders of a pipeline, on the device where they are.

    SDXL's two encoders give their last but one states beside each other, the second one the pooled text too; no caption
    is zeros where its pipeline draws with zeros (`force_zeros_for_empty_prompt`).

    At most `chunk` pictures are encoded at once. The bits of an example with an index do not depend on those beside it:
    on a CPU it is encoded by itself, on an accelerator with others to a full `row`, so that every call has one shape.
    Such an example is kept in memory.
    """

    def __init__(self, pipeline: Any, chunk: int = 8, row: int = 8) -> None:
        self.vae, self.text = pipeline.vae, pipeline.text_encoder
        second = getattr(pipeline, "text_encoder_2", None)
        self.texts = [(self.text, pipeline.tokenizer), *([(second, pipeline.tokenizer_2)] if second else [])]
        self.zeros_for_nothing = bool(second and pipeline.config.get("force_zeros_for_empty_prompt"))
        self._with_inversions = getattr(pipeline, "maybe_convert_prompt", lambda caption, _: caption)
        for module in self._modules:
            module.eval().requires_grad_(False)
        self.factor, self.chunk = float(self.vae.config.scaling_factor), chunk
        self.row = min(row, chunk) if self.on_accelerator else 1
        self._kept: dict[Hashable, tuple[torch.Tensor, ...]] = {}  # moments by index, states by caption
        self._bytes = 0

    @property
    def _modules(self) -> list[Any]:
        return [self.vae, *(text for text, _ in self.texts)]

    def to_dtype(self, dtype: torch.dtype) -> None:
        """Encode in another precision from now on; a VAE that overflows in fp16 stays in fp32 (`force_upcast`)."""
        for module in self._modules:
            nn.Module.to(module, dtype)  # without diffusers' warning
        honour_force_upcast(self.vae)

    @property
    def device(self) -> torch.device:
        return next(self.text.parameters()).device

    @property
    def on_accelerator(self) -> bool:
        return self.device.type != "cpu"

    @torch.no_grad()
    def moments(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and spread (b, 4, h', w') of the latents of pictures (b, 3, h, w), scaled as the UNet expects them."""
        posterior = self.vae.encode(images.to(self.device, self._image_dtype, non_blocking=True)).latent_dist
        return posterior.mean.float() * self.factor, posterior.std.float() * self.factor

    @torch.no_grad()
    def states(self, captions: Sequence[str]) -> tuple[torch.Tensor, ...]:
        """Text states (b, tokens, c), which the UNet attends to, and SDXL's pooled text (b, c)."""
        if len(self.texts) == 1:
            return (self.text(self._tokens(captions, self.texts[0][1]))[0].float(),)
        outputs = [text(self._tokens(captions, tokenizer), output_hidden_states=True) for text, tokenizer in self.texts]
        states, pooled = torch.cat([one.hidden_states[-2] for one in outputs], dim=-1), outputs[-1][0]
        given = torch.tensor([bool(caption) or not self.zeros_for_nothing for caption in captions], device=self.device)
        return states.float() * given[:, None, None], pooled.float() * given[:, None]

    def _tokens(self, captions: Sequence[str], tokenizer: Any) -> torch.Tensor:
        tokens = tokenizer(
            [self._with_inversions(caption, tokenizer) for caption in captions],
            padding="max_length",
            truncation=True,
            max_length=tokenizer.model_max_length,
            return_tensors="pt",
        ).input_ids
        return self._pinned(tokens).to(self.device, non_blocking=True)

    def nothing(self) -> Encoded:
        """The states (tokens, c) and pooled text of the empty caption, for classifier-free guidance."""
        parts = self._states_of([""], keep=True)[0]
        empty = torch.empty(0, device=self.device)
        return Encoded(empty, empty, parts[0], "", *parts[1:])

    def collate(self, slots: Sequence[Slot]) -> Collated:
        """Stack what goes to the device, on the host: work for a thread beside the one that encodes."""
        slots = list(slots)
        if slots and isinstance(slots[0].example, Encoded):
            names = [name for name in (*PARTS, POOLED, TIME_IDS) if getattr(slots[0].example, name) is not None]
            rows = {name: [getattr(slot.example, name) for slot in slots] for name in names}
            return Collated(slots, None, [], {name: self._pinned(torch.stack(row)) for name, row in rows.items()})
        first = {slot.number: i for i, slot in reversed(list(enumerate(slots)))}
        new = [
            i
            for i, slot in enumerate(slots)
            if slot.number is None or (first[slot.number] == i and slot.number not in self._kept)
        ]
        images = torch.stack([slots[i].example.image for i in new]) if new else None  # type: ignore[union-attr]
        if images is not None and self.on_accelerator:
            images = self._pinned(images.to(self._image_dtype))
        return Collated(slots, images, new, {})

    def encode(self, batch: Collated | Sequence[Slot]) -> list[Encoded]:
        """The examples of all slots, encoded on the encoder's device."""
        batch = batch if isinstance(batch, Collated) else self.collate(batch)
        if not batch.slots:
            return []
        captions = [slot.example.caption for slot in batch.slots]
        if batch.encoded:
            parts = {name: part.to(self.device, non_blocking=True).float() for name, part in batch.encoded.items()}
            rows = zip(*parts.values(), strict=True)
            return [
                Encoded(**dict(zip(parts, row, strict=True)), caption=caption)
                for caption, row in zip(captions, rows, strict=True)
            ]
        moments = self._moments_of(batch)
        texts = self._states_of(captions, keep=any(slot.number is not None for slot in batch.slots))
        pairs = [moments[i if slot.number is None else slot.number] for i, slot in enumerate(batch.slots)]
        return [
            Encoded(mean, std, texts[i][0], captions[i], *texts[i][1:], **self._time_ids_of(batch.slots[i].example))
            for i, (mean, std) in enumerate(pairs)
        ]

    def _time_ids_of(self, example: Any) -> dict[str, torch.Tensor]:
        """SDXL's time ids of a picture; one that was neither scaled nor cut has its own size and no crop."""
        if len(self.texts) == 1:
            return {}
        size = tuple(example.image.shape[-2:])
        ids = example.time_ids or (*size, 0, 0, *size)
        return {TIME_IDS: torch.tensor(ids, dtype=torch.float32, device=self.device)}

    def _moments_of(self, batch: Collated) -> dict[Hashable, tuple[torch.Tensor, ...]]:
        """Mean and spread of every slot's picture, by its index, or by its place in the batch where it has none."""
        numbers = [slot.number for slot in batch.slots]
        indexed = numbers[0] is not None
        parts = [] if batch.images is None else self._in_chunks(batch.images, indexed)
        if not indexed:
            return dict(enumerate(parts))
        new: dict[Hashable, tuple[torch.Tensor, ...]] = dict(
            zip((numbers[i] for i in batch.to_encode), parts, strict=True)
        )
        self._keep(new)
        return {number: new.get(number) or self._kept[number] for number in numbers}

    def _in_chunks(self, images: torch.Tensor, indexed: bool) -> list[tuple[torch.Tensor, ...]]:
        """Mean and spread of each picture."""
        chunk = self.row if indexed else self.chunk
        rows: list[tuple[torch.Tensor, ...]] = []
        for part in images.split(chunk):
            padding = chunk - len(part) if indexed else 0
            mean, std = self.moments(torch.cat([part, part[:1].expand(padding, -1, -1, -1)]) if padding else part)
            rows += zip(mean[: len(part)], std[: len(part)], strict=True)
        return rows

    def _states_of(self, captions: Sequence[str], keep: bool) -> list[tuple[torch.Tensor, ...]]:
        """Text states of each caption; with `keep`, those seen before are taken from memory."""
        if not keep:
            return list(zip(*self.states(captions), strict=True))
        new = list(dict.fromkeys(caption for caption in captions if caption not in self._kept))
        encoded: dict[Hashable, tuple[torch.Tensor, ...]] = {}
        for part in (new[i : i + self.row] for i in range(0, len(new), self.row)):
            padded = part + part[:1] * (self.row - len(part))
            encoded |= dict(zip(part, zip(*self.states(padded), strict=True), strict=False))
        self._keep(encoded)
        return [encoded.get(caption) or self._kept[caption] for caption in captions]

    def _keep(self, encoded: dict[Hashable, tuple[torch.Tensor, ...]]) -> None:
        """Keep what was encoded as long as there is memory, without the chunk that it is a row of."""
        for key in [key for key in encoded if key not in self._kept]:
            size = sum(tensor.nbytes for tensor in encoded[key])
            if self._bytes + size <= MEMORY_BYTES:
                self._kept[key] = tuple(tensor.clone() for tensor in encoded[key])
                self._bytes += size

    @property
    def _image_dtype(self) -> torch.dtype:
        return next(self.vae.parameters()).dtype

    def _pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    def sha256(self) -> str:
        """Hash of both encoders' weights, by which a cache of latents is matched with them."""
        digest = hashlib.sha256(repr(self.factor).encode())
        for module in self._modules:
            digest.update(weights_sha256(module).encode())
        return digest.hexdigest()


def check_encoders(data: Any, name: str, encoder: Encoder, family: Family) -> None:
    """Raises ValueError for latents that other encoders made."""
    if getattr(data, "encoder_sha256", None) not in (None, encoder.sha256()):
        raise ValueError(
            f"{name} was not encoded with {family.name}'s encoders; run asdm cache with --teacher {family.name}."
        )


def chunk_size(side: int, at_most: int | None) -> int:
    """Pictures of `side` pixels that are encoded at once."""
    fit = max(1, CHUNK_PIXELS // side**2)
    return min(fit, at_most or fit)
