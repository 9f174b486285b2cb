"""What a recipe may ask of vocabularies: the stages `extend_tokenizer` and `train_tokenizer`. Imports nothing heavy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from metier.core.errors import ModelError
from metier.core.machine import Estimate, Machine
from metier.core.stage import Config, Context, FilePattern, ModelRef, Needs, Source, Stage
from metier.models.builtin import CONFIG, base_link, check_folder, follow, is_adapter, read_json, weight_files
from metier.tokenizer.kinds import kind_of
from metier.tokenizer.sizes import check_size

TOKENIZER = "tokenizer.json"


class ExtendTokenizer(Stage):
    """Give a model's tokenizer the words of a domain, where that pays, and the model rows for them."""

    produces: ClassVar[str] = "model"
    version: ClassVar[int] = 2

    kind: Literal["extend_tokenizer"] = "extend_tokenizer"
    """What this step does."""
    model: ModelRef
    """The model whose tokenizer to extend. An adapter is merged first."""
    documents: Annotated[str, Needs("documents")]
    """The step whose texts to take new pieces from; fertility is measured on its held-out ones, if any."""
    general: Annotated[str, Needs("documents")] | None = None
    """A step with general texts, which new pieces are to leave as they are. Left out: the replay texts of `documents`,
    if any."""
    max_new_tokens: int = Field(2000, ge=1, le=100_000)
    """The most new tokens to add. Each costs a row of the embeddings, and one of an output head that is not tied."""
    extend: Literal["auto", "always"] = "auto"
    """auto: only where it saves at least `min_saving` of the domain's tokens; else the model is passed through, with
    the reason."""
    min_saving: float | None = Field(None, ge=0, lt=1)
    """The share of the domain's tokens that `extend: auto` wants saved. Left out: 0.05."""
    min_count: int = Field(10, ge=1)
    """A piece that occurs less often in the domain's texts is not added: its row would hardly be trained."""
    max_general: float = Field(0.004, ge=0, le=1)
    """The largest share of general text's tokens that all new pieces together may save there: what they save, the model
    has to learn anew."""
    words: list[Annotated[str, Field(min_length=2)]] = Field(default_factory=list)
    """Words to add in any case, before those that are found."""
    style: Literal["merges", "added"] = "merges"
    """merges: pieces that the tokenizer makes by itself inside running text. added: whole words, found before a text is
    cut; the space before one stays a token of its own. Words with anything but letters are always added so."""
    initialise: Literal["mean", "weighted", "description", "random"] = "mean"
    """What a new row is made of: the mean of the rows of its old pieces; the same weighted by their letters; the mean
    over what `descriptions` says of the word; or drawn at random, the baseline."""
    descriptions: FilePattern | None = None
    """A JSON Lines file with {"word": ..., "text": ...} for `initialise: description`. Others get the mean of their
    pieces."""
    match_norms: bool = True
    """Give each new row the mean length of those that it is made of."""
    pad_to_multiple: int | None = Field(None, ge=2, le=4096)
    """Fill the embeddings up to a multiple of it. The rows that stand for no token are 0 and are never chosen."""
    spare_rows: Literal["refuse", "use"] = "refuse"
    """What to do with a model that has more rows than its tokenizer has ids: use gives the spare ones to new tokens."""
    seed: int = Field(0, ge=0)
    """Of random rows."""

    @model_validator(mode="after")
    def _settings_agree(self) -> "ExtendTokenizer":
        if (self.initialise == "description") != (self.descriptions is not None):
            raise ValueError("`initialise: description` and `descriptions` need one another: give both, or neither")
        if self.min_saving is not None and self.extend == "always":
            raise ValueError("min_saving has no effect with `extend: always`: leave one of them out")
        if self.general == self.documents:
            raise ValueError("`general` is the text that is to stay as it is: name another step than `documents`")
        if len(set(self.words)) < len(self.words):
            raise ValueError("a word stands in `words` twice")
        if self.seed and self.initialise != "random":
            raise ValueError("seed is of random rows alone: leave it out, or use `initialise: random`")
        return self

    @property
    def wanted_saving(self) -> float:
        """The share of tokens that has to be saved."""
        if self.extend == "always":
            return 0.0
        return 0.05 if self.min_saving is None else self.min_saving

    def check(self, sources: Mapping[str, Source]) -> None:
        """Raise InputError for a model that cannot be extended, a corpus too small, or bad descriptions."""
        for folder in sources[self.model].paths:
            check_model(folder, spare_rows=self.spare_rows, words=self.words)
        for folder in sources[self.documents].paths:
            check_size(folder, self.documents)
        if self.descriptions is not None:
            from metier.tokenizer.descriptions import read_descriptions

            read_descriptions(sources[self.descriptions].paths)

    def estimate(self, sources: Mapping[str, Source], machine: Machine) -> Estimate | None:  # noqa: ARG002
        """The model's weights twice in memory and once on disk; the time goes with the texts."""
        folders = sources[self.model].paths
        if not folders:
            return None
        size = sum((folder / name).stat().st_size for folder in map(_plain, folders) for name in weight_files(folder))
        text = sum(p.stat().st_size for folder in sources[self.documents].paths for p in folder.glob("*.jsonl"))
        memory = {"base": 480e6, "weights": float(size), "the mapped file": float(size), "words": 0.4 * text}
        return Estimate(memory, {"model": float(size)}, 6.0 + size / 5e8 + text / 3e6, not text)

    def run(self, ctx: Context) -> Mapping[str, float]:
        """Mine, extend, give rows, measure, write. Metrics: new tokens, and the share of tokens saved."""
        from metier.tokenizer.extending import extend

        return extend(self, ctx)


