"""Single files: their tensors by diffusers' and transformers' names, and the models' sizes.

A file names no configuration, so the sizes are read off the shapes. Black Forest Labs' names are
those of github.com/black-forest-labs/flux, src/flux/model.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fluxwatchd.engine import comfy, weights
from fluxwatchd.engine.contents import OTHERS, kind_of
from fluxwatchd.engine.weights import State
from fluxwatchd.errors import ConfigError

Config = dict[str, Any]
Tensors = dict[str, Tensor]


def refuse(path: Path, wanted: str, names: Mapping[str, Any]) -> ConfigError:
    """The error for a file that holds something else."""
    kind = kind_of(names)
    return ConfigError(
        f"{path} is not {wanted}" + (f": it is {kind}" if kind else ""),
        hint=f"Name a file of {wanted}.",
    )


# --- FLUX.1 transformer ---------------------------------------------------------------------

WHOLE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
DOUBLE = {
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
SINGLE = {
    "modulation.lin": ("norm.linear",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "norm.query_norm": ("attn.norm_q",),
    "norm.key_norm": ("attn.norm_k",),
}
BLOCK = re.compile(r"(double|single)_blocks\.(\d+)\.(.+)")


def transformer(state: State, path: Path) -> tuple[Config, State]:
    """Configuration and weights in diffusers' names, from either layout. Raises ConfigError."""
    state = {name: weight for name, weight in state.items() if not name.startswith(OTHERS)}
    if "double_blocks.0.img_attn.qkv.weight" in state:
        state = _from_bfl(state, path)
    if "transformer_blocks.0.attn.norm_q.weight" not in state or "x_embedder.weight" not in state:
        raise refuse(path, "a FLUX.1 transformer", state)
    return _transformer_config(state), state


def _from_bfl(state: State, path: Path) -> State:
    """Black Forest Labs' names to diffusers'."""
    if "img_in.weight" not in state:
        raise refuse(path, "a whole FLUX.1 transformer", state)
    inner = state["img_in.weight"].shape[0]
    out: State = {}
    for key, weight in state.items():
        name, _, kind = key.rpartition(".")
        ending = "weight" if kind == "scale" else kind
        found = list(pieces(name, weight.shape[0], inner)) if weight.shape else []
        if not found or kind not in {"weight", "bias", "scale"}:
            raise refuse(path, f"a FLUX.1 transformer: unknown weight {key}", {})
        for place, start, end in found:
            own = weight.part(start, end)
            out[f"{place}.{ending}"] = replace(own, swapped=True) if name in SWAPPED else own
    return out


SWAPPED = {"final_layer.adaLN_modulation.1"}
"""(shift, scale) here, (scale, shift) in diffusers: the last modulation is the other way round."""


def pieces(name: str, rows: int, inner: int) -> Iterator[tuple[str, int, int]]:
    """Which of diffusers' layers a layer of Black Forest Labs' is, and which of its rows are each.

    ``inner`` is the model's width. Nothing comes for a name that is not known.
    """
    block = BLOCK.fullmatch(name)
    if block is None:
        if name in WHOLE:
            yield WHOLE[name], 0, rows
        return
    names = (DOUBLE if block[1] == "double" else SINGLE).get(block[3], ())
    prefix = "transformer_blocks" if block[1] == "double" else "single_transformer_blocks"
    start = 0
    for i, part in enumerate(names):
        end = rows if i == len(names) - 1 else start + inner
        yield f"{prefix}.{block[2]}.{part}", start, end
        start = end


