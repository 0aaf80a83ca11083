"""Upload a model to the hub."""

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from longlora.errors import ConfigError


def check_login(repo: str) -> None:
    """See that uploading can begin, before hours are spent on what is to be uploaded.

    Raises:
        ConfigError: the name cannot be one of the hub, or nobody is logged in.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"--push-to-hub {repo}: no such name is possible; write it as YOUR_NAME/MODEL") from error
    if get_token() is None:
        raise ConfigError("uploading needs a token of the hub: run `hf auth login`, or set HF_TOKEN")


def push_to_hub(directory: Path, repo: str, *, private: bool = False) -> str:
    """Upload a directory to a repository of the hub, made if need be, and return its address.

    Raises:
        ConfigError: the hub refuses; the directory is as it was.
    """
    api = HfApi()
    try:
        created = api.create_repo(repo, private=private, exist_ok=True)
        # The hub's answer names the owner where the user left it out.
        api.upload_folder(repo_id=created.repo_id, folder_path=directory, commit_message="Upload merged model")
    except (HfHubHTTPError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"{repo} could not be uploaded ({reason}); the model lies in {directory}, so `hf upload {repo} "
            f"{directory}` can be tried again"
        ) from error
    return str(created)
