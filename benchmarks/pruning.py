"""What pruning keeps, saves and costs: `python -m benchmarks.pruning nothing`, `sizes`, `speed`, `wanda`, `guard`.

    nothing   the seedling pruned by nothing, every method: are the files the same, bit for bit?
    sizes     key/value groups, query heads, width and layers removed: predicted against counted bytes
    speed     TinyLlama's shape with random weights: generation without 20 % of the MLP width, without half of the
              key/value groups, beside the whole model, turn by turn. Must have the machine to itself
    wanda     half of the weights zero by Wanda, by RIA and by magnitude: perplexity of the seedling on general text, of
              the quickstart's `reader` on marine text where its folder is named, and of stories260K on its own
    guard     a destroyed model, one that lost a class, and an unchanged one before the guard

Rows go to `benchmarks/results/export.json`. No network, nothing but the repository.
"""

import gc
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.rows import Row, write
from metier.core.events import Events
from metier.core.stage import Context, Source
from metier.engine.documents import document_nll
from metier.measure.statistics import compare, mean_interval
from metier.models.builtin import BUILTIN
from metier.models.load import Loaded, load
from metier.models.save import save_model
from metier.models.shape import linear_layers
from metier.models.sizes import TINYLLAMA
from metier.prune.anatomy import Cut, shape_of
from metier.prune.apply import Work, importance, make
from metier.prune.calibrate import pieces
from metier.prune.methods import (
    Heads,
    HeadsMethod,
    Layers,
    LayersMethod,
    Method,
    Weights,
    WeightsMethod,
    Width,
    WidthMethod,
    cut_of,
)
from metier.prune.size import tensor_bytes
from metier.prune.sparse import dropped, scores_of
from metier.prune.stage import Keep, predicted
from metier.prune.stream import Pieces, looking
from metier.prune.surgery import matrix, smaller
from metier.text.artifacts import conversation_row, write_jsonl
from metier.text.chat import encode_conversation, encode_reading
from metier.text.nouns import Conversation, Message

TOPIC = "export"
ROOT = Path(__file__).resolve().parent.parent
GENERAL = ROOT / "recipes/data/general"
MARINE = ROOT / "recipes/data/marine"
STORIES = ROOT.parent / "shared/models/stories260K"
SEEDLING = BUILTIN["seedling"]
LAYERS = 8
"""Of TinyLlama's 22: with all of them two models in float32 take 8 GB, and a turn most of a minute."""
SHAPE = {**TINYLLAMA, "num_hidden_layers": LAYERS}
PROMPT, WARM, TOKENS = 32, 4, 80


def main() -> None:
    part = sys.argv[1] if len(sys.argv) > 1 else ""
    if part not in PARTS:
        raise SystemExit(f"usage: python -m benchmarks.pruning {'|'.join(PARTS)} [READER]")
    torch.manual_seed(0)
    write(TOPIC, f"python -m benchmarks.pruning {part}", list(PARTS[part]()))


def heads(**settings: Any) -> Method:
    return HeadsMethod(heads=Heads(**settings))


def width(**settings: Any) -> Method:
    return WidthMethod(width=Width(**settings))


def layers(count: int) -> Method:
    return LayersMethod(layers=Layers(count=count))


def weights(**settings: Any) -> Method:
    return WeightsMethod(weights=Weights(**settings))


def pruned(method: Method, ids: Pieces | None, out: Path, source: Path = SEEDLING) -> Cut:
    """Write a model's pruned form; by magnitude where there is no calibration data."""
    work = Work(source, method, False, ids, Events("prune"), lambda: None)
    loaded = load(source)
    cut = cut_of(method, shape_of(loaded.model.config.to_dict()))
    make(work, cut, importance(loaded, work, cut), out)
    return cut


def calibration(source: Path, texts: Path, samples: int, part: slice = slice(None)) -> Pieces:
    """Text that a recipe trains on. part: of its texts."""
    with tempfile.TemporaryDirectory() as name:
        rows = ({"id": f"r{i}", "text": text} for i, text in enumerate(texts_of(texts)[part]))
        write_jsonl(Path(name) / "train.jsonl", rows)
        return pieces(load(source), Path(name), "documents", samples=samples, tokens=256)


