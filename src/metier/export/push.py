"""Put an exported folder on the Hugging Face hub: only when asked by name, never by default.

The token comes from the environment (HF_TOKEN) alone, and is neither stored nor shown; the repository is made private
where it is new. Refuses where the network is switched off. Costs the upload.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from metier.core.errors import EndpointError, InputError

TOKEN = "HF_TOKEN"  # noqa: S105 - the variable's name
_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_OFF = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def check_push(repository: str, environment: Mapping[str, str] = os.environ) -> None:
    """Raise InputError where the push could not work: the name, the network or the token. Reaches nothing."""
    if not _NAME.fullmatch(repository):
        raise InputError("a repository is named organisation/name", where="--push", value=repository)
    for name in _OFF:
        if environment.get(name, "").strip().lower() in ("1", "true", "yes", "on"):
            cure = f"{name}=0 opens it for one command"
            raise InputError("the hub cannot be reached: the network is switched off", where=name, cure=cure)
    if not environment.get(TOKEN):
        raise InputError(
            "a push needs a token", where=TOKEN, cure=f"put a token that may write into the environment: {TOKEN}=..."
        )


def push(folder: Path, repository: str, environment: Mapping[str, str] = os.environ) -> str:
    """Upload the folder and return its address. Raises InputError like `check_push`, EndpointError where it fails."""
    check_push(repository, environment)
    from httpx import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    hub = HfApi(token=environment[TOKEN])
    try:
        hub.create_repo(repository, private=True, exist_ok=True)
        made = hub.upload_folder(folder_path=str(folder), repo_id=repository, commit_message="Export")
    except (HfHubHTTPError, HTTPError, OSError) as error:
        first = str(error).strip().splitlines()
        raise EndpointError(
            f"the hub did not take the folder ({first[0] if first else type(error).__name__})",
            where=repository,
            cure="check the token's rights and the name; the folder itself is ready",
        ) from error
    return str(made.commit_url) if made.commit_url else repository
