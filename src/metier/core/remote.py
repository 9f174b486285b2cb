"""Files behind a URL, through fsspec: s3://bucket/key, hf://datasets/owner/name@commit/..., and whatever else it opens.

Nothing is asked of a network unless a URL is named. What a library raises becomes an InputError that names the URL and
what to do: a package that is missing, no credentials, no such bucket, no answer. fsspec comes with torch; what it needs
for a kind of URL does not (for s3: the extra `s3`). Credentials and endpoints are read where these libraries look for
them: AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_ENDPOINT_URL, HF_TOKEN.
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from metier.core.errors import InputError, MissingExtra

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://")
_EXTRAS = {"s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3"), "hf": ("huggingface_hub", "hub")}
_HUB_OFF = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_STAMPS = ("ETag", "etag", "sha256", "blob_id", "md5Hash", "md5", "LastModified", "last_modified", "mtime", "created")
"""What a file system says of a file that differs when it was written again, the surest first."""
CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"


def is_url(text: str) -> bool:
    """Whether a place is named by a URL rather than a path."""
    return _URL.match(text) is not None


def protocol_of(url: str) -> str:
    """`s3` of `s3://bucket/key`."""
    found = _URL.match(url)
    assert found, url
    return found[1]


def opened(url: str) -> tuple[Any, str]:
    """The file system behind a URL, and the path in it. Asks nothing of a network.

    Raises MissingExtra where a package is missing, InputError for a kind of URL that nobody knows, and for the hub
    where it is switched off.
    """
    import fsspec

    protocol = protocol_of(url)
    if protocol == "hf" and any(os.environ.get(name, "").lower() in ("1", "true", "yes", "on") for name in _HUB_OFF):
        cure = "allow the network with HF_HUB_OFFLINE=0, or fetch the files once and name their folder"
        raise InputError("the hub is switched off (HF_HUB_OFFLINE)", where=url, cure=cure)
    try:
        # listings are not remembered: others write there too
        system, path = fsspec.url_to_fs(url, use_listings_cache=False, skip_instance_cache=protocol != "memory")
    except ImportError as error:
        package, extra = _EXTRAS.get(protocol, (protocol, protocol))
        if protocol in _EXTRAS:
            raise MissingExtra(package, extra, needed_by=url) from error
        raise InputError(f"a package for {protocol}:// is missing", where=url, value=str(error)) from error
    except ValueError as error:
        cure = "use a path, or a URL such as s3://bucket/folder"
        raise InputError(f"nothing here opens {protocol}:// URLs", where=url, value=str(error), cure=cure) from error
    return system, str(path)


@contextmanager
def told(url: str) -> Iterator[None]:
    """Errors of a file system's libraries as an InputError about `url`. Others pass."""
    try:
        yield
    except _errors() as error:
        what, cure = _meant(error)
        raise InputError(what, where=url, value=_first_line(error), cure=cure) from error


def stamp_of(info: dict[str, Any]) -> str:
    """What a file system says of a file that changes with it; empty where it says nothing."""
    return next((f"{info[key]}".strip('"') for key in _STAMPS if info.get(key) is not None), "")


def _errors() -> tuple[type[Exception], ...]:
    """What the libraries that are loaded raise about files."""
    found: list[type[Exception]] = [OSError]
    for module, names in (
        ("botocore.exceptions", ("BotoCoreError", "ClientError")),
        ("aiohttp", ("ClientError",)),
        ("huggingface_hub.errors", ("HfHubHTTPError",)),
    ):
        if module in sys.modules:
            found += [getattr(sys.modules[module], name) for name in names]
    return tuple(found)


def _meant(error: Exception) -> tuple[str, str]:
    """What an error says, and what to do."""
    name, text = type(error).__name__, str(error)
    if "Credential" in name or "Unable to locate credentials" in text:
        return "there are no credentials for it", CREDENTIALS
    if isinstance(error, PermissionError) or "AccessDenied" in text or "Forbidden" in text:
        return "access is denied", f"{CREDENTIALS}, of somebody who may read and write there"
    if isinstance(error, FileNotFoundError) or "NoSuchBucket" in text or "does not exist" in text:
        return "it is not there", "check bucket and path; a bucket is made beforehand, not here"
    if isinstance(error, ConnectionError | TimeoutError) or "Connect" in name or "Timeout" in name:
        return "it does not answer", "check the network and AWS_ENDPOINT_URL, then run the same command again"
    return "it cannot be read or written", "see what it says, and run the same command again when that is mended"


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
