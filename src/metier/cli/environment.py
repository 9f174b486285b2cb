"""Environment variables that the command line wants, for libraries that read them when they are imported."""

import os

ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # waiting OpenMP threads that spin make two busy cores several times slower
    "GOMP_SPINCOUNT": "40000",  # but about 0.1 ms of it, so that small products need no wake-up: a quarter faster
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",  # of 1,024: each kernel for a row's shape holds memory, 2 GB in all
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYDANTIC_DISABLE_PLUGINS": "__all__",  # none is wanted, and looking for them takes a twentieth of `metier plan`
}
"""Set before anything heavy is imported, where the user has not set it otherwise."""


def set_defaults() -> None:
    """Set those that are not set."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
