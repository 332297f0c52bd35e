"""A tiny FLUX.1 in every layout that people have, written apart from the code under test."""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import numpy as np
import tiny
import torch
from safetensors.torch import save_file

PREFIX = "model.diffusion_model."


def to_bfl(state):
    """diffusers' names to Black Forest Labs', written apart from the code under test."""
    out = {}

    def move(theirs, *ours):
        for kind in ("weight", "bias"):
            parts = [state.pop(f"{name}.{kind}", None) for name in ours]
            if parts[0] is not None:
                out[f"{theirs}.{kind}"] = torch.cat(parts)

    def scale(theirs, ours):
        out[f"{theirs}.scale"] = state.pop(f"{ours}.weight")

    state = dict(state)
    move("img_in", "x_embedder")
    move("txt_in", "context_embedder")
    for theirs, ours in (
        ("time_in", "timestep"),
        ("vector_in", "text"),
        ("guidance_in", "guidance"),
    ):
        move(f"{theirs}.in_layer", f"time_text_embed.{ours}_embedder.linear_1")
        move(f"{theirs}.out_layer", f"time_text_embed.{ours}_embedder.linear_2")
    for i in range(2):
        b, t = f"double_blocks.{i}", f"transformer_blocks.{i}"
        move(f"{b}.img_mod.lin", f"{t}.norm1.linear")
        move(f"{b}.txt_mod.lin", f"{t}.norm1_context.linear")
        move(f"{b}.img_attn.qkv", *(f"{t}.attn.to_{x}" for x in "qkv"))
        move(f"{b}.txt_attn.qkv", *(f"{t}.attn.add_{x}_proj" for x in "qkv"))
        move(f"{b}.img_attn.proj", f"{t}.attn.to_out.0")
        move(f"{b}.txt_attn.proj", f"{t}.attn.to_add_out")
        scale(f"{b}.img_attn.norm.query_norm", f"{t}.attn.norm_q")
        scale(f"{b}.img_attn.norm.key_norm", f"{t}.attn.norm_k")
        scale(f"{b}.txt_attn.norm.query_norm", f"{t}.attn.norm_added_q")
        scale(f"{b}.txt_attn.norm.key_norm", f"{t}.attn.norm_added_k")
        for theirs, ours in (("img_mlp", "ff"), ("txt_mlp", "ff_context")):
            move(f"{b}.{theirs}.0", f"{t}.{ours}.net.0.proj")
            move(f"{b}.{theirs}.2", f"{t}.{ours}.net.2")
        b, t = f"single_blocks.{i}", f"single_transformer_blocks.{i}"
        move(f"{b}.modulation.lin", f"{t}.norm.linear")
        move(f"{b}.linear1", *(f"{t}.attn.to_{x}" for x in "qkv"), f"{t}.proj_mlp")
        move(f"{b}.linear2", f"{t}.proj_out")
        scale(f"{b}.norm.query_norm", f"{t}.attn.norm_q")
        scale(f"{b}.norm.key_norm", f"{t}.attn.norm_k")
    move("final_layer.linear", "proj_out")
    for kind in ("weight", "bias"):
        scale_part, shift_part = state.pop(f"norm_out.linear.{kind}").chunk(2)
        out[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat([shift_part, scale_part])
    assert not state, state.keys()
    return {key: tensor.contiguous() for key, tensor in out.items()}


def vae_to_bfl(state):
    """diffusers' names of the autoencoder to Black Forest Labs'."""
    out = {}
    ups = 1 + max(int(m[1]) for key in state if (m := re.match(r"decoder\.up_blocks\.(\d+)", key)))
    for key, tensor in state.items():
        name = key
        if found := re.match(r"decoder\.up_blocks\.(\d+)", name):
            name = name.replace(found[0], f"decoder.up.{ups - 1 - int(found[1])}", 1)
        name = name.replace("encoder.down_blocks.", "encoder.down.")
        name = name.replace(".downsamplers.0.", ".downsample.").replace(
            ".upsamplers.0.", ".upsample."
        )
        name = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = name.replace(".resnets.", ".block.").replace("conv_shortcut", "nin_shortcut")
        name = name.replace("mid_block.attentions.0.", "mid.attn_1.").replace("group_norm", "norm")
        for ours, theirs in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
            if f"attn_1.{ours}." in name:
                name = name.replace(ours, theirs)
        convolution = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name)
        value = tensor[..., None, None] if convolution else tensor
        out[name.replace("conv_norm_out", "norm_out")] = value.contiguous()
    return out


def bfl(path: Path, *, guidance: bool = False, prefix: str = "", dtype=None, more=None) -> Path:
    """A transformer's file in Black Forest Labs' names."""
    state = to_bfl(tiny.flux(guidance=guidance).state_dict())
    state = {prefix + key: tensor.to(dtype or tensor.dtype) for key, tensor in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state | (more or {}), path)
    return path