def nothing() -> Iterator[Row]:
    methods = [
        heads(fraction=0.0),
        heads(fraction=0.0, remove="groups"),
        width(fraction=0.0),
        layers(0),
        weights(fraction=0.0),
    ]
    same = 0
    for method in methods:
        with tempfile.TemporaryDirectory() as folder:
            pruned(method, None, Path(folder) / "out")
            written = (Path(folder) / "out/model.safetensors").read_bytes()
            same += written == (SEEDLING / "model.safetensors").read_bytes()
    case = "pruning the seedling by nothing: weight files that are the same, bit for bit"
    yield Row(case, same / len(methods), 1.0, "share", "higher", n=len(methods))


def sizes() -> Iterator[Row]:
    cases = {
        "half of the key/value groups": heads(fraction=0.5, remove="groups", importance="magnitude"),
        "half of each group's query heads": heads(fraction=0.5, remove="queries", importance="magnitude"),
        "20 % of the MLP width": width(fraction=0.2, importance="magnitude"),
    }
    raw = json.loads((SEEDLING / "config.json").read_text(encoding="utf-8"))
    for name, method in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            cut = pruned(method, None, Path(folder) / "out")
            told, counted = predicted(raw, cut, 2)["bytes"], tensor_bytes(Path(folder) / "out")
        saved = 1 - counted / tensor_bytes(SEEDLING)
        case = f"seedling without {name} ({saved:.1%} of the bytes): predicted bytes, off by"
        yield Row(case, abs(told - counted), 0.0, "bytes", "lower")


def speed() -> Iterator[Row]:
    whole = random_tinyllama()
    shape = shape_of(whole.config.to_dict())
    plain = whole.state_dict()
    for name, method, bar in (
        ("20 % of the MLP width", width(fraction=0.2, importance="magnitude"), 1.10),
        ("half of the key/value groups", heads(fraction=0.5, remove="groups", importance="magnitude"), 1.0),
    ):
        cut = cut_of(method, shape)
        less = cut_model(plain, whole.config, cut)
        saved = 1 - count(less) / count(whole)
        ratios = [slow / fast for fast, slow in turns(less, whole)]
        print(f"{name}: quarters {statistics.quantiles(ratios)}", flush=True)
        case = (
            f"TinyLlama's shape ({shape.depth} of 22 layers, float32, random weights) without {name} ({saved:.1%} of "
            "the parameters): tokens a second beside the whole model, the median over tokens made turn by turn"
        )
        found = round(statistics.median(ratios), 3)
        yield Row(case, found, bar, "x", "higher", "the whole model", len(ratios), middle(ratios))
        del less
        gc.collect()


def random_tinyllama() -> PreTrainedModel:
    """TinyLlama's shape; its weights are one random matrix over and over, which takes seconds instead of minutes."""
    config = LlamaConfig(**SHAPE)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.to_empty(device="cpu")
    noise = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0)) * 0.02
    with torch.no_grad():
        for parameter in model.parameters():
            flat = parameter.view(-1)
            for start in range(0, len(flat), len(noise)):
                part = flat[start : start + len(noise)]
                part.copy_(noise[: len(part)])
            if parameter.ndim == 1:
                parameter.fill_(1.0)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


def cut_model(state: dict[str, torch.Tensor], config: LlamaConfig, cut: Cut) -> PreTrainedModel:
    """The same weights with the last units of each block taken, as `smaller` does from a folder's config."""
    shape = shape_of(config.to_dict())
    taken = list(range(int(cut.whole - cut.taken), int(cut.whole)))
    with tempfile.TemporaryDirectory() as folder:
        config.architectures = ["LlamaForCausalLM"]
        config.save_pretrained(folder)
        return smaller(_Held(state, config), Path(folder), cut, shape, dict.fromkeys(cut.blocks, taken))  # type: ignore[arg-type]


