"""Is what is exported still the model? Merging, GGUF files and folders in 8 and 4 bits, each beside its source.

`python -m benchmarks.export` reads GGUF files back through transformers (a minute). `python -m benchmarks.export
--llamacpp` runs them in llama.cpp, for which llama-cpp-python has to be installed. Models: the seedling with adapters
of each kind, stories260K, and tiny random ones of Llama's and GPT-2's architecture with the real tokenizers of
TinyLlama, GPT-2 and Llama 3 (which only the folder beside the project has).
"""

import copy
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from benchmarks.rows import Row, write
from metier.core.events import Events
from metier.export.card import Facts
from metier.export.chat_template import publish_template
from metier.export.folder import Exported, Wanted, export_model
from metier.export.gguf import llamacpp
from metier.export.gguf.read import read_model
from metier.export.gguf.tokens import Tokens
from metier.export.gguf.write import GGUF_TYPES, write_gguf
from metier.export.history import History
from metier.export.parity import CHATS, TOLERANCES, Probe, compare, logits_of, make_probe, see
from metier.models.adapter import LoraSettings, add_lora, merge
from metier.models.builtin import BUILTIN
from metier.models.load import Loaded, load, read_tokenizer
from metier.models.save import save_model

SHARED = Path(__file__).resolve().parents[2] / "shared"
KINDS = {"LoRA": {}, "rsLoRA": {"rslora": True}, "DoRA": {"dora": True}}


def merged() -> Iterator[Row]:
    """The largest difference of a logit between an adapter and what it was merged into, in float32."""
    for title, folder in (("seedling", BUILTIN["seedling"]), *shared_models()):
        for kind, settings in KINDS.items():
            loaded = load(folder)
            publish_template(loaded.tokenizer, CHATS)
            torch.manual_seed(0)
            model = add_lora(loaded.model, LoraSettings(r=16, alpha=32, **settings))
            for name, value in model.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(value, std=0.01)
            both = Loaded(model.eval(), loaded.tokenizer, loaded.folder)
            probe = make_probe(both)
            before, apart = see(both, probe), in_double(both.model, probe)
            alone = largest(list(logits_of(both.model, probe)), apart)
            plain = Loaded(merge(both), loaded.tokenizer, loaded.folder)
            row = compare("merged", "merged", before, see(plain, probe), probe)
            exact = largest(apart, in_double(plain.model, probe))
            case = f"merged beside adapter in float32, {kind} on {title}"
            yield Row(f"{case}: share of the largest logit", row.difference / row.largest, 1e-5, "of it", "lower")
            yield Row(f"{case}: largest difference", row.difference, 1e-5, "logits", "lower", n=row.positions)
            yield Row(
                f"{case}: the same, computed in double precision from the stored float32 weights",
                exact,
                1e-5,
                "logits",
                "lower",
                n=row.positions,
            )
            yield Row(
                f"{case}: the adapter alone, float32 beside double precision: what float32 costs by itself",
                alone,
                1e-5,
                "logits",
                "lower",
                n=row.positions,
            )


@torch.inference_mode()
def in_double(model: torch.nn.Module, probe: Probe) -> list[torch.Tensor]:
    """Logits of a copy that computes in float64, but for norms and rotary angles, which transformers has in float32.

    What then differs between an adapter and its merged model is what rounding W + BA to float32 once took away, and
    not how two ways of adding up in float32 differ.
    """
    double = copy.deepcopy(model).double()
    return [double(torch.tensor([ids]), use_cache=False).logits[0] for ids in probe.ids]


def largest(left: list[torch.Tensor], right: list[torch.Tensor]) -> float:
    """The largest difference of any logit."""
    return max(float((a.double() - b.double()).abs().max()) for a, b in zip(left, right, strict=True))


def rounded(folder: Path, title: str) -> Row:
    """An F16 file beside the same model with its matrices rounded to float16: does anything but that differ?"""
    loaded = load(folder)
    probe = make_probe(loaded)
    with torch.no_grad():
        for value in loaded.model.parameters():
            if value.ndim > 1:
                value.copy_(value.half().float())
    made = read_model(folder / "gguf/model-F16.gguf")
    difference = largest(list(logits_of(made, probe)), list(logits_of(loaded.model, probe)))
    case = f"F16 read by transformers, {title}: largest difference from the model with its weights rounded to float16"
    return Row(case, difference, 2e-3, "logits", "lower", n=sum(map(len, probe.ids)))


def shared_models() -> list[tuple[str, Path]]:
    folder = SHARED / "models" / "stories260K"
    return [("stories260K", folder)] if folder.is_dir() else []


