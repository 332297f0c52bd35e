"""FLUX.1 at its real shapes with random weights: its speed and memory, without a checkpoint.

How long an evaluation takes and what it needs do not depend on the numbers in the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn

from fluxwatchd.config import EngineSettings, Profile
from fluxwatchd.engine import Beat, flux, loading, memory
from fluxwatchd.engine.dino import DinoEncoder
from fluxwatchd.engine.holding import Holding
from fluxwatchd.engine.loading import Recipe
from fluxwatchd.engine.model import Model
from fluxwatchd.engine.projector import AdapterSpec, Projector
from fluxwatchd.engine.vae import Vae
from fluxwatchd.engine.weights import State, Weight
from fluxwatchd.job import Checkpoint

Config = Mapping[str, Any]

SPREAD = 0.02
"""Standard deviation of the weights; norms are 1 and biases 0, so that numbers stay finite."""
QUIET = 0.01
"""What the last layers are damped by: the pictures stay like their sources."""


@dataclass(frozen=True, slots=True)
class Shapes:
    """The configurations of a model's parts, as diffusers and transformers name them."""

    transformer: Config
    vae: Config
    dino: Config


def _vae(widths: list[int], layers: int) -> Config:
    blocks = len(widths)
    return MappingProxyType(
        {
            "down_block_types": ["DownEncoderBlock2D"] * blocks,
            "up_block_types": ["UpDecoderBlock2D"] * blocks,
            "block_out_channels": widths,
            "layers_per_block": layers,
            "latent_channels": 16,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
            "scaling_factor": 0.3611,
            "shift_factor": 0.1159,
        }
    )


FULL = Shapes(
    MappingProxyType(
        {
            "in_channels": 64,
            "num_layers": 19,
            "num_single_layers": 38,
            "attention_head_dim": 128,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 768,
            "axes_dims_rope": (16, 56, 56),
        }
    ),
    _vae([128, 256, 512, 512], 2),
    MappingProxyType({"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}),
)
"""black-forest-labs/FLUX.1-schnell and facebook/dinov2-base."""
TINY = Shapes(
    MappingProxyType(
        {
            "in_channels": 64,
            "num_layers": 2,
            "num_single_layers": 2,
            "attention_head_dim": 32,
            "num_attention_heads": 2,
            "joint_attention_dim": 64,
            "pooled_projection_dim": 64,
            "axes_dims_rope": (4, 14, 14),
        }
    ),
    _vae([32, 32, 32, 32], 1),
    MappingProxyType({"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}),
)
"""The same architecture in a few hundred thousand weights, to try a measurement with."""


@dataclass(frozen=True, slots=True)
class RandomFlux:
    """Stands in for loading.load: the models it gives were never trained."""

    shapes: Shapes = FULL

    def __call__(
        self,
        profile: Profile,
        settings: EngineSettings,
        device: str,
        state_dir: Path | None,
        beat: Beat,
    ) -> Model:
        """A model for a resolved ``profile``, held as ``settings.memory`` says."""
        loading.hush()
        variant, dtype = profile.kind, memory.dtype_for(device)
        place = torch.device(device)
        config = {**self.shapes.transformer, "guidance_embeds": variant.has_guidance}
        recipe = Recipe(Path("random"), config, state(config, place))
        vae = self.vae(place, dtype)
        beside = sum(p.numel() for p in vae.module.parameters()) * dtype.itemsize
        choice = loading.choose(recipe, profile, settings, device, beside=beside)
        holding = Holding(place, choice.plan, lower=settings.memory == "auto")
        transformer = loading.build(recipe, dtype, holding, lambda done, total: None)
        model = Model(
            variant=variant,
            transformer=transformer,
            vae=vae,
            text=texts(config, variant.text_length, place, dtype),
            device=place,
            dtype=dtype,
            checkpoint=Checkpoint(
                variant=variant.name,
                model="random weights",
                device=device,
                device_name=memory.device_name(device),
                dtype=str(dtype).removeprefix("torch."),
                plan=holding.plan,
            ),
            dino_reason="DINO is off",
            holding=holding,
        )
        if profile.dino_mode != "off":
            model = self._seeing(model, profile)
        holding.attach(transformer)
        return model

    def vae(self, device: torch.device, dtype: torch.dtype) -> Vae:
        """The autoencoder as the engine holds it."""
        return Vae.of(self.autoencoder(device), dtype)

    def autoencoder(self, device: torch.device) -> nn.Module:
        """diffusers' own, by torch's first weights, float32."""
        from diffusers import AutoencoderKL

        with torch.device(device):
            module: Any = AutoencoderKL(**self.shapes.vae).eval().requires_grad_(False)
        module.decoder.conv_out.weight.mul_(QUIET)  # else its grid would be taken for stripes
        return cast(nn.Module, module)

    def _seeing(self, model: Model, profile: Profile) -> Model:
        """``model`` with an encoder, and with an adapter where the mode needs one."""
        import dataclasses

        from transformers import Dinov2Config, Dinov2Model

        config = Dinov2Config(patch_size=14, image_size=518, **self.shapes.dino)
        encoder = DinoEncoder(Dinov2Model(config))
        encoder.model.to(model.device)
        model = dataclasses.replace(model, encoder=encoder, encoder_name="random", dino_reason=None)
        if profile.dino_mode == "guide":
            return model
        width = int(self.shapes.transformer["joint_attention_dim"])
        spec = AdapterSpec(
            model.variant.name, width, encoder.identity, "random", encoder.width, encoder.layers,
            hidden=min(1024, 2 * width),
        )  # fmt: skip
        projector = Projector(spec).to(model.device).eval().requires_grad_(False)
        return dataclasses.replace(model, projector=projector, adapter_name="random")


def state(config: Config, device: torch.device) -> State:
    """Every weight of a transformer, drawn on ``device`` when it is read."""
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        module = FluxTransformer2DModel.from_config(dict(config))
    return {
        name: Weight(tuple(tensor.shape), _drawn(name, tuple(tensor.shape), device))
        for name, tensor in cast(nn.Module, module).state_dict().items()
    }


def _drawn(name: str, shape: tuple[int, ...], device: torch.device) -> Any:
    def read(start: int, end: int) -> Tensor:
        size = (end - start, *shape[1:]) if shape else ()
        if name.endswith("bias"):
            return torch.zeros(size, device=device)
        if len(shape) < 2:
            return torch.ones(size, device=device)
        spread = QUIET * SPREAD if name == "proj_out.weight" else SPREAD
        return torch.randn(size, device=device, dtype=torch.bfloat16).mul_(spread)

    return read


def texts(config: Config, length: int, device: torch.device, dtype: torch.dtype) -> Any:
    """Random text states, the same for every prompt."""
    width, pooled = config["joint_attention_dim"], config["pooled_projection_dim"]
    text = flux.Text(
        torch.randn(1, length, width, device=device, dtype=dtype),
        torch.randn(1, pooled, device=device, dtype=dtype),
    )
    return lambda prompt: text