class _Held:
    """As much of a model as `smaller` asks for, without taking the model itself apart."""

    def __init__(self, state: dict[str, torch.Tensor], config: LlamaConfig) -> None:
        self._state = state
        self.config = config

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Its weights."""
        return self._state

    def parameters(self) -> Iterator[torch.Tensor]:
        """The same."""
        return iter(self._state.values())


def count(model: PreTrainedModel) -> int:
    return sum(p.numel() for p in model.parameters())


@torch.inference_mode()
def turns(less: Any, whole: Any) -> Iterator[tuple[float, float]]:
    """Seconds for a token of each after a prompt, one sequence, greedy; who goes first changes each time.

    So near to one another in time, both meet the same machine, whatever else it does.
    """
    ids = torch.randint(0, SHAPE["vocab_size"], (1, PROMPT), generator=torch.Generator().manual_seed(1))
    outs = [model(input_ids=ids, use_cache=True, logits_to_keep=1) for model in (less, whole)]
    for number in range(WARM + TOKENS):
        seconds = [0.0, 0.0]
        for which in (0, 1) if number % 2 else (1, 0):
            token, cache = outs[which].logits[:, -1:].argmax(-1), outs[which].past_key_values
            started = time.perf_counter()
            outs[which] = (less, whole)[which](input_ids=token, past_key_values=cache, use_cache=True)
            seconds[which] = time.perf_counter() - started
        if number >= WARM:
            yield seconds[0], seconds[1]


def middle(ratios: list[float]) -> tuple[float, float]:
    """A 95 % interval of the median, from the order of the values (binomial)."""
    ordered, n = sorted(ratios), len(ratios)
    away = round(0.98 * math.sqrt(n))
    return round(ordered[max(0, n // 2 - away - 1)], 3), round(ordered[min(n - 1, n // 2 + away)], 3)


def wanda() -> Iterator[Row]:
    """Half of the weights zero, on general text with ever more calibration, on the domain's, and of another model.

    Both ways leave the head and the embeddings alone and take half of each layer, as the paper's own code does: Wanda
    within each output, block after block, magnitude anywhere within the layer.
    """
    general, replay = texts_of(GENERAL / "heldout.jsonl"), GENERAL / "replay.jsonl"
    for samples in (64, 512):
        yield from halved("the seedling, general text", SEEDLING, calibration(SEEDLING, replay, samples), general)
    yield drawn(general, replay)
    yield outputs("the seedling", SEEDLING, calibration(SEEDLING, replay, 64), general)
    if len(sys.argv) > 2:
        reader = Path(sys.argv[2])
        ids = calibration(reader, MARINE / "corpus.jsonl", 64)
        title = "the quickstart's reader, marine text"
        yield from halved(title, reader, ids, texts_of(MARINE / "corpus_heldout.jsonl"))
    if STORIES.is_dir():
        own = spoken(STORIES, 128, 256)
        yield from halved("stories260K, text of its own", STORIES, own[:64].split(4), list(own[64:]))
        yield outputs("stories260K", STORIES, own[:64].split(4), list(own[64:]))


def drawn(held: list[str], texts: Path) -> Row:
    """Wanda over magnitude with calibration texts of five kinds: each fifth of what there is, once."""
    tokenizer = load(SEEDLING).tokenizer
    encoded = [encode_reading(tokenizer, one) for one in held]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pruned(weights(rank="magnitude"), None, folder / "magnitude")
        plain = sum(nats for nats, _ in perplexities(load(folder / "magnitude"), encoded))
        gaps = []
        for part in range(5):
            ids = calibration(SEEDLING, texts, 512, slice(part, None, 5))
            pruned(weights(rank="wanda"), ids, folder / "wanda")
            rows = perplexities(load(folder / "wanda"), encoded)
            gaps.append((sum(nats for nats, _ in rows) - plain) / sum(tokens for _, tokens in rows))
    found = mean_interval(gaps)
    assert found.low is not None
    assert found.high is not None
    case = "half of the weights zero, perplexity, the seedling, a fifth of the texts each: Wanda's over magnitude's"
    interval = (round(math.exp(found.low), 4), round(math.exp(found.high), 4))
    return Row(case, round(math.exp(found.estimate), 4), 1.0, "x", "lower", "magnitude", len(gaps), interval)


@torch.inference_mode()
def outputs(title: str, source: Path, ids: Pieces, held: list[str] | list[torch.Tensor]) -> Row:
    """What Wanda minimises: each layer's error, on other texts, where it alone is halved in the whole model."""
    loaded = load(source)
    texts = [encode_reading(loaded.tokenizer, one) if isinstance(one, str) else one.tolist() for one in held]
    layers = {n: m for n, m in linear_layers(loaded.model).items() if m is not loaded.model.get_output_embeddings()}
    calibrated, seen = (_inputs(loaded.model, layers, part) for part in (ids, [torch.tensor([one]) for one in texts]))
    cut = cut_of(weights(), shape_of(loaded.model.config.to_dict()))
    gaps = []
    for name, layer in layers.items():
        weight, errors = matrix(layer), []
        for rank in ("wanda", "magnitude"):
            norms = calibrated[name].diagonal().div(calibrated["tokens"]).sqrt().float() if rank == "wanda" else None
            gone = (weight * dropped(scores_of(weight, norms, rank), cut, rank)).double()
            errors.append(float(((gone @ seen[name]) * gone).sum()))
        gaps.append(math.log(errors[0] / errors[1]))
    found = mean_interval(gaps)
    assert found.low is not None
    assert found.high is not None
    case = f"half of a layer's weights zero, squared error of what it gives, {title}: Wanda's over magnitude's"
    interval = (round(math.exp(found.low), 3), round(math.exp(found.high), 3))
    return Row(case, round(math.exp(found.estimate), 3), 1.0, "x", "lower", "magnitude", len(gaps), interval)


