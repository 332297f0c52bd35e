"""Prompts to text states; encoders are loaded for a new prompt only and then dropped."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fluxwatchd.engine import encoders, faults, memory, plans
from fluxwatchd.engine.flux import Text
from fluxwatchd.engine.holding import tidy
from fluxwatchd.engine.places import TextPlaces
from fluxwatchd.engine.streaming import Stream
from fluxwatchd.engine.tensorcache import TensorCache
from fluxwatchd.errors import ConfigError

log = logging.getLogger(__name__)

NANO_TOKENS = 8
"""Zero states that nano was trained with in place of text."""
USUAL = {"clip": "clip_l.safetensors", "t5": "t5xxl_fp16.safetensors"}
"""What FLUX.1's text encoders are called where they are single files."""
MOST_KNOWN = 32
"""Prompts kept on the device; 4 MB each for FLUX.1."""
MOST_STORED = 512 << 20
"""Bytes of text states on the disk."""


def no_text(width: int, pooled: int, device: str, dtype: torch.dtype) -> Callable[[str], Text]:
    """For models without a text encoder: zeros, whatever the prompt."""
    states = torch.zeros(1, NANO_TOKENS, width, device=device, dtype=dtype)
    text = Text(states, torch.zeros(1, pooled, device=device, dtype=dtype))
    return lambda prompt: text


@dataclass(frozen=True, slots=True)
class FluxText:
    """CLIP's pooled state and T5's states for a prompt, cached in memory and on disk.

    ``identity``: hashes of the encoders' files. ``length``: T5 tokens, padded as diffusers pads
    (and not masked, as FLUX.1 was trained); ``short``: only the prompt's own, rounded up to 8.
    ``widths``: what the transformer takes, of the states and the pooled one. ``cache``: on disk,
    None for none.
    """

    places: TextPlaces
    identity: tuple[str, ...]
    length: int
    widths: tuple[int, int]
    short: bool
    device: torch.device
    dtype: torch.dtype
    cache: TensorCache | None = None
    known: OrderedDict[str, Text] = field(default_factory=OrderedDict)

    def __call__(self, prompt: str) -> Text:
        """States (1, T, D) and pooled (1, P). Raises ConfigError if an encoder is missing."""
        if prompt not in self.known:
            self.known[prompt] = self._stored(prompt) or self._encoded(prompt)
            if len(self.known) > MOST_KNOWN:
                self.known.popitem(last=False)
        self.known.move_to_end(prompt)
        return self.known[prompt]

    def _key(self, prompt: str) -> str:
        """What decides the states: prompt, encoders, tokenizers, padding, and the dtype."""
        words = [
            _fingerprint(folder)
            for folder in (self.places.clip_tokenizer, self.places.t5_tokenizer)
            if prompt
        ]
        settings = [2, *self.identity, *words, self.length, self.short, str(self.dtype), prompt]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()

    def _stored(self, prompt: str) -> Text | None:
        """What was encoded before, perhaps by another process."""
        found = self.cache.get(self._key(prompt)) if self.cache else None
        if found is None or found.keys() != {"states", "pooled"}:
            return None
        return self._text(found["states"], found["pooled"])

    def _encoded(self, prompt: str) -> Text:
        """Load both encoders one after the other, encode, and let them go."""
        with torch.inference_mode(mode=False), torch.no_grad():
            ids = encoders.clip_ids(prompt, self.places.clip_tokenizer)
            words = encoders.t5_ids(prompt, self.places.t5_tokenizer, self.length, short=self.short)
            pooled = self._run(encoders.load_clip(self.places.clip, self.dtype), ids).pooler_output
            states = self._run(encoders.load_t5(self.places.t5, self.dtype), words)[0]
        tidy(self.device)
        self._refuse_others(states, pooled)
        text = self._text(states, pooled)
        if self.cache:
            self.cache.put(self._key(prompt), {"states": text.states, "pooled": text.pooled})
        return text

    def _refuse_others(self, states: Tensor, pooled: Tensor) -> None:
        """Raise ConfigError for an encoder of another size than the transformer takes."""
        found = (("t5", self.places.t5, states), ("clip", self.places.clip, pooled))
        for (key, place, made), wanted in zip(found, self.widths, strict=True):
            width = made.shape[-1]
            if width != wanted:
                raise ConfigError(
                    f"{place} makes states of width {width}, the transformer takes {wanted}",
                    hint=f"Set engine.{key} to FLUX.1's own: {USUAL[key]}.",
                )

    def _run(self, encoder: Any, ids: Tensor) -> Any:
        """The encoder's output for ``ids``: on the device, layer by layer there, or on the host."""
        for way in ways(encoder, self.device):
            try:
                with _placed(encoder, self.device, way) as place:
                    return encoder(ids.to(place))
            except (RuntimeError, MemoryError) as error:
                if way == HOST or not faults.is_memory(error):
                    raise
                faults.without_frames(error)
            log.warning("memory was short for a text encoder (%s)", way)
            tidy(self.device)
        raise AssertionError("the last way either returns or raises")

    def _text(self, states: Tensor, pooled: Tensor) -> Text:
        return Text(
            states.to(self.device, self.dtype),
            pooled.to(self.device, self.dtype),
        )


# --- where an encoder runs ------------------------------------------------------------------

DEVICE, STREAM, HOST = "device", "stream", "host"


def ways(encoder: nn.Module, device: torch.device) -> tuple[str, ...]:
    """How to run an encoder, the first that fits first; each next one takes less of the device."""
    if device.type == "cpu":
        return (HOST,)
    size = sum(p.numel() * p.element_size() for p in encoder.parameters())
    fits = size * (1 + plans.SLACK) + plans.RESERVE <= memory.free_bytes(str(device))
    return (DEVICE, STREAM, HOST) if fits else (STREAM, HOST)


class _placed:
    """An encoder where ``way`` wants it, while it runs."""

    def __init__(self, encoder: Any, device: torch.device, way: str) -> None:
        self._encoder, self._device, self._way = encoder, device, way
        self._stream: Stream | None = None

    def __enter__(self) -> torch.device:
        if self._way == HOST:
            # a CPU has no use for float16
            wide = self._encoder.dtype == torch.float16
            self._encoder.to("cpu", torch.float32 if wide else self._encoder.dtype)
            return torch.device("cpu")
        if self._way == STREAM:
            self._stream = Stream(list(layers(self._encoder)), self._device)
        self._encoder.to(self._device)
        return self._device

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.close()


def layers(encoder: Any) -> Iterator[nn.Module]:
    """The repeated layers of CLIP's or T5's encoder."""
    for module in encoder.modules():
        if isinstance(module, nn.ModuleList):
            yield from module
            return


def _fingerprint(tokenizer: Path | None) -> str:
    """A hash over a tokenizer's files."""
    made = hashlib.sha256()
    for file in sorted(tokenizer.iterdir()) if tokenizer and tokenizer.is_dir() else ():
        if file.is_file():
            made.update(file.name.encode() + file.read_bytes())
    return made.hexdigest()