def scaled_fp8(state):
    """As ComfyUI's scaled float8 files: matrices divided by one scale each; and the true values."""
    out, true = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}, {}
    for key, tensor in state.items():
        out[key] = true[key] = tensor
        if tensor.ndim == 2 and "blocks." in key:
            scale = tensor.abs().max() / 448
            out[key] = (tensor / scale).to(torch.float8_e4m3fn)
            out[key.replace("weight", "scale_weight")] = scale
            out[key.replace("weight", "scale_input")] = torch.ones(())
            true[key] = out[key].float() * scale
    return out, true


def clip_state(prefix: str = "text_model."):
    """CLIP's text model as in clip_l.safetensors, whatever transformers calls its layers."""
    bare = {key.removeprefix("text_model."): t for key, t in tiny.clip().state_dict().items()}
    return {prefix + key: t.contiguous() for key, t in bare.items() if "position_ids" not in key}


def t5_state():
    """T5's encoder as in t5xxl_fp16.safetensors."""
    state = dict(tiny.t5().state_dict())
    state.pop("encoder.embed_tokens.weight", None)
    return {key: tensor.contiguous() for key, tensor in state.items()}


def all_in_one(path: Path) -> Path:
    """A checkpoint with everything in it, laid out as ComfyUI's flux1-schnell-fp8.safetensors."""
    parts = {PREFIX + key: t for key, t in to_bfl(tiny.flux().state_dict()).items()}
    parts |= {f"vae.{key}": t for key, t in vae_to_bfl(tiny.vae().state_dict()).items()}
    start = "text_encoders.clip_l.transformer."
    parts |= {f"{start}{key}": t for key, t in clip_state().items()}
    parts["text_encoders.clip_l.logit_scale"] = torch.tensor(4.6)
    parts[f"{start}text_projection.weight"] = torch.eye(tiny.POOLED)
    parts |= {f"text_encoders.t5xxl.transformer.{key}": t for key, t in t5_state().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(parts, path)
    return path


def comfy_root(root: Path, *, transformers: str = "unet", encoders: str = "clip") -> Path:
    """ComfyUI's ``models`` folder with FLUX.1 schnell and much else in it."""
    bfl(root / transformers / "flux1-schnell.safetensors")
    bfl(root / transformers / "flux1-dev.safetensors", guidance=True)
    for folder in ("vae", encoders, "checkpoints", "loras"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    save_file(vae_to_bfl(tiny.vae().state_dict()), root / "vae" / "ae.safetensors")
    save_file(
        {"decoder.conv_in.weight": torch.zeros(8, 4, 3, 3)}, root / "vae" / "sdxl.safetensors"
    )
    save_file(clip_state(), root / encoders / "clip_l.safetensors")
    save_file(t5_state(), root / encoders / "t5xxl_fp16.safetensors")
    (root / "checkpoints" / "broken.safetensors").write_bytes(b"nothing")
    save_file(
        {"conditioner.embedders.0.x": torch.zeros(1)}, root / "checkpoints" / "sd_xl.safetensors"
    )
    return root


def gguf_file(path: Path, state, kind: gguf.GGMLQuantizationType):
    """A transformer in GGUF, its blocks' matrices as ``kind``; and the values that are in it."""
    writer = gguf.GGUFWriter(str(path), "flux")
    true = {}
    for key, tensor in state.items():
        values = tensor.float().numpy()
        if tensor.ndim == 2 and "blocks." in key:
            data = blocks_of(values, kind)
            true[key] = torch.from_numpy(gguf.dequantize(data, kind).reshape(values.shape))
            writer.add_tensor(key, data, raw_dtype=kind)
        else:
            writer.add_tensor(key, values)
            true[key] = torch.from_numpy(values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return true


def blocks_of(values, kind: gguf.GGMLQuantizationType):
    """``values`` quantised; for the K kinds, which the package only reads, blocks by chance."""
    try:
        return gguf.quantize(values, kind)
    except NotImplementedError:
        length, size = gguf.GGML_QUANT_SIZES[kind]
        rng = np.random.default_rng(values.size)
        count = values.shape[1] // length
        raw = rng.integers(0, 256, (values.shape[0], count, size), dtype=np.uint8)
        scale = np.full((values.shape[0], count, 1), 1e-4, np.float16).view(np.uint8)
        if kind.name == "Q6_K":
            raw[..., -2:] = scale  # d stands last
        else:
            raw[..., 0:2], raw[..., 2:4] = scale, scale  # d and dmin stand first
        return raw.reshape(values.shape[0], -1)
