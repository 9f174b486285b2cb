"""The Modelfile that Ollama makes a model from: the GGUF file, the template, where an answer stops, and no sampling.

Ollama knows a GGUF file's own template only where it is a famous one, so it is written as a Go template. Not run here:
Ollama is a program of its own. What is checked is that the parts it is made of render every probe as the Jinja does.
"""

from typing import TYPE_CHECKING

from metier.export.chat_template import Parts
from metier.text.chat import stop_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def modelfile(gguf: str, tokenizer: "PreTrainedTokenizerFast", parts: Parts, *, context: int, licence: str) -> str:
    """The Modelfile's text. gguf: the file's name beside it. context: tokens. licence: or empty."""
    stops = [str(tokenizer.convert_ids_to_tokens(i)) for i in sorted(stop_ids(tokenizer))]
    lines = [
        "# ollama create NAME -f Modelfile",
        f"FROM ./{gguf}",
        f'TEMPLATE """{parts.go()}"""',
        *(f'PARAMETER stop "{stop}"' for stop in stops if '"' not in stop),
        f"PARAMETER num_ctx {context}",
        "# Measured with the likeliest token always; raise it for livelier answers.",
        "PARAMETER temperature 0",
    ]
    if licence:
        lines.append(f'LICENSE """{licence}"""')
    return "\n".join(lines) + "\n"
