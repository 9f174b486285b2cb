"""Makes the work that every contender of `benchmarks.training` is given: `python -m benchmarks.work`.

    build/work/sft.jsonl        96 pairs of MedQuAD (answers under 200 words) in a patient-scenario prompt
    build/work/causal512.jsonl  48 blocks of 512 TinyLlama tokens of MedQuAD's answers, all of them targets
    build/work/gpt2.jsonl       the same with GPT-2's tokenizer
    build/work/models/<name>/   TinyLlama's shape with 6 and with 22 layers, and GPT-2's: config, random bf16 weights,
                                the real tokenizer

A row is {"input_ids": [...], "prompt_length": n}: the first n tokens are no targets. Made once; nothing here is a
measurement. Reads ../shared, which must be there. Costs 3.3 GB of disk and, in memory, a block at a time.
"""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metier.models.sizes import TINYLLAMA
from metier.models.unborn import write_weights

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
WORK = ROOT / "build/work"
MEDQUAD = SHARED / "data/medquad/medquad_answered.jsonl"

EXAMPLES = 96
BLOCKS = 48
BLOCK = 512
SHORT_ANSWER = 200
"""Words; answers must have fewer."""
PROMPT = (
    "You are a clinical assistant on a medical ward. Read the scenario below and tell the patient, in plain and calm "
    "words, what is known about it. Rely on established medical facts, say so where something is uncertain, and "
    "do not invent names, doses or dates.\n\n"
    "Patient scenario: {question}\nAnswer: "
)

Row = dict[str, Any]


def main() -> None:
    for name in DATA:
        path = data(name)
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        lengths = [len(row["input_ids"]) for row in rows]
        prompts = sum(row["prompt_length"] for row in rows) / len(rows)
        mean = sum(lengths) / len(rows)
        print(
            f"{name}: {len(rows)} rows, mean {mean:.1f} tokens (longest {max(lengths)}), of which prompt {prompts:.1f}"
        )
    for name in MODELS:
        folder = model(name)
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        print(f"{name}: {size / 2e6:.1f} M parameters")


def data(name: str) -> Path:
    """The JSON lines of a case, made where they are not there."""
    path = WORK / f"{name}.jsonl"
    if not path.exists():
        need_shared()
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".aside")
        aside.write_text("".join(json.dumps(row) + "\n" for row in DATA[name]()), encoding="utf-8")
        aside.rename(path)
    return path


def model(name: str) -> Path:
    """The folder of a model, made where it is not there."""
    folder = WORK / "models" / name
    if not folder.exists():
        need_shared()
        config, tokenizer = MODELS[name]
        aside = folder.with_name(f"{name}.aside")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        write_weights(config(), aside)
        for path in (SHARED / "tokenizers" / tokenizer).iterdir():
            shutil.copyfile(path, aside / path.name)  # the mode of the original may forbid writing
        aside.rename(folder)
    return folder


def need_shared() -> None:
    """Stop where the material that the work is made of is not there."""
    if not SHARED.is_dir():
        raise SystemExit("the folder ../shared is not here: the benchmark's data and tokenizers come from it")


def sft(count: int = EXAMPLES) -> list[Row]:
    """Short questions and answers, each with a start and an end token."""
    pairs = [(clean(row["question"]), clean(row["answer"])) for row in medquad()]
    short = [(q, a) for q, a in pairs if q and a and len(a.split()) < SHORT_ANSWER]
    encode = encoder("tinyllama")
    rows = []
    for question, answer in random.Random(0).sample(short, count):
        prompt = PROMPT.format(question=question)
        ids, ends = encode(prompt + answer)
        # the answer's first token also covers the space that ends the prompt
        prompt_length = 1 + sum(end <= len(prompt) for end in ends)
        rows.append({"input_ids": [BOS, *ids, EOS], "prompt_length": prompt_length})
    return rows


BOS, EOS = 1, 2
"""TinyLlama's <s> and </s>."""


def blocks(tokenizer: str) -> list[Row]:
    """Blocks of BLOCK tokens, cut from answers laid end to end."""
    encode = encoder(tokenizer)
    answers = [clean(row["answer"]) for row in medquad()]
    random.Random(0).shuffle(answers)
    ids: list[int] = []
    for answer in answers:
        ids += encode(answer)[0]
        if len(ids) >= BLOCKS * BLOCK:
            break
    return [{"input_ids": ids[i * BLOCK : (i + 1) * BLOCK], "prompt_length": 0} for i in range(BLOCKS)]


def medquad() -> Iterator[Row]:
    """MedQuAD's rows."""
    with MEDQUAD.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def clean(text: str) -> str:
    """Whitespace collapsed."""
    return " ".join(text.split())


def encoder(name: str) -> Callable[[str], tuple[list[int], list[int]]]:
    """From a text to its ids, without special tokens, and to where in the text each of them ends."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(SHARED / "tokenizers" / name / "tokenizer.json"))

    def encode(text: str) -> tuple[list[int], list[int]]:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, [end for _, end in encoding.offsets]

    return encode


def tinyllama(layers: int) -> "PretrainedConfig":
    """TinyLlama's shape."""
    from transformers import LlamaConfig

    return LlamaConfig(**{**TINYLLAMA, "num_hidden_layers": layers, "dtype": "bfloat16"})


def gpt2() -> "PretrainedConfig":
    """GPT-2's shape, without dropout, which not every contender has."""
    from transformers import GPT2Config

    return GPT2Config(
        architectures=["GPT2LMHeadModel"], dtype="bfloat16", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )


DATA: dict[str, Callable[[], list[Row]]] = {
    "sft": sft,
    "causal512": lambda: blocks("tinyllama"),
    "gpt2": lambda: blocks("gpt2"),
}
MODELS: dict[str, tuple[Callable[[], "PretrainedConfig"], str]] = {
    "tinyllama6": (lambda: tinyllama(6), "tinyllama"),
    "tinyllama22": (lambda: tinyllama(22), "tinyllama"),
    "gpt2": (gpt2, "gpt2"),
}


if __name__ == "__main__":
    main()
