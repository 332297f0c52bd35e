"""Tiles that need nothing of each other: denoised and decoded one by one, with whoever helps.

What other devices do is what this one would have done, to the bit: the same runs of tiles, on the
same kind of device, by the same weights, precision and kernels (see :func:`kind`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fluxwatchd.config import Profile
from fluxwatchd.engine import Beat
from fluxwatchd.engine.denoise import Batch, Guide, Predictor, cut
from fluxwatchd.engine.flux import Text
from fluxwatchd.engine.model import Model
from fluxwatchd.engine.resume import NOBODY, Keeper, Place
from fluxwatchd.engine.shares import LEAST_RUNS, Helper, Offer, Over, Run, Share
from fluxwatchd.engine.sight import Sight
from fluxwatchd.engine.tiles import Grid
from fluxwatchd.engine.vae import decode_picture

if TYPE_CHECKING:
    from fluxwatchd.engine.pipeline import Plan

Floats = NDArray[np.float32]
Kind = tuple[object, ...]
MakeGuide = Callable[[Model, "Plan", Sight, Floats], Guide]
"""Guidance for one picture: model, plan, what DINO saw, and the source (H, W, 3) it saw."""
Work = Callable[[Run], Any]

LOOK = 0.2
"""Seconds between two beats of an owner that waits for the last of its helpers."""


class Order(Protocol):
    """What is to be done with the tiles of a share, for an engine that helps."""

    @property
    def profile(self) -> Profile:
        """The resolved profile, which says what model is needed."""
        ...

    @property
    def kind(self) -> Kind:
        """What the helper's model must be."""
        ...

    def begin(self, model: Model, beat: Beat, make_guide: MakeGuide) -> Work:
        """The work on a run, with the helper's ``model``. The result lies in host memory."""
        ...


def kind(model: Model) -> Kind:
    """All that the numbers of a tile depend on beside the picture: equal, or no help."""
    made, tuning = model.checkpoint, model.tuning
    return (
        made.variant,
        made.model,
        tuple(sorted(made.files.items())),
        made.device_name,
        made.dtype,
        model.holding.plan if model.holding else made.plan,
        (tuning.attention, tuning.compiled) if tuning else None,
        model.vae.compiled,
        model.encoder_name,
        model.adapter_name,
    )


class Steady(Batch):
    """A batch that does not halve: a helper whose memory is short goes, and numbers stay equal."""

    def halve(self) -> bool:
        """Never."""
        return False


def steady(model: Model) -> Model:
    """``model`` for a helper: where memory is short, an error rather than another way."""
    return replace(model, holding=None, vae=replace(model.vae, steady=True))