class NewModel(Config):
    """The sizes of a model that is made from nothing: built like Llama, with random weights."""

    hidden_size: int = Field(256, ge=16)
    """Numbers a token is held in; a multiple of heads."""
    layers: int = Field(6, ge=1)
    """Decoder blocks."""
    heads: int = Field(4, ge=1)
    """Attention heads; a multiple of key_heads."""
    key_heads: int | None = Field(None, ge=1)
    """Heads of keys and values. Left out: as many as heads."""
    inner_size: int | None = Field(None, ge=16)
    """Numbers inside the MLP. Left out: 8/3 of hidden_size, up to a multiple of 64."""
    context: int = Field(1024, ge=16)
    """The longest sequence, in tokens."""
    tied: bool = True
    """Whether the output head is the input embeddings. false takes vocabulary x hidden_size more."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> "NewModel":
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of 2 x heads ({2 * self.heads})")
        if self.key_heads is not None and self.heads % self.key_heads:
            raise ValueError(f"heads {self.heads} is no multiple of key_heads {self.key_heads}")
        return self


class TrainTokenizer(Stage):
    """Train a tokenizer on texts from nothing, and make a model with random weights for it, to be pre-trained."""

    produces: ClassVar[str] = "model"

    kind: Literal["train_tokenizer"] = "train_tokenizer"
    """What this step does."""
    documents: Annotated[str, Needs("documents")]
    """The step whose texts to learn pieces from; its replay texts count too, in their share."""
    vocabulary: int = Field(8000, ge=300, le=500_000)
    """Tokens in all, special ones included."""
    style: Literal["byte-level", "sentencepiece"] = "byte-level"
    """byte-level: BPE over bytes, as GPT-2, Llama 3 and the seedling have it. sentencepiece: BPE over characters with
    bytes for what is rare, as Llama 2 has it; leaves a tokenizer.model too."""
    split_digits: bool = True
    """Whether each digit is a token of its own."""
    min_count: int = Field(2, ge=1)
    """A pair that occurs less often makes no piece (byte-level only; sentencepiece fills its vocabulary)."""
    shape: NewModel = NewModel()
    """The model's sizes."""
    seed: int = Field(0, ge=0)
    """Of the random weights."""

    @model_validator(mode="after")
    def _settings_agree(self) -> "TrainTokenizer":
        if self.style == "sentencepiece" and self.min_count != 2:
            raise ValueError("min_count has no effect with `style: sentencepiece`: leave it out")
        if self.style == "sentencepiece" and self.vocabulary < 400:
            raise ValueError("sentencepiece takes 256 bytes and a letter each: give a vocabulary of 400 or more")
        return self

    def check(self, sources: Mapping[str, Source]) -> None:
        """Raise DataError where there is too little text."""
        for folder in sources[self.documents].paths:
            check_size(folder, self.documents)

    def estimate(self, sources: Mapping[str, Source], machine: Machine) -> Estimate | None:  # noqa: ARG002
        """The model's weights, and the texts' words."""
        size = 4.0 * self.parameters
        text = sum(p.stat().st_size for folder in sources[self.documents].paths for p in folder.glob("*.jsonl"))
        memory = {"base": 480e6, "weights": size, "words": 2.0 * text}
        return Estimate(memory, {"model": size}, 6.0 + size / 5e8 + text / 1e6, not text)

    @property
    def parameters(self) -> int:
        """How many the model has, tied ones once."""
        made = self.shape
        key_width = made.hidden_size // made.heads * (made.key_heads or made.heads)
        attention = 2 * made.hidden_size * (made.hidden_size + key_width)
        block = attention + 3 * made.hidden_size * inner_size(made) + 2 * made.hidden_size
        matrices = 1 if made.tied else 2
        return matrices * self.vocabulary * made.hidden_size + made.layers * block + made.hidden_size

    def run(self, ctx: Context) -> Mapping[str, float]:
        """Train, draw weights, measure fertility, write. Metrics: tokens a word, and parameters."""
        from metier.tokenizer.fresh import make

        return make(self, ctx)