def _transformer_config(state: State) -> Config:
    """The sizes, read off the shapes; how a head is shared among the axes is FLUX.1's 1:3.5:3.5."""
    head = state["transformer_blocks.0.attn.norm_q.weight"].shape[0]
    inner, channels = state["x_embedder.weight"].shape
    return {
        "patch_size": 1,
        "in_channels": channels,
        "out_channels": state["proj_out.weight"].shape[0],
        "num_layers": count(state, "transformer_blocks."),
        "num_single_layers": count(state, "single_transformer_blocks."),
        "attention_head_dim": head,
        "num_attention_heads": inner // head,
        "joint_attention_dim": state["context_embedder.weight"].shape[1],
        "pooled_projection_dim": state["time_text_embed.text_embedder.linear_1.weight"].shape[1],
        "guidance_embeds": any("guidance_embedder" in key for key in state),
        "axes_dims_rope": (head // 8, head * 7 // 16, head * 7 // 16),
    }


def count(state: Mapping[str, Any], prefix: str) -> int:
    """How many numbered things there are right behind ``prefix``."""
    return len({k[len(prefix) :].split(".")[0] for k in state if k.startswith(prefix)})


# --- autoencoder, text encoders -------------------------------------------------------------


def inner_part(state: State, role: str) -> State:
    """One part of an all-in-one checkpoint without its prefix; another file's as it is."""
    for start in comfy.INSIDE[role]:
        own = {n.removeprefix(start): w for n, w in state.items() if n.startswith(start)}
        if own:
            return own
    return state


def vae(given: State, path: Path) -> tuple[Config, Tensors]:
    """FLUX.1's autoencoder from either layout, with FLUX.1's normalisation. Raises ConfigError."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    lazy = inner_part(given, "vae")
    if "decoder.conv_in.weight" not in lazy:
        raise refuse(path, "FLUX.1's autoencoder", given)
    state = weights.tensors(lazy)
    if "encoder.down.0.block.0.conv1.weight" in state:
        blocks = count(state, "encoder.down.")
        kinds = {"down_block_types": [""] * blocks, "up_block_types": [""] * blocks}
        state = convert_ldm_vae_checkpoint(state, kinds)
    blocks = count(state, "encoder.down_blocks.")
    widths = [
        state[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"].shape[0] for i in range(blocks)
    ]
    config = {
        "down_block_types": ["DownEncoderBlock2D"] * blocks,
        "up_block_types": ["UpDecoderBlock2D"] * blocks,
        "block_out_channels": widths,
        "layers_per_block": count(state, "encoder.down_blocks.0.resnets."),
        "latent_channels": state["decoder.conv_in.weight"].shape[1],
        "use_quant_conv": "quant_conv.weight" in state,
        "use_post_quant_conv": "post_quant_conv.weight" in state,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
    }
    return config, state


def clip(given: State, path: Path) -> tuple[Config, Tensors]:
    """CLIP's text model, as in clip_l.safetensors, without the prefix. Raises ConfigError."""
    own = inner_part(given, "clip")
    lazy = {key.removeprefix("text_model."): weight for key, weight in own.items()}
    words = lazy.get("embeddings.token_embedding.weight")
    if words is None:
        raise refuse(path, "a CLIP text encoder", given)
    ours = ("embeddings.", "encoder.", "final_layer_norm.")
    state = weights.tensors(
        {k: w for k, w in lazy.items() if k.startswith(ours) and not k.endswith("position_ids")}
    )
    config = {
        "vocab_size": words.shape[0],
        "hidden_size": words.shape[1],
        "intermediate_size": state["encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": count(state, "encoder.layers."),
        "num_attention_heads": max(1, words.shape[1] // 64),
        "max_position_embeddings": state["embeddings.position_embedding.weight"].shape[0],
        "hidden_act": "quick_gelu",
        "eos_token_id": 2,  # as openai/clip-vit-large-patch14 says: pool at the highest id
    }
    return config, state


def t5(given: State, path: Path) -> tuple[Config, Tensors]:
    """T5 v1.1's encoder, as in t5xxl_fp16.safetensors. Raises ConfigError."""
    lazy = inner_part(given, "t5")
    block = "encoder.block.0.layer"
    words = lazy.get("shared.weight", lazy.get("encoder.embed_tokens.weight"))
    bias = lazy.get(f"{block}.0.SelfAttention.relative_attention_bias.weight")
    if words is None or bias is None:
        raise refuse(path, "a T5 text encoder", given)
    state = weights.tensors(
        {k: w for k, w in lazy.items() if k.startswith(("shared.", "encoder."))}
    )
    state.setdefault("shared.weight", words.read())
    heads = bias.shape[1]
    config = {
        "vocab_size": words.shape[0],
        "d_model": words.shape[1],
        "d_ff": state[f"{block}.1.DenseReluDense.wo.weight"].shape[1],
        "d_kv": state[f"{block}.0.SelfAttention.q.weight"].shape[0] // heads,
        "num_heads": heads,
        "num_layers": count(state, "encoder.block."),
        "relative_attention_num_buckets": bias.shape[0],
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": False,
        "use_cache": False,
    }
    return config, state
