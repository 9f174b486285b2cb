"""Which optional packages a format needs, found without importing any."""

from collections.abc import Collection
from importlib.util import find_spec

from metier.core.errors import MissingExtra


def check_installed(gguf: Collection[str], bits: Collection[str]) -> None:
    """Raise MissingExtra where the wanted formats need a package that is not there."""
    if gguf and find_spec("gguf") is None:
        raise MissingExtra("gguf", "gguf", needed_by="writing a GGUF file")
    if any("_K" in kind for kind in gguf) and find_spec("llama_cpp") is None:
        raise MissingExtra("llama-cpp-python", "llamacpp", needed_by="a GGUF file of K-quants")
    if bits and find_spec("bitsandbytes") is None:
        raise MissingExtra("bitsandbytes", "quant", needed_by="an export in 8 or 4 bits")
