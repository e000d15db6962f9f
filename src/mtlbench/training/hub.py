"""Uploads a folder to the Hugging Face Hub. The only place that knows its client."""

from __future__ import annotations

from pathlib import Path

from mtlbench.errors import StoreError, shortened


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


def push(folder: Path, repository: str) -> str:
    """Uploads a folder, and returns the address of the repository, which is made private if it is new.

    Raises:
        StoreError: If the upload fails; the folder stays as it is.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        made = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"Upload {folder.name}")
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise StoreError(
            f"An upload needs a login with write access and a connection. {repository}: {type(error).__name__}: "
            f"{shortened(str(error))}. {folder} is complete; log in with `hf auth login`, and run the command again."
        ) from error
    return str(made)