def _inputs(model: Any, layers: dict[str, Any], ids: Pieces) -> dict[str, torch.Tensor]:
    """Of each layer the sum over tokens of x x^T, (K, K), and how many tokens that were."""
    sums = {
        name: torch.zeros(matrix(layer).shape[1], matrix(layer).shape[1]).double() for name, layer in layers.items()
    }

    def look(name: str) -> Callable[[torch.Tensor], None]:
        return lambda x: sums[name].add_((x.t() @ x).double())

    with looking({layer: look(name) for name, layer in layers.items()}):
        for batch in ids:
            model(input_ids=batch, use_cache=False, logits_to_keep=1)
    return {**sums, "tokens": torch.tensor(sum(batch.numel() for batch in ids))}


def halved(title: str, source: Path, ids: Pieces, held: list[str] | list[torch.Tensor]) -> Iterator[Row]:
    """Rows of one model: Wanda's and RIA's perplexity over magnitude's. held: texts, or their ids."""
    tokenizer = load(source).tokenizer
    encoded = [encode_reading(tokenizer, one) if isinstance(one, str) else one.tolist() for one in held]
    with tempfile.TemporaryDirectory() as folder:
        found = {"dense": perplexities(load(source), encoded)}
        for rank in ("wanda", "ria", "magnitude"):
            pruned(weights(rank=rank), ids, Path(folder) / rank, source)
            found[rank] = perplexities(load(Path(folder) / rank), encoded)
    tokens = [t for _, t in found["dense"]]
    told = {name: math.exp(sum(n for n, _ in rows) / sum(tokens)) for name, rows in found.items()}
    title += f", calibrated on {sum(batch.numel() for batch in ids):,} tokens"
    print(title, {name: round(value, 3) for name, value in told.items()}, flush=True)
    for rank, name in (("wanda", "Wanda"), ("ria", "RIA")):
        gap = compare([n for n, _ in found[rank]], [n for n, _ in found["magnitude"]], weights=tokens).difference
        assert gap.low is not None
        assert gap.high is not None
        case = (
            f"half of the weights zero, perplexity, {title} (dense {told['dense']:.2f}, magnitude "
            f"{told['magnitude']:.2f}): {name}'s {told[rank]:.2f} over magnitude's"
        )
        interval = (round(math.exp(gap.low), 4), round(math.exp(gap.high), 4))
        yield Row(case, round(math.exp(gap.estimate), 4), 1.0, "x", "lower", "magnitude", len(held), interval)