def inner_size(shape: NewModel) -> int:
    """The MLP's inner size, given or Llama's rule."""
    return shape.inner_size or -(-8 * shape.hidden_size // 3 // 64) * 64


def check_model(folder: Path, *, spare_rows: str, words: list[str]) -> None:
    """Raise ModelError for a model in `folder` whose vocabulary cannot be extended. Reads JSON alone."""
    check_folder(folder)
    plain = _plain(folder)
    config = read_json(plain / CONFIG)
    method = config.get("quantization_config")
    if method is not None:
        raise ModelError(
            "the model is quantised, and its rows cannot be added to",
            where=str(plain / CONFIG),
            value=method.get("quant_method") if isinstance(method, dict) else method,
            cure="extend the model that it was quantised from, then quantise",
        )
    path = next((f / TOKENIZER for f in (folder, plain) if (f / TOKENIZER).is_file()), None)
    if path is None:
        return  # a tokenizer.model alone: looked at when it is loaded
    parsed = read_json(path)
    kind = kind_of(parsed, where=str(path))
    vocabulary = parsed["model"]["vocab"]
    known = set(vocabulary) | {token["content"] for token in parsed["added_tokens"]}
    for word in words:
        if word in known or kind.written(f" {word}") in known:
            raise ModelError(
                "the tokenizer has this word as one token already",
                where="words",
                value=word,
                cure="leave it out of `words`",
            )
    ids = max(max(vocabulary.values()), max((token["id"] for token in parsed["added_tokens"]), default=0)) + 1
    check_rows(int(config.get("vocab_size", ids)), ids, spare_rows=spare_rows, where=str(plain / CONFIG))


def check_rows(rows: int, ids: int, *, spare_rows: str, where: str) -> None:
    """Raise ModelError for a model with rows that stand for no token, unless they may be used."""
    if rows > ids and spare_rows == "refuse":
        raise ModelError(
            f"the model has {rows:,} rows of embeddings and its tokenizer only {ids:,} ids: {rows - ids:,} rows stand "
            "for no token",
            where=where,
            value=f"vocab_size {rows}",
            cure="set spare_rows: use, if nothing else is kept there (such as tokens added while running)",
        )


def _plain(folder: Path) -> Path:
    """The folder of the model that an adapter stands on, or the folder itself."""
    while is_adapter(folder):
        folder = follow(base_link(folder), folder)
    return folder
