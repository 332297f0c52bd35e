"""Tiny random models in the real architectures: FLUX.1, its autoencoder, CLIP, T5, DINO."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, FluxTransformer2DModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    Dinov2Config,
    Dinov2Model,
    T5Config,
    T5EncoderModel,
)

from fluxwatchd.engine.dino import DinoEncoder
from fluxwatchd.engine.loading import NANO
from fluxwatchd.engine.projector import AdapterSpec, Projector

WIDTH, POOLED = 64, 64


def flux(*, guidance: bool = False, seed: int = 0, heads: int = 2) -> FluxTransformer2DModel:
    """Two double and two single blocks, 16 latent channels, text states of 64; 32 wide a head."""
    torch.manual_seed(seed)
    model = FluxTransformer2DModel(
        in_channels=64, out_channels=64, num_layers=2, num_single_layers=2,
        attention_head_dim=32, num_attention_heads=heads, joint_attention_dim=WIDTH,
        pooled_projection_dim=POOLED, axes_dims_rope=(4, 14, 14), guidance_embeds=guidance,
    )  # fmt: skip
    return model.eval()


def vae(seed: int = 1) -> AutoencoderKL:
    """FLUX.1's kind of autoencoder: shrinks by 8, 16 channels."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[32, 32, 32, 32], layers_per_block=1, latent_channels=16,
        scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()  # fmt: skip


def clip(seed: int = 2) -> CLIPTextModel:
    """CLIP's text model with its whole vocabulary."""
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=49408, hidden_size=POOLED, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=1, eos_token_id=2,
    )  # fmt: skip
    return CLIPTextModel(config).eval()


def t5(seed: int = 3) -> T5EncoderModel:
    """T5 v1.1's encoder."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=128, d_model=WIDTH, d_ff=64, d_kv=16, num_heads=4, num_layers=2,
        feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False,
    )  # fmt: skip
    return T5EncoderModel(config).eval()


def diffusers_folder(root: Path, *, guidance: bool = False) -> Path:
    """A whole tiny FLUX.1 as diffusers lays it out, without tokenizers."""
    flux(guidance=guidance).save_pretrained(root / "transformer")
    vae().save_pretrained(root / "vae")
    clip().save_pretrained(root / "text_encoder")
    t5().save_pretrained(root / "text_encoder_2")
    return root


def dino(root: Path, *, model: str = "nano", width: int = 192, seed: int = 4) -> tuple[Path, Path]:
    """A DINOv2 encoder's folder and an adapter for it."""
    torch.manual_seed(seed)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    Dinov2Model(config).save_pretrained(root / "dino")
    encoder = DinoEncoder.load(root / "dino")
    spec = AdapterSpec(
        model=model, model_width=width, encoder=encoder.identity, encoder_name="tiny",
        encoder_width=encoder.width, layers=encoder.layers, grid=4,
    )  # fmt: skip
    Projector(spec).save(root / "adapter" / "adapter.safetensors")
    return root / "dino", root / "adapter"


def striped(root: Path, levels: float) -> Path:
    """Nano without source channels, whose output leaves upright stripes with a token's period.

    Of a token's 2x2 latent cells the left ones' velocity is shifted towards brighter and the right
    ones' towards darker, by what ``levels`` of 255 are in the latent of a grey picture.
    """
    shutil.copytree(NANO / "vae", root / "vae")
    shutil.copytree(NANO / "transformer", root / "transformer")
    autoencoder = AutoencoderTiny.from_pretrained(root / "vae")

    def latent(value: float) -> torch.Tensor:
        return autoencoder.encode(torch.full((1, 3, 64, 64), value)).latents[0, :, 8, 8]

    with torch.inference_mode():
        brighter = (latent(10 / 255) - latent(0.0)) / 5 * autoencoder.config.scaling_factor
    file = root / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = safetensors.torch.load_file(file)
    left_right = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    weights["proj_out.bias"] += (levels * brighter[:, None, None] * left_right).flatten()
    kept = weights["x_embedder.weight"][:, :64].contiguous()  # the noisy latent's
    safetensors.torch.save_file({**weights, "x_embedder.weight": kept}, file)
    config = root / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "in_channels": 64}))
    return root


def photo(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """(H, W, C) float32 in 0..1: smooth shapes and some noise."""
    y, x = np.meshgrid(np.linspace(0, 6, height), np.linspace(0, 6, width), indexing="ij")
    planes = [0.5 + 0.3 * np.sin(x * (c + 1) + seed) * np.cos(y) for c in range(channels)]
    noise = np.random.default_rng(seed).normal(0, 0.03, (height, width, channels))
    return np.clip(np.stack(planes, -1) + noise, 0, 1).astype(np.float32)
