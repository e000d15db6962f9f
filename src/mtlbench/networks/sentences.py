"""Descriptions of tasks in words, as vectors of a frozen sentence encoder."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mtlbench.errors import MethodError, SuiteError, shortened
from mtlbench.networks.text_files import folder_of
from mtlbench.networks.texts import CONFIG, WEIGHTS, pretrained

TOKENIZER = "tokenizer.json"


def described(
    descriptions: Mapping[str, str | Sequence[float]] | None, encoder: str
) -> dict[str, Sequence[float]] | None:
    """Returns descriptions with vectors in place of texts; vectors stay as they are.

    Args:
        descriptions: Text or vector by task, or None.
        encoder: See `sentence_vector`. It is opened only if there is a text.

    Raises:
        MethodError: A text is empty, or the encoder cannot be had.
    """
    if descriptions is None:
        return None
    blank = [task for task, value in descriptions.items() if isinstance(value, str) and not value.strip()]
    if blank:
        raise MethodError(f"A description is a text about the task. {', '.join(blank)}: it is empty. Write a sentence.")
    return {
        task: sentence_vector(value, encoder) if isinstance(value, str) else value
        for task, value in descriptions.items()
    }


@functools.lru_cache(maxsize=256)
def sentence_vector(text: str, encoder: str) -> tuple[float, ...]:
    """Returns the mean of a text's tokens after the last layer, scaled so that its numbers have a mean square of 1.

    Of a longer text the end is cut off. The vector depends on no other text.

    Args:
        text: A sentence.
        encoder: A key of `mtlbench.networks.text_files.PACKAGED`, a folder, or ``owner/name`` of the Hugging Face Hub.

    Raises:
        MethodError: The encoder cannot be had or read.
    """
    tokenizer, model = _opened(encoder)
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length=min(512, getattr(model.config, "max_position_embeddings", 512) - 2))
    tokens = torch.tensor([tokenizer.encode(text).ids])
    with torch.no_grad(), torch.autocast(tokens.device.type, enabled=False):
        mean = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state[0].double().mean(0)
    return tuple((mean * math.sqrt(len(mean)) / mean.norm()).tolist())


@functools.lru_cache(maxsize=1)
def _opened(encoder: str) -> tuple[Any, Any]:
    try:
        from tokenizers import Tokenizer

        folder = folder_of(encoder, CONFIG, WEIGHTS, TOKENIZER)
        return Tokenizer.from_file(str(folder / TOKENIZER)), pretrained(folder)
    except ImportError as error:
        raise MethodError(
            "Descriptions in words need the library tokenizers, which is not installed. Install it: "
            'pip install "mtlbench[text]"'
        ) from error
    except SuiteError as error:
        raise MethodError(f"Descriptions in words need a sentence encoder. {error}") from error
    except Exception as error:  # The libraries raise plain exceptions.
        raise MethodError(
            f"Descriptions in words need a sentence encoder. {encoder} cannot be read: {type(error).__name__}: "
            f"{shortened(str(error))}. Save it again, or choose another."
        ) from error
