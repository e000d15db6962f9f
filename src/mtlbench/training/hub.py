"""Uploads a folder to the Hugging Face Hub. The only place that knows its client."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mtlbench.errors import StoreError, shortened

SILENCE = 30.0
"""Seconds after which a server that says nothing counts as out of reach. By default, the client waits indefinitely."""


def check_hub(repository: str) -> None:
    """Checks that an upload can begin: the client is installed and the name of the repository has the right form.

    Raises:
        StoreError: If not.
    """
    try:
        from huggingface_hub.utils import HFValidationError, validate_repo_id
    except ImportError as error:
        raise StoreError(
            "--push needs the package huggingface_hub, which is not installed. Install it with: "
            "pip install 'mtlbench[hub]' (in a clone: pip install -e '.[hub]'), or leave out --push."
        ) from error
    fault = ""
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        fault = f" {shortened(str(error))}"
    if fault or repository.count("/") != 1:
        raise StoreError(f"--push takes a repository as owner/name. Found {repository!r}.{fault}")


def push(folder: Path, repository: str, files: Sequence[str]) -> str:
    """Uploads files of a folder as one commit, and returns the address of the repository.

    A new repository is private. Files that have not changed are not sent again.

    Args:
        folder: Where the files are.
        repository: ``owner/name``.
        files: Their names. Whatever else the folder holds stays on this machine.

    Raises:
        StoreError: If the upload fails; the folder stays as it is.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import get_session

    get_session().timeout = SILENCE  # The session is shared by all calls.
    api = HfApi()
    try:
        made = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=list(files),
            commit_message=f"Upload {folder.name}",
        )
    except Exception as error:  # The client's versions raise errors of different libraries.
        raise StoreError(_told(error, folder, repository, api.endpoint)) from error
    return str(made)


def _told(error: Exception, folder: Path, repository: str, endpoint: str) -> str:
    """Says what failed and what to do, by the answer of the server if there was one."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    fact = f"{type(error).__name__}: {shortened(str(error))}"
    again = f"{folder} is complete. Upload it later with: hf upload {repository} {folder} --private"
    if status in (401, 403, 404):
        return (
            f"An upload needs an account that may write to {repository}, and {endpoint} refused it. {fact}. "
            f"Log in with `hf auth login`, or name another repository. {again}"
        )
    return f"An upload needs a Hub that answers. {endpoint} did not take the files. {fact}. {again}"
