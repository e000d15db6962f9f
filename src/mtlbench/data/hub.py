"""Data sets and encoders of the Hugging Face Hub, fetched by its own clients. The only place that reads from it."""

from __future__ import annotations

import difflib
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtlbench.errors import DataError, SuiteError, shortened, unknown_name

PLACE = "hub"
"""Folder for fetched data sets, within the data folder."""

SETS = ("nyu-mll/glue",)
ENCODERS = (
    "google-bert/bert-base-uncased",
    "FacebookAI/roberta-base",
    "distilbert/distilbert-base-uncased",
    "sentence-transformers/all-MiniLM-L6-v2",
)
"""Names that are suggested in place of one that the Hub does not have."""

PATIENCE = 60.0
"""Seconds for which a Hub that did not answer is not asked again. The client takes half a minute to give up."""

_silent: dict[str, float] = {}
"""Address of a Hub -> when it did not answer."""

_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@dataclass(frozen=True)
class HubSet:
    """One configuration of a data set of the Hub.

    Attributes:
        repository: ``owner/name``, or the name alone.
        config: Name of the configuration; ``""`` for a data set with only one.
        terms: Under which terms the data may be used; shown before anything is fetched.
        revision: Branch, tag or commit.
    """

    repository: str
    config: str = ""
    terms: str = ""
    revision: str = "main"

    @property
    def name(self) -> str:
        """Repository and configuration."""
        return f"{self.repository} {self.config}".rstrip()

    def path(self, root: str | Path | None) -> Path:
        """Returns where the data set lies within a data folder, as ``save_to_disk`` of `datasets` writes it."""
        at = "" if self.revision == "main" else f"@{self.revision.replace('/', '--')}"
        folder = Path(root or ".").expanduser() / PLACE / self.repository.replace("/", "--")
        return folder / f"{self.config or 'default'}{at}"

    def by_hand(self, root: str | Path | None) -> str:
        """Returns how to bring the data set to a machine without a network."""
        words = [repr(word) for word in (self.repository, self.config) if word]
        words += [] if self.revision == "main" else [f"revision={self.revision!r}"]
        code = f"from datasets import load_dataset; load_dataset({', '.join(words)}).save_to_disk('saved')"
        return f'Where there is a network, run python -c "{code}", and copy the folder saved to {self.path(root)}.'

    def obtain(self, root: Path, watch: Callable[..., None] = lambda have, total: None) -> bool:
        """Fetches the data set; returns False if it is already there.

        Raises:
            DataError: There is no such data set, the Hub does not answer, or the connection breaks off. Nothing is
                left in ``root`` then.
        """
        target = self.path(root)
        if target.is_dir():
            return False
        if not _NAME.fullmatch(self.repository):
            raise DataError(f"A data set of the Hub has a name owner/name. Found {self.repository!r}. Correct it.")
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=root) as draft:
            found = self._load(Path(draft), root)
            found.save_to_disk(Path(draft) / "saved")
            target.parent.mkdir(parents=True, exist_ok=True)
            (Path(draft) / "saved").rename(target)
        return True

    def _load(self, draft: Path, root: Path) -> Any:
        try:
            import datasets
        except ImportError as error:
            raise DataError(
                f"{self.name} is fetched by the library datasets, which is not installed. Install it: "
                'pip install "mtlbench[text]"'
            ) from error
        chosen: dict[str, Any] = {"revision": self.revision, "cache_dir": str(draft / "cache")}
        try:
            return datasets.load_dataset(self.repository, self.config or None, **chosen)
        except datasets.exceptions.DatasetNotFoundError as error:
            raise DataError(_absent("data set", self.repository, SETS)) from error
        except Exception as error:  # Errors of datasets, of the Hub's client and of its HTTP library.
            raise DataError(self._told(error, root)) from error

    def _told(self, error: Exception, root: Path) -> str:
        import datasets

        fact = f"{type(error).__name__}: {shortened(str(error))}"
        if isinstance(error, ConnectionError):  # Raised before anything is fetched.
            return f"{self.name} comes from {_endpoint()}, which does not answer. {fact}. {self.by_hand(root)}"
        if isinstance(error, ValueError):
            try:
                known = datasets.get_dataset_config_names(self.repository, revision=self.revision)
            except Exception:  # The first error says more.
                known = []
            if known and self.config not in known:
                return unknown_name(f"configuration of {self.repository}", self.config, known)
        return (
            f"{self.name} must come whole from {_endpoint()}. {fact}. Nothing of it is kept in {root}. Try again. "
            f"{self.by_hand(root)}"
        )


def is_repository(name: str) -> bool:
    """Returns whether a name has the form ``owner/name``, and is not that of a file in a folder here."""
    return bool(_NAME.fullmatch(name)) and "/" in name and not Path(name.partition("/")[0]).exists()


def encoder_folder(name: str, needed: Sequence[str]) -> Path:
    """Returns the folder with files of an encoder of the Hub: the Hub's own cache, which is completed if necessary.

    All files are of one commit. What the cache holds is used without asking the Hub.

    Args:
        name: ``owner/name``.
        needed: Names of the files.

    Raises:
        SuiteError: There is no such encoder, it lacks a file, the Hub does not answer, or the connection breaks off.
    """
    try:
        from huggingface_hub import errors, hf_hub_download, try_to_load_from_cache
    except ImportError as error:
        raise SuiteError(
            f"{name} is fetched by the library huggingface_hub, which is not installed. Install it: "
            'pip install "mtlbench[text]"'
        ) from error
    cached = (try_to_load_from_cache(name, file) for file in needed)
    folder = next((Path(path).parent for path in cached if isinstance(path, str)), None)
    command = f"hf download {name} {' '.join(needed)} --local-dir encoder"
    by_hand = f"Where there is a network, run {command}, and give its path ./encoder."
    unanswered = f"{name} comes from {_endpoint()}, which does not answer. {by_hand}"
    for file in needed:
        if folder and (folder / file).is_file():
            continue
        if time.monotonic() < _silent.get(_endpoint(), -PATIENCE) + PATIENCE:
            raise SuiteError(unanswered)
        try:
            folder = Path(hf_hub_download(name, file, revision=folder.name if folder else None)).parent
        except errors.RepositoryNotFoundError as error:
            raise SuiteError(_absent("encoder", name, ENCODERS)) from error
        except errors.LocalEntryNotFoundError as error:
            _silent[_endpoint()] = time.monotonic()
            raise SuiteError(unanswered) from error
        except errors.EntryNotFoundError as error:
            raise SuiteError(
                f"An encoder of the Hub holds {', '.join(needed)}. {name} has no {file}. Choose another, for example "
                f"{ENCODERS[0]}."
            ) from error
        except Exception as error:  # Errors of the client's HTTP library, and of a connection that breaks off.
            fact = f"{type(error).__name__}: {shortened(str(error))}"
            whole = f"{file} of {name} must come whole from {_endpoint()}"
            raise SuiteError(f"{whole}. {fact}. Try again. {by_hand}") from error
    return Path(folder or ".")


def _absent(kind: str, name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return (
        f"The Hub must have the {kind}, open to you. {_endpoint()} has no {kind} {name!r} that it shows you.{hint} "
        "Correct the name. If it asks for an account, log in with `hf auth login`."
    )


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)
