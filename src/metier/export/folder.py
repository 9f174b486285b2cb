"""Export a model: a folder that other people's machines can use, proved to be the model that was tested.

    config.json  model.safetensors  generation_config.json  tokenizer.json  chat_template.jinja     for transformers
    README.md                   the model card
    parity.json  about.json     the gate's numbers; what was made
    gguf/model-<type>.gguf      for llama.cpp and Ollama, with gguf/Modelfile
    int8/  nf4/                 for transformers with bitsandbytes

An adapter is merged in float32 first. Merged and written, the model is compared with the source, every other form with
what was written (see `parity`); where one is past its tolerance, MetierError is raised and the caller publishes
nothing. Costs the model in float32 twice, and for each form writing it and a few short answers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch

from metier.core.events import Events
from metier.export import parity, quantized
from metier.export.card import CARD, Facts, Shape, card, sizes
from metier.export.chat_template import parts_of, publish_template
from metier.export.gguf import llamacpp
from metier.export.gguf.read import File, read_model, read_vocabulary
from metier.export.gguf.tokens import Tokens
from metier.export.gguf.write import GGUF_TYPES, check_gguf, write_gguf
from metier.export.history import History
from metier.export.ollama import modelfile
from metier.export.parity import Probe, Row, Seen, compare, gate, make_probe, render, see
from metier.models.adapter import merge
from metier.models.builtin import base_link, check_folder, follow, is_adapter
from metier.models.load import Loaded, load, read_config, stored_dtype
from metier.models.save import save_model
from metier.models.shape import cast_, count_parameters
from metier.text.artifacts import write_json
from metier.text.chat import stop_ids
from metier.text.prompts import INPUT_MARK

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

Dtype = Literal["base", "float32", "bfloat16", "float16"]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
GGUF = "gguf"


@dataclass(frozen=True)
class Wanted:
    """What to export. dtype: of the safetensors. gguf: types, K-quants among them. bits: int8, nf4."""

    dtype: Dtype = "base"
    gguf: tuple[str, ...] = ()
    bits: tuple[quantized.Bits, ...] = ()


@dataclass(frozen=True)
class Exported:
    """What was made. rows: of the forms that are the same everywhere; in_llamacpp: of what llama.cpp computed here."""

    rows: tuple[Row, ...]
    in_llamacpp: tuple[Row, ...]
    parameters: int
    bytes: int


def check_export(source: Path, wanted: Wanted) -> None:
    """Raise InputError for what cannot be exported that way. Loads no weights."""
    check_folder(source)
    base = source
    while is_adapter(base):
        base = follow(base_link(base), base)
        check_folder(base)
    config = read_config(base)
    if wanted.gguf:
        check_gguf(base, tuple(kind for kind in wanted.gguf if kind in GGUF_TYPES))
    if any(kind in llamacpp.K_QUANTS for kind in wanted.gguf):
        llamacpp.check_quantiser()
    quantized.check_quantiser(config, wanted.bits, str(source))


def export_model(
    source: Path,
    out: Path,
    wanted: Wanted,
    facts: Facts,
    known: History,
    *,
    scratch: Path,
    events: Events | None = None,
    check_stop: Callable[[], None] = lambda: None,
) -> Exported:
    """Write the model of `source` (an adapter, or a whole model) to `out` in every wanted form, and compare each.

    known: where the model comes from, for the card. scratch: for files that are only needed on the way. check_stop:
    called between the slow parts; may raise. Raises InputError for what a format cannot hold, MetierError where a form
    is not the model any more; what lies in `out` then is not to be used.
    """
    check_export(source, wanted)
    work = _Work(source, out, wanted, scratch, events or Events("export"), check_stop)
    work.plain()
    for kind in wanted.gguf:
        work.gguf(kind)
    for bits in wanted.bits:
        work.bits(bits)
    gate([*work.rows, *work.in_llamacpp], str(source))
    refused = work.modelfile(facts)
    made: dict[str, str] = {
        "config.json": "the architecture",
        "model.safetensors": f"the weights, {work.dtype}",
        "tokenizer.json": "the tokenizer",
        "chat_template.jinja": "how a chat is written",
        "generation_config.json": "where an answer ends",
        **{f"{GGUF}/{name(kind)}": f"one file for llama.cpp, {kind}" for kind in wanted.gguf},
        f"{GGUF}/Modelfile": "for Ollama",
        **{kind: f"for transformers with bitsandbytes, {kind}" for kind in wanted.bits},
    }
    for path in out.rglob("*.safetensors"):
        path.chmod(0o644)  # written for one user alone
    files = sizes(out, made)
    shape = Shape(work.kind, work.parameters, work.dtype, work.context, work.chat, files, refused)
    (out / CARD).write_text(card(facts, shape, known, work.rows), encoding="utf-8")
    write_json(out / "parity.json", {"forms": [row.json() for row in work.rows]})
    total = sum(size for _, size in files.values())
    write_json(
        out / "about.json",
        {
            "method": "export",
            "base": base_link(source) if is_adapter(source) else None,
            "dtype": work.dtype,
            "parameters": {"trained": 0, "total": work.parameters},
            "files": {file: size for file, (_, size) in files.items()},
            "forms": [row.json() for row in work.rows],
        },
    )
    return Exported(tuple(work.rows), tuple(work.in_llamacpp), work.parameters, total)


def name(kind: str) -> str:
    """What a GGUF file of a type is called."""
    return f"model-{kind}.gguf"


class _Work:
    """One export under way: the source's answers, and a row for each form."""

    def __init__(
        self,
        source: Path,
        out: Path,
        wanted: Wanted,
        scratch: Path,
        events: Events,
        check_stop: Callable[[], None],
    ) -> None:
        self.source, self.out, self.wanted, self.scratch = source, out, wanted, scratch
        self.events, self.check_stop = events, check_stop
        self.rows: list[Row] = []
        self.in_llamacpp: list[Row] = []
        loaded = load(source)
        publish_template(loaded.tokenizer, parity.CHATS)
        self.probe: Probe = make_probe(loaded)
        self.seen: Seen = see(loaded, self.probe)
        self.chat = render(loaded.tokenizer, self.probe.chats[0]) if self.probe.chats else ""
        self.context, self.kind = loaded.context, str(read_config(source).model_type)
        stored = stored_dtype(source)
        self.type = stored if wanted.dtype == "base" else _DTYPES[wanted.dtype]
        self.loaded: Loaded | None = loaded
        self.dtype = str(self.type).removeprefix("torch.")
        self.parameters = 0
        runs = 2 if llamacpp.is_installed() else 1
        self.total = 1 + loaded.is_adapter + runs * len(wanted.gguf) + len(wanted.bits)
        self.tokenizer: PreTrainedTokenizerFast = loaded.tokenizer

    def _add(self, row: Row, *, here: bool = False) -> None:
        (self.in_llamacpp if here else self.rows).append(row)
        verdict = "not the same: " + "; ".join(row.problems) if row.problems else "the same model"
        self.events.note(
            f"{row.form}: {verdict}; logits differ by at most {row.difference:.1e} of {row.largest:.1f}, the same "
            f"first choice at {row.same_top:.1%} of {row.positions} positions"
        )
        done = len(self.rows) + len(self.in_llamacpp)
        self.events.progress("compared", done, self.total, unit="forms")
        self.check_stop()

    def plain(self) -> None:
        """The folder for stock transformers."""
        loaded, self.loaded = self.loaded, None
        assert loaded is not None
        adapter = loaded.is_adapter
        model = merge(loaded)
        if adapter:
            self._add(
                compare("merged", "merged", self.seen, see(self._with(model, self.source), self.probe), self.probe)
            )
            gate(self.rows, str(self.source))  # nothing after it can be right
        self.parameters = count_parameters(model).total
        ends = stop_ids(self.tokenizer)
        if self.type != torch.float32:
            cast_(model.parameters(), self.type)
        save_model(model, self.tokenizer, self.out, stop=ends)
        del model, loaded  # so that one model at most is in memory from here on
        seen = see(load(self.out), self.probe)
        self._add(compare("reloaded", self.dtype, self.seen, seen, self.probe))
        gate(self.rows, str(self.source))
        self.seen = seen  # all else is made from these files, and is not to answer for their rounding

    def _with(self, model: "PreTrainedModel", folder: Path) -> Loaded:
        return Loaded(model, self.tokenizer, folder)

    def gguf(self, kind: str) -> None:
        """One GGUF file: written, read back by transformers, and run in llama.cpp where that is installed."""
        path = self.out / GGUF / name(kind)
        path.parent.mkdir(exist_ok=True)
        title = self.source.parent.name if self.source.name == "files" else self.source.name
        if kind in GGUF_TYPES:
            write_gguf(self.out, path, kind, name=title, check_stop=self.check_stop)
        else:
            self.scratch.mkdir(parents=True, exist_ok=True)
            whole = self.scratch / "whole.gguf"
            write_gguf(self.out, whole, "F32", name=title, check_stop=self.check_stop)
            llamacpp.quantise(whole, path, cast(llamacpp.KQuant, kind))
            whole.unlink()
        file = File(path)
        tokens = Tokens(read_vocabulary(file))
        seen = see(self._with(read_model(file), path), self.probe)
        chats = tuple(tuple(tokens.encode(text)) for text in self.probe.rendered)
        form = f"{GGUF}/{path.name}"
        self._add(compare(form, kind, self.seen, Seen(seen.logits, chats, seen.answers), self.probe))
        if llamacpp.is_installed():
            made = llamacpp.see(path, self.probe, _banned(self.tokenizer))
            self._add(compare(f"{form} in llama.cpp", kind, self.seen, made, self.probe), here=True)

    def bits(self, kind: quantized.Bits) -> None:
        """A folder in 8 or 4 bits."""
        made = quantized.write_quantized(self.out, self.out / kind, kind)
        self._add(compare(kind, kind, self.seen, see(made, self.probe), self.probe))

    def modelfile(self, facts: Facts) -> list[str]:
        """Write the Modelfile beside the GGUF files. Returns why there is none, where there is none."""
        if not self.wanted.gguf:
            return []
        if INPUT_MARK.strip() in str(self.tokenizer.chat_template):
            self.events.warning("Ollama's template writes no input of its own: of `alpaca`, only the form without one")
        parts = parts_of(self.tokenizer)
        if parts is None:
            why = "There is no Modelfile for Ollama: the chat template depends on more than the roles of the messages."
            self.events.warning(why)
            return [why]
        text = modelfile(name(self.wanted.gguf[0]), self.tokenizer, parts, context=self.context, licence=facts.licence)
        (self.out / GGUF / "Modelfile").write_text(text, encoding="utf-8")
        return []


def _banned(tokenizer: "PreTrainedTokenizerFast") -> Sequence[int]:
    """Special tokens that end nothing: Metier never generates them."""
    special = {int(i) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return sorted(special - stop_ids(tokenizer))
