"""The engine: models loaded on demand and kept, the least used one dropped when memory is short."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from fluxwatchd.config import EngineSettings, Profile
from fluxwatchd.engine import (
    Beat,
    Ticket,
    faults,
    footprint,
    memory,
    never,
    passes,
    plain,
    resume,
    silent,
)
from fluxwatchd.engine.turns import Turns
from fluxwatchd.errors import Interrupted
from fluxwatchd.imageio import Picture
from fluxwatchd.job import Checkpoint, Upscaled

if TYPE_CHECKING:
    from fluxwatchd.engine.dino import FeatureCache
    from fluxwatchd.engine.model import Model
    from fluxwatchd.engine.shares import Offer, Share

    Load = Callable[[Profile, EngineSettings, str, Path | None, Beat], Model]

log = logging.getLogger(__name__)

Key = tuple[str, ...]
Tiling = tuple[int | str, int | str]
"""``tile_size`` and ``overlap``, which a warm profile was checked with."""

WARM_SIDE = 32
"""Side of the source that a model is warmed up with, px."""


class ResidentEngine:
    """One device and the models on it; see :class:`fluxwatchd.engine.Engine`.

    Several threads may call :meth:`upscale`: they take turns on the device. ``load`` makes the
    models; loading.load by default.
    """

    def __init__(
        self,
        settings: EngineSettings | None = None,
        *,
        device: str | None = None,
        state_dir: Path | None = None,
        load: Load | None = None,
    ) -> None:
        self._load_model = load
        self._settings = settings or EngineSettings()
        self._device = device
        self._state_dir = state_dir
        self._models: OrderedDict[Key, Model] = OrderedDict()
        self._warmed: set[tuple[Key, Tiling]] = set()
        self._features: FeatureCache | None = None
        self._turns = Turns()

    @property
    def device(self) -> str:
        """torch's name of the device. Raises ConfigError if the one that is set is not there."""
        if self._device is None:
            self._device = memory.find_devices(self._settings)[0]
        return self._device

    def warm(self, profile: Profile, beat: Beat = silent) -> Checkpoint:
        """Load what ``profile`` needs and run it once on a small picture, if that was not done."""
        resolved = profile.resolved()
        key, tiling = model_key(resolved), (resolved.tile_size, resolved.overlap)
        if key in self._models and (key, tiling) in self._warmed:
            return self._models[key].checkpoint
        checkpoint = self._try(profile, beat)
        if key in self._models:
            self._warmed.add((key, tiling))
        return checkpoint

    def _try(self, profile: Profile, beat: Beat) -> Checkpoint:
        """Upscale a small picture."""
        trial = profile.resolved()
        kind = trial.kind
        if kind.has_text and self.device != "cpu":  # what is compiled is compiled for such sizes
            return self._try_tiles(trial, beat)
        if trial.scale is None:  # an overlap may fit what a target size comes to, and not this
            free = {"target_megapixels": None, "target_long_side": None, "overlap": "auto"}
            trial = profile.model_copy(update=free).resolved()
        side, larger = WARM_SIDE, 8 * WARM_SIDE
        if plain.reason(trial, (side, side)) and not plain.reason(trial, (larger, larger)):
            side = larger  # at a scale of 1.01 a small square does not grow
        return self.upscale(Picture(ramp(side)), trial, 0, beat).checkpoint

    def _try_tiles(self, trial: Profile, beat: Beat) -> Checkpoint:
        """One step of FLUX.1 on a picture of several tiles, which are not of the native size."""
        steps = {"steps": 1, "scale": 2.0, "target_megapixels": None, "target_long_side": None}
        trial = trial.model_copy(update=steps).resolved()
        tile, _ = trial.tiling(2.0)
        side = tile * trial.kind.unit * 3 // 4
        return self.upscale(Picture(ramp(side)), trial, 0, beat).checkpoint

    def upscale(
        self,
        picture: Picture,
        profile: Profile,
        seed: int,
        beat: Beat = silent,
        *,
        ticket: Ticket | None = None,
        offer: Offer | None = None,
    ) -> Upscaled:
        """Upscale one picture. What goes wrong is classified here and nowhere else."""
        profile = profile.resolved()
        try:
            footprint.refuse_crowded(profile, picture)
            if plain.reason(profile, (picture.width, picture.height)) is not None:
                done = plain.upscale(picture, profile, beat)
            else:
                with self._whole(beat):
                    done = self._with_model(
                        picture, profile, seed, beat=beat, ticket=ticket, offer=offer
                    )
            return replace(done, notes=(*done.notes, *plain.size_notes(profile, picture)))
        except Exception as error:
            known = faults.classify(error)
            if known is error:
                raise
            raise known from error

    def help(self, share: Share, beat: Beat = silent, *, leave: Callable[[], bool] = never) -> bool:
        """Do tiles of another engine's picture; see fluxwatchd.engine.Engine."""
        try:
            with self._turns.mine(beat):
                return self._lend(share, beat, leave)
        except Interrupted:
            raise
        except Exception as error:
            if faults.is_device(error):
                raise faults.classify(error) from error
            if faults.is_memory(error):
                faults.without_frames(error)
                log.info("%s helps no more: its memory is short", self.device)
            else:  # the picture's own engine comes to the same tiles
                log.exception("%s could not help with a picture", self.device)
        self._tidy()
        return False

    def _lend(self, share: Share, beat: Beat, leave: Callable[[], bool]) -> bool:
        from fluxwatchd.engine import apart, guidance

        order = share.order
        model = self._models.get(model_key(order.profile)) if order is not None else None
        if order is None or model is None or apart.kind(model) != order.kind:
            log.info("%s cannot help with a picture: it has not the same model", self.device)
            return False
        guide = partial(guidance.make_guide, beat=beat)
        apart.lend(model, share, who=self, beat=beat, leave=leave, make_guide=guide)
        return True

    def _with_model(
        self,
        picture: Picture,
        profile: Profile,
        seed: int,
        *,
        beat: Beat,
        ticket: Ticket | None,
        offer: Offer | None,
    ) -> Upscaled:
        """Load if need be and run; if memory is short, without the models that are not needed."""
        clock = plain.Clock()
        with clock("load"):
            model = self._held(model_key(profile))
            if model is None:
                with self._turns.mine(beat):
                    model = self._model(profile, beat)
            if model.holding is not None:
                model.holding.spare = self._spare
        try:
            done = self._run(model, picture, profile, seed, beat=beat, ticket=ticket, offer=offer)
        except (RuntimeError, MemoryError) as error:
            if len(self._models) == 1 or not faults.is_memory(error):
                raise
            done = None
        if done is None:
            with self._turns.mine(beat):
                self._spare()
            done = self._run(model, picture, profile, seed, beat=beat, ticket=ticket, offer=offer)
        done = replace(done, seconds={**clock.seconds, **done.seconds})
        return self._told(profile, model, done)

    def _whole(self, beat: Beat) -> AbstractContextManager[None]:
        """On a CPU one picture after the other; on a GPU each takes its turn when it needs one."""
        return self._turns.mine(beat) if self.device == "cpu" else nullcontext()

    def _spare(self) -> bool:
        """Drop every model but the one at work; whether there was another."""
        if len(self._models) == 1:
            return False
        while len(self._models) > 1:
            self._evict()
        return True

    def _told(self, profile: Profile, model: Model, done: Upscaled) -> Upscaled:
        """``done`` with the plan that the model came down to, which it keeps from now on."""
        plan = model.holding.plan if model.holding else model.checkpoint.plan
        before = model.checkpoint.plan
        if plan == before:
            return done
        checkpoint = replace(model.checkpoint, plan=plan)
        self._models[model_key(profile)] = replace(model, checkpoint=checkpoint)
        said = f"memory was short: the plan became {plan}, after {before}"
        return replace(done, checkpoint=checkpoint, notes=(*done.notes, said))

    def _keeper(self, ticket: Ticket | None, turn: int, beat: Beat) -> resume.Keeper:
        """Who keeps the state of a pass: nobody without a ticket or a place for it."""
        if ticket is None or self._state_dir is None:
            return resume.Keeper(beat=beat)
        store = resume.Store(self._state_dir)
        store.prune(keep=store.path(ticket, turn))
        return resume.Keeper(store, ticket, beat, turn=turn)

    def _run(
        self,
        model: Model,
        picture: Picture,
        profile: Profile,
        seed: int,
        *,
        beat: Beat,
        ticket: Ticket | None,
        offer: Offer | None,
    ) -> Upscaled:
        """Every pass that the scale takes."""
        done: list[Upscaled] = []
        for one in passes.split(profile, picture, model.variant):
            keeper = self._keeper(ticket, one.turn, beat)
            given = done[-1].picture if done else picture
            done.append(self._pass(model, given, one.profile, seed, keeper=keeper, offer=offer))
            keeper.settle()
        return passes.join(done)

    def _pass(
        self,
        model: Model,
        picture: Picture,
        profile: Profile,
        seed: int,
        *,
        keeper: resume.Keeper,
        offer: Offer | None,
    ) -> Upscaled:
        from fluxwatchd.engine import guidance, pipeline

        tokens = pipeline.tile_tokens(model, picture, profile)
        return pipeline.upscale(
            model,
            picture,
            profile,
            seed,
            batch=partial(self._batch, model, tokens),
            beat=keeper.beat,
            cache=self._cache(),
            make_guide=partial(guidance.make_guide, beat=keeper.beat),
            keeper=keeper,
            turn=partial(self._turns.mine, keeper.beat),
            offer=offer,
        )

    def _batch(self, model: Model, tokens: int) -> int:
        """How many tiles of ``tokens`` go at once: what fits, and fills the device."""
        from fluxwatchd.engine import kernels

        most = memory.most_tiles(
            self._settings, self.device, tokens, model.width, model.dtype.itemsize
        )
        if model.tuning is None or self._settings.tile_batch != "auto":
            return most
        return kernels.batch_for(model.tuning.full, tokens, most)

    def _model(self, profile: Profile, beat: Beat) -> Model:
        """The model for a resolved profile, loaded if it is not resident."""
        key = model_key(profile)
        model = self._held(key)
        if model is not None:
            return model
        self._make_room(profile)
        while model is None:
            try:
                model = self._load(profile, beat)
            except (RuntimeError, MemoryError) as error:
                if not (self._models and faults.is_memory(error)):
                    raise
            if model is None:
                self._evict()
        self._models[key] = model
        self._models.move_to_end(key, last=False)
        return model

    def _held(self, key: Key) -> Model | None:
        """The resident model of this key, from now on the last used; None if there is none."""
        model = self._models.get(key)
        if model is not None:
            with suppress(KeyError):  # another picture has just dropped it: this one keeps it
                self._models.move_to_end(key, last=False)
        return model

    def _load(self, profile: Profile, beat: Beat) -> Model:
        from fluxwatchd.engine import guidance, kernels, loading, tuning

        if self._state_dir is not None:
            kernels.keep_below(self._state_dir)
        load = self._load_model or loading.load
        model = load(profile, self._settings, self.device, self._state_dir, beat)
        model = guidance.with_decoder(model, profile, self._settings)
        return tuning.tune(model, model.text(profile.prompt), self._settings, beat)

    def _make_room(self, profile: Profile) -> None:
        """Drop models until the weights of ``profile`` fit, with as much again to work in."""
        from fluxwatchd.engine import loading

        if self._models:
            need = 2 * loading.weight_bytes(profile, self._settings, self.device)
            while self._models and memory.free_bytes(self.device) < need:
                self._evict()

    def _evict(self) -> None:
        """Drop the model that was used the longest ago."""
        dropped, _ = self._models.popitem(last=True)
        self._warmed = {(key, tiling) for key, tiling in self._warmed if key != dropped}
        self._tidy()

    def _tidy(self) -> None:
        """Give memory back, the device's too."""
        import torch

        from fluxwatchd.engine.holding import tidy

        tidy(torch.device(self.device))

    def _cache(self) -> FeatureCache | None:
        if self._features is None and self._state_dir is not None:
            from fluxwatchd.engine.dino import FeatureCache

            self._features = FeatureCache(self._state_dir / "dino")
        return self._features

    def resident(self) -> tuple[str, ...]:
        """Variants and models held, the last used first, with the plan where it is not resident."""
        names = (_named(key, model) for key, model in self._models.items())
        return tuple(dict.fromkeys(names))

    def close(self) -> None:
        """Drop every model."""
        if self._models:
            self._models.clear()
            self._warmed.clear()
            self._tidy()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def model_key(profile: Profile) -> Key:
    """What of a resolved profile decides which modules are needed, and which DINO beside them."""
    dino_unused = profile.dino_mode == "off" or profile.dino_strength == 0
    return (
        profile.variant,
        profile.model or "",
        profile.dino_encoder or "",
        profile.dino_adapter or "",
        "no dino" if dino_unused else profile.dino_mode,
        *(f"{lora.path}*{lora.scale}" for lora in profile.lora),
    )


def ramp(side: int) -> NDArray[np.float32]:
    """A square of grey, (side, side, 3) in 0..1, brighter towards its lower right corner."""
    line = np.linspace(0.0, 1.0, side, dtype=np.float32)
    return np.repeat(np.outer(line, line)[..., None], 3, axis=2)


def _named(key: Key, model: Model) -> str:
    name = " ".join(part for part in key[:2] if part)
    plan = model.holding.plan if model.holding else "resident"
    return name if plan == "resident" else f"{name} ({plan})"