def texts_of(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


@torch.inference_mode()
def spoken(source: Path, count: int, length: int) -> torch.Tensor:
    """What a model says by itself, drawn from its own probabilities: ids (count, length)."""
    loaded = load(source)
    torch.manual_seed(0)
    begin = torch.full((count, 1), loaded.tokenizer.bos_token_id)
    more = length - 1
    said = loaded.model.generate(begin, do_sample=True, top_k=0, min_new_tokens=more, max_new_tokens=more)
    assert isinstance(said, torch.Tensor)
    return said.clone()


def perplexities(loaded: Loaded, encoded: list[list[int]]) -> list[tuple[float, int]]:
    """Nats and tokens of each text."""
    found = document_nll(loaded, encoded)
    return [(one.nll, one.tokens) for one in found]


KINDS = {"animal": ("otter", "whale", "crab", "goat", "fox"), "plant": ("kelp", "fern", "oak", "rose", "moss")}
KINDS |= {"stone": ("slate", "flint", "chalk", "basalt", "marble")}
WAYS = ("Is {} an animal, a plant or a stone?", "What kind of thing is {}?", "Sort this: {}.", "{}: which kind is it?")
WAYS += ("Name the kind of {}.", "To which kind does {} belong?", "Say what {} is.", "{} is of what kind?")


def labelled() -> list[Conversation]:
    """Every thing asked in every way: 40 items of each class."""
    found = []
    for kind, things in KINDS.items():
        for thing in things:
            for number, way in enumerate(WAYS):
                messages = (Message("user", way.format(thing)), Message("assistant", kind))
                meta = {"choices": "animal|plant|stone", "label": kind}
                found.append(Conversation(f"{thing}-{number}", messages, "", meta))
    return found


def taught(start: Path, rows: list[Conversation], out: Path, *, steps: int) -> Path:
    """The seedling after so many steps on these answers: plain AdamW, whole weights."""
    loaded = load(start)
    model, order = loaded.model.train(), random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    encoded = [encode_conversation(loaded.tokenizer, row, max_length=64) for row in rows]
    for _ in range(steps):
        loss = torch.zeros(())
        for one in order.sample(encoded, 8):
            ids = torch.tensor([one.ids])
            labels = ids.masked_fill(~torch.tensor([one.trained]), -100)
            loss = loss + model(input_ids=ids, labels=labels).loss / 8
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    save_model(model.eval(), loaded.tokenizer, out)
    return out


def guard() -> Iterator[Row]:
    """A model that knows three classes; the same with noise on it; the same that calls every stone a plant."""
    rows = labelled()
    forgetful = [
        Conversation(r.id, (r.messages[0], Message("assistant", "plant")), "", r.meta)
        if r.meta["label"] == "stone"
        else r
        for r in rows
    ]
    texts = [json.loads(line)["text"] for line in (GENERAL / "heldout.jsonl").read_text(encoding="utf-8").splitlines()]
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        good = taught(SEEDLING, rows, home / "good", steps=60)
        taught(good, forgetful, home / "lost a class", steps=40)
        destroyed = load(good)
        with torch.no_grad():
            for parameter in destroyed.model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.5)
        save_model(destroyed.model, destroyed.tokenizer, home / "destroyed")
        pruned(heads(fraction=0.0), None, home / "unchanged", good)
        (home / "labels").mkdir()
        write_jsonl(home / "labels/dev.jsonl", map(conversation_row, rows))
        (home / "general").mkdir()
        write_jsonl(home / "general/heldout.jsonl", ({"id": f"g{i}", "text": t} for i, t in enumerate(texts)))
        for case, passes in (("destroyed", False), ("lost a class", False), ("unchanged", True)):
            kept, failed = judged(home, case)
            verdict = float(kept is passes)
            yield Row(
                f"the guard before a model that is {case}: {'kept' if kept else 'rejected'}"
                + (f" for {', '.join(failed)}" if failed else ""),
                verdict,
                1.0,
                "right verdicts",
                "higher",
                n=1,
            )


def judged(home: Path, case: str) -> tuple[bool, list[str]]:
    """Whether the guard keeps a model, and what does not hold."""
    stage = Keep.model_validate(
        {"before": "good", "models": [case], "conditions": {"classes": "labels", "general": "general"}}
    )
    names = ("good", case, "labels", "general")
    sources = {name: Source(name, (home / name,), name, name) for name in names}
    folders = [home / f"{case}-step" / part for part in ("files", "measured", "scratch")]
    for folder in folders:
        folder.mkdir(parents=True)
    stage.check(sources)
    stage.run(Context("guard", *folders, Events("guard"), sources))
    about = json.loads((folders[0] / "about.json").read_text(encoding="utf-8"))
    failed = [c["name"] for c in about["tries"][0]["conditions"] if not c["holds"]]
    return about["kept"] is not None, failed


PARTS: dict[str, Callable[[], Iterator[Row]]] = {
    "nothing": nothing,
    "sizes": sizes,
    "speed": speed,
    "wanda": wanda,
    "guard": guard,
}

if __name__ == "__main__":
    main()
