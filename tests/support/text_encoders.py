"""A tiny pretrained text encoder with its tokenizer, in the layout of Hugging Face."""

from __future__ import annotations

from pathlib import Path

import tokenizers
import torch
import transformers

WORDS = {"[UNK]": 0, "how": 3, "good": 4, "a": 5, "text": 6, "is": 7, "topic": 8, "of": 9, "the": 10, "bad": 11}


def write_encoder(folder: Path, width: int = 16) -> Path:
    """Writes configuration, random weights and a tokenizer of ten words; returns the folder."""
    sizes = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(1)
    config = transformers.BertConfig(vocab_size=50, max_position_embeddings=14, **sizes)
    transformers.BertModel(config).save_pretrained(str(folder))
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(WORDS, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(folder / "tokenizer.json"))
    return folder