@dataclass(frozen=True, slots=True, eq=False)
class Denoising:
    """Every step of tiles. Tensors lie in host memory; ``latent`` is the whole picture's.

    ``predict`` is the owner's, for all in it that lies nowhere; ``seen`` and ``wider`` are what
    guidance is made of.
    """

    profile: Profile
    kind: Kind
    plan: Plan
    latent: Tensor
    sigmas: Sequence[float]
    indices: Sequence[int]
    predict: Predictor
    text: Text
    source: Tensor | None
    seen: Sight | None
    wider: Floats | None

    def begin(self, model: Model, beat: Beat, make_guide: MakeGuide) -> Work:
        """See Order. Raises what torch raises."""
        predict, own = self._predictor(model, make_guide), self.predict.grid.tiles
        steps = len(self.sigmas) - 1
        total = len(self.indices) * steps

        def work(run: Run) -> Tensor:
            indices = self.indices[run.start : run.stop]
            predict.batch.size = len(run)
            tiles = cut(self.latent, [own[i] for i in indices], model.packing).to(model.device)
            for step in range(steps):
                beat("denoise", run.start * steps + step * len(run), total)
                tiles = euler(tiles, self.sigmas, step, predict, indices)
            return tiles.cpu()

        return work

    def _predictor(self, model: Model, make_guide: MakeGuide) -> Predictor:
        """The owner's Predictor, with the helper's model."""
        device, before = model.device, self.predict
        tokens, guide = None, None
        if self.seen is not None and self.wider is not None and model.encoder is not None:
            seen = replace(self.seen, encoder=model.encoder, projector=model.projector)
            tokens = seen.tokens if before.tokens else None
            guide = make_guide(model, self.plan, seen, self.wider) if before.guide else None
        return replace(
            before,
            model=model,
            batch=Steady(1),
            text=Text(self.text.states.to(device), self.text.pooled.to(device)),
            source=self.source.to(device) if self.source is not None else None,
            tokens=tokens,
            guide=guide,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Decoding:
    """Finished tiles (N, C, h, w), in host memory, to pixels (h f, w f, 3)."""

    profile: Profile
    kind: Kind
    latents: Tensor

    def begin(self, model: Model, beat: Beat, make_guide: MakeGuide) -> Work:
        """See Order. Raises what torch raises."""
        return lambda run: [
            decode_picture(model.vae, latent.to(model.device), beat)
            for latent in self.latents[run.start : run.stop]
        ]


def euler(
    tiles: Tensor, sigmas: Sequence[float], step: int, predict: Predictor, indices: Sequence[int]
) -> Tensor:
    """One step of tiles (B, C, h, w), those at ``indices``."""
    return tiles + (sigmas[step + 1] - sigmas[step]) * predict(tiles, sigmas[step], indices)


def wait_for(tensor: Tensor) -> None:
    """Wait until a GPU has made it: whoever only queues its runs would take them all."""
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


class Apart:
    """What an engine does with the tiles of its own picture; others may help if they are offered.

    With fusion "step" nothing is offered. ``wider`` is the source (H, W, 3) that DINO saw.
    """

    def __init__(
        self,
        model: Model,
        plan: Plan,
        *,
        seen: Sight | None = None,
        wider: Floats | None = None,
        offer: Offer | None = None,
    ) -> None:
        self._model, self._plan, self._seen, self._wider = model, plan, seen, wider
        self._offer = offer if plan.profile.fusion == "final" else None
        self._did: dict[Helper | None, list[int]] = {None: [0, 0]}

    def told(self) -> dict[str, object]:
        """What the record says: which devices took part, where there were several."""
        if len(self._did) == 1:
            return {}
        return {
            "devices": [
                {
                    "device": str(self._model.device) if who is None else who.device,
                    "denoised": denoised,
                    "decoded": decoded,
                }
                for who, (denoised, decoded) in self._did.items()
            ]
        }

    # denoise

    def denoise(
        self,
        latent: Tensor,
        sigmas: Sequence[float],
        predict: Predictor,
        indices: Sequence[int],
        beat: Beat,
        *,
        keeper: Keeper = NOBODY,
    ) -> Tensor:
        """Run every step on the tiles at ``indices``, each for itself: (B, C, h, w), float32.

        ``keeper`` is told after every step, and may know where an earlier try came to. It keeps
        the tiles that are done without a gap; what helpers did beyond is done again.
        """
        before, steps = keeper.before("denoise"), len(sigmas) - 1
        sides = (side * predict.model.packing for side in predict.grid.shape)
        finished = latent.new_empty(len(indices), latent.shape[0], *sides)
        finished[: before.done] = before.tensor("finished", finished[: before.done])
        begun = before.tensor("own", finished[:0])
        order = None
        if self._is_worth(len(indices) - before.done, predict.batch.size):
            order = self._denoising(latent, sigmas, predict, indices)
        share = Share(len(indices), order, done=before.done)
        pen = _Pen(share, keeper, finished, predict.batch, steps)
        # what was begun is its own
        first_run = share.take_own(predict.batch.size, now=len(begun) or None)
        with self._offered(share):
            while self._gather(share, pen) < share.count:
                run, first_run = first_run or share.take_own(predict.batch.size), None
                if run is None:
                    pen.beat(beat)
                    share.wait(LOOK)
                    continue
                part, first = indices[run.start : run.stop], 0
                own = cut(latent, [predict.grid.tiles[i] for i in part], predict.model.packing)
                if len(begun):
                    own, first, begun = begun, before.step, begun[:0]
                for step in range(first, steps):
                    pen.beat(beat, step * len(run))
                    if not share.wanted(run):
                        break
                    own = euler(own, sigmas, step, predict, part)
                    pen.step(run, own, step + 1)
                if order is not None:
                    wait_for(own)
                    if kind(self._model) != order.kind:  # memory was short: it is another model now
                        share.dismiss()
                self._did[None][0] += pen.done(run, own)
        pen.beat(beat)
        return finished

    def _denoising(
        self, latent: Tensor, sigmas: Sequence[float], predict: Predictor, indices: Sequence[int]
    ) -> Order:
        text, source = predict.text, predict.source
        return Denoising(
            profile=self._plan.profile,
            kind=kind(self._model),
            plan=self._plan,
            latent=latent.cpu(),
            sigmas=tuple(sigmas),
            indices=tuple(indices),
            predict=predict,
            text=Text(text.states.cpu(), text.pooled.cpu()),
            source=source.cpu() if source is not None else None,
            seen=self._seen,
            wider=self._wider,
        )

    def _gather(self, share: Share, pen: _Pen) -> int:
        """Put what helpers brought where it belongs; how many tiles are done in all."""
        for run, result, who in share.collect():
            pen.brought(run, result)
            self._did.setdefault(who, [0, 0])[0] += len(run)
        return share.finished

    # decode

    def decode(self, latents: Tensor, grid: Grid, beat: Beat) -> Floats:
        """Finished tiles (N, C, h, w), decoded one by one and blended in pixels, in their order."""
        vae = self._model.vae
        per = vae.factor * latents.shape[2] // grid.shape[0]
        out = np.zeros((grid.rows.length * per, grid.columns.length * per, 3), np.float32)
        blends = zip(grid.tiles, grid.weights(per), strict=True)
        held: dict[int, Floats] = {}
        order = None
        if self._is_worth(len(latents), 1):
            order = Decoding(self._plan.profile, kind(self._model), latents.cpu())
        share, laid = Share(len(latents), order), 0
        with self._offered(share):
            while laid < len(latents):
                if (run := share.take_own(1)) is not None:
                    pixels = decode_picture(vae, latents[run.start], beat)
                    if share.finish_own(run):
                        held[run.start] = pixels
                        self._did[None][1] += 1
                for other, (found,), who in share.collect():
                    held[other.start] = found
                    self._did.setdefault(who, [0, 0])[1] += 1
                while laid in held:
                    tile, weight = next(blends)
                    out[tile.cut(per)] += held.pop(laid) * weight[..., None]
                    laid += 1
                if run is None and laid < len(latents):
                    beat("decode", laid, len(latents))
                    share.wait(LOOK)
        return out

    # who helps

    def _is_worth(self, tiles: int, size: int) -> bool:
        """Whether others are to help with so many tiles, ``size`` at once."""
        return self._offer is not None and -(-tiles // size) >= LEAST_RUNS

    @contextmanager
    def _offered(self, share: Share) -> Iterator[None]:
        if self._offer is None or share.order is None:
            yield
            return
        with self._offer(share):
            yield


@dataclass(slots=True, eq=False)
class _Pen:
    """Notes where the tiles stand: in ``finished``, for the keeper, and in the beats."""

    share: Share
    keeper: Keeper
    finished: Tensor
    batch: Batch
    steps: int

    def beat(self, beat: Beat, more: int = 0) -> None:
        """``more`` steps of tiles are done beside the finished tiles."""
        total = self.share.count * self.steps
        beat("denoise", self.share.finished * self.steps + more, total)

    def step(self, run: Run, own: Tensor, step: int) -> None:
        """The owner did a step of a run. One that begins beyond a gap is not kept."""
        whole = {"own": own} if run.start == self.share.prefix else {}
        self._note(step if whole else 0, whole, ran=len(run))

    def done(self, run: Run, own: Tensor) -> int:
        """The owner did a run; tiles that were not there before."""
        if not self.share.wanted(run):
            return 0
        self.finished[run.start : run.stop] = own
        counted = self.share.finish_own(run)
        self._note(0, {})
        return len(run) * counted

    def brought(self, run: Run, result: Tensor) -> None:
        """A helper did a run."""
        self.finished[run.start : run.stop] = result.to(self.finished.device)
        self._note(0, {}, ran=len(run) * self.steps)

    def _note(self, step: int, more: dict[str, Tensor], *, ran: int = 0) -> None:
        done = self.share.prefix
        place = Place("denoise", step, done, self.batch.size)
        self.keeper.note(place, {"finished": self.finished[:done], **more}, ran=ran)


# --- helping --------------------------------------------------------------------------------


@torch.inference_mode()
def lend(
    model: Model,
    share: Share,
    *,
    who: Helper,
    beat: Beat,
    leave: Callable[[], bool],
    make_guide: MakeGuide,
) -> None:
    """Do runs of another engine's picture until there are none, or ``leave`` says so.

    What was at hand goes back if anything is raised, which is what ``beat`` and torch raise.
    """
    order = share.order
    if order is None:
        return
    at_hand: list[Run] = []

    def on(stage: str, done: int, total: int) -> None:
        beat(stage, done, total)
        if at_hand and not share.wanted(at_hand[0]):
            raise Over

    work = order.begin(steady(model), on, make_guide)
    while not leave() and (run := share.take()) is not None:
        at_hand[:] = [run]
        try:
            share.finish(run, work(run), who)
        except Over:
            continue
        finally:
            share.give_back(run)  # no more than a word if it is done
