"""Tiny tokenizers of CLIP's and T5's kinds, in files as FLUX.1's repository has them."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from tokenizers.decoders import Metaspace

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def clip_tokenizer(folder: Path) -> Path:
    """Letters alone and at the end of a word; the end of the text has the highest id."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = [*LETTERS, *(f"{x}</w>" for x in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": "<|startoftext|>"}
    special |= dict.fromkeys(("eos_token", "pad_token", "unk_token"), "<|endoftext|>")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def t5_tokenizer(folder: Path) -> Path:
    """A unigram model of letters, with T5's padding, end and unknown at 0, 1 and 2."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    words = Tokenizer(models.Unigram([*pieces, *((x, -3.0) for x in LETTERS)], unk_id=2))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.decoder = Metaspace()
    words.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    words.save(str(folder / "tokenizer.json"))
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "T5TokenizerFast", "extra_ids": 0, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def tokenizers(folder: Path) -> Path:
    """Both, in the folders' names that FLUX.1's repository has."""
    clip_tokenizer(folder / "tokenizer")
    t5_tokenizer(folder / "tokenizer_2")
    return folder