def tiny_models(root: Path) -> Iterator[tuple[str, Path]]:
    """Random models with real tokenizers, gentle enough that a logit is a logit."""
    for name, kind in (("tinyllama", "llama"), ("gpt2", "gpt2"), ("llama3", "llama")):
        source = SHARED / "tokenizers" / name
        if not source.is_dir():
            continue
        tokenizer = read_tokenizer(source)
        torch.manual_seed(0)
        size = len(tokenizer)
        if kind == "gpt2":
            model = GPT2LMHeadModel(GPT2Config(vocab_size=size, n_embd=64, n_layer=2, n_head=2, initializer_range=0.08))
        else:
            config = LlamaConfig(
                vocab_size=size,
                hidden_size=64,
                intermediate_size=160,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=512,
                tie_word_embeddings=name == "llama3",
                initializer_range=0.08,
            )
            model = LlamaForCausalLM(config)
        save_model(model.eval(), tokenizer, root / name)
        yield f"a tiny {kind} with the tokenizer of {name}", root / name


def exported(title: str, folder: Path, root: Path, wanted: Wanted) -> Exported:
    print(title, flush=True)
    events = Events("bench", listeners=[lambda e: print("  ", e["text"]) if e["event"] == "note" else None])
    out = root / title.replace(" ", "-")
    return export_model(folder, out, wanted, Facts(title), History(), scratch=root / "scratch", events=events)


def forms(made: Exported, title: str, *, here: bool) -> Iterator[Row]:
    """The figures of each form: the bar is the gate's tolerance, for F16 what was set as the goal."""
    for row in made.in_llamacpp if here else made.rows:
        if row.form == "reloaded":
            continue
        where = "in llama.cpp" if here else "read by transformers"
        case = f"{row.format} {where}, {title}"
        bar = 2e-3 if row.format == "F16" else TOLERANCES[row.format].difference
        share = row.difference / max(1.0, row.largest)
        yield Row(f"{case}: largest difference of a logit", share, bar, "of the largest", "lower", n=row.positions)
        if row.format == "F16":
            yield Row(f"{case}: the same, absolute", row.difference, 2e-3, "logits", "lower", n=row.positions)
        yield Row(
            f"{case}: rendered chats with the trained ids", float(row.same_ids), 1, "share", "higher", n=row.chats
        )
        if row.of_stops:
            share = row.stops / row.of_stops
            yield Row(f"{case}: answers that end by themselves", share, 1, "of the source's", "higher", n=row.of_stops)
        yield Row(
            f"{case}: same first choice",
            row.same_top,
            TOLERANCES[row.format].same_top,
            "share",
            "higher",
            n=row.positions,
        )
        if here:
            greedy = TOLERANCES[row.format].greedy
            yield Row(f"{case}: greedy answers' tokens the same", row.greedy, greedy, "share", "higher", n=row.chats)


def texts_in_llamacpp(title: str, folder: Path, root: Path) -> Row:
    """The share of texts whose ids llama.cpp, from the file, gives as the file's fields were computed to give."""
    import llama_cpp

    path = root / "tokens.gguf"
    words = write_gguf(folder, path, "F16")
    ours = Tokens(words)
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    prose = SHARED / "data" / "wikitext2" / "valid.txt"
    lines = [line for line in prose.read_text(encoding="utf-8").splitlines() if line][:1000] if prose.is_file() else []
    texts = [*lines, *(chat[-1].content for chat in CHATS)]
    texts += [text.replace("▁", " ") for text in words.tokens[:: max(1, len(words.tokens) // 3000)]]
    same = sum(model.tokenize(t.encode(), add_bos=False, special=True) == ours.encode(t, begin=False) for t in texts)
    model.close()
    case = f"texts with the ids that were computed without llama.cpp, {title}"
    return Row(case, same / len(texts), 1, "share", "higher", n=len(texts))


def main() -> None:
    here = "--llamacpp" in sys.argv[1:]
    rows: list[Row] = [] if here else list(merged())
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        models = [("the seedling", BUILTIN["seedling"]), *shared_models(), *tiny_models(root / "tiny")]
        for title, folder in models:
            kinds: tuple[str, ...] = ("F32", "F16", "BF16") if title == "stories260K" else GGUF_TYPES
            if here and title == "the seedling":
                kinds = (*kinds, *llamacpp.K_QUANTS)
            if title not in ("the seedling", "stories260K"):
                kinds = ("F32", "F16", "BF16", "Q8_0")  # 4 bits of noise are another noise
            bits = ("int8", "nf4") if title == "the seedling" and not here else ()
            made = exported(title, folder, root, Wanted("base", kinds, bits))
            rows += forms(made, title, here=here)
            if not here:
                rows.append(rounded(root / title.replace(" ", "-"), title))
            if here:
                rows.append(texts_in_llamacpp(title, folder, root))
    write("export", "python -m benchmarks.export" + (" --llamacpp" if here else ""), rows)


if __name__ == "__main__":
    main()
