"""The stages that train: what a recipe may ask of `pretrain` and `tune`. Imports nothing heavy until one runs.

Both run the one loop in `metier.train.loop`; they differ in what is read and which tokens are trained on.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from metier.core.errors import DataError, MissingExtra, ModelError, RecipeError
from metier.core.machine import Estimate, Machine
from metier.core.stage import Config, Context, FilePattern, ModelRef, Needs, Runtime, Source, Stage
from metier.models.builtin import plain_config
from metier.models.extension import read_extension
from metier.text.corpus import STREAM
from metier.text.prompts import PromptName, read_template
from metier.train.estimate import check_memory, of_stage
from metier.train.known import anatomy_of, cache_of, check_teacher, context_of, has_rows
from metier.train.methods import LoraMethod, Method, Quantize, check, default_rate, frozen_below, trains_new_rows

if TYPE_CHECKING:
    from metier.text.chat import Tokenizer
    from metier.train.batches import Batches
    from metier.train.forgetting import Objective
    from metier.train.forward import Forward
    from metier.train.material import Material

LONGEST_BY_DEFAULT = 1024
PREPARED_FROM = 6 << 20
"""Bytes of data from which on it pays to encode it before several processes begin."""


class Training(Stage):
    """What both have in common: where to start, what to train, for how long and how fast."""

    produces: ClassVar[str] = "model"
    version: ClassVar[int] = 2
    several: ClassVar[bool] = True
    data_field: ClassVar[str]
    dev_split: ClassVar[str]
    length_field: ClassVar[str]

    model: ModelRef
    """The model to start from: a step, a built-in name, a folder or a hub id. An adapter is merged in memory first."""
    method: Method = "full"
    """Which parameters train: full, {freeze: {blocks: N}}, {lora: {r: N, alpha: N}}, or rows: those of the tokens that
    `extend_tokenizer` added and nothing else, for the few hundred steps before all else trains."""
    quantize: Quantize | None = None
    """Hold the frozen base below a LoRA in fewer bits. int8: products run in int8, faster than bf16 on CPUs with VNNI,
    but not on CPUs with AMX or GPUs like the H100 (`metier doctor` measures it). 8bit, 4bit: bitsandbytes' LLM.int8 and
    NF4, which take less memory and more time. The adapter belongs to the unquantised base, and is merged there."""
    epochs: int = Field(1, ge=1)
    """How often everything is read."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after that many optimizer steps, even amid an epoch."""
    optimizer: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    """adamw8bit: AdamW whose moments take two bytes a parameter instead of eight (bitsandbytes, CPU and CUDA).
    muon: torch's Muon for the matrices inside the blocks, AdamW for the rest; for whole weights, not for LoRA."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate. Left out: 2e-5 for full and freeze, 2e-4 for LoRA, 1e-3 for rows."""
    batch_size: int = Field(8, ge=1)
    """Blocks (pretrain) or examples (tune) that go through the model at once: more is faster and takes more memory."""
    accumulation: int = Field(1, ge=1)
    """How many such batches make one optimizer step."""
    micro_batch: Literal["auto"] | Annotated[int, Field(ge=16)] | None = None
    """Cut each optimizer step's batch_size x accumulation blocks into pieces of at most that many tokens instead, as
    memory allows; a longer block goes alone. auto: as many as fit. The gradient is the same however it is cut."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """How the learning rate falls after the warm-up. wsd: not before the last `decay` share of the steps, then in a
    straight line (arXiv 2404.06395)."""
    warmup: float = Field(0.01, ge=0, lt=1)
    """The share of the steps over which the learning rate rises."""
    decay: float | None = Field(None, gt=0, le=1)
    """The share of the steps over which it falls, with `schedule: wsd`. Left out: 0.1."""
    min_learning_rate: float = Field(0.1, ge=0, le=1)
    """Where the learning rate ends, as a share of its peak."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay, on matrices only."""
    clip: float | None = Field(1.0, gt=0)
    """The largest gradient norm; null: no clipping."""
    neftune: float | None = Field(None, gt=0)
    """Add noise to the embeddings while training, of this alpha (arXiv 2310.05914); 5 is usual."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """The share of each target's probability that is spread over the whole vocabulary. The dev loss is without."""
    teacher: ModelRef | None = None
    """Distil: learn besides from how likely this model finds each token where a target is. It must have the same
    vocabulary, like the model that a pruned one was made of."""
    teacher_weight: float = Field(0.5, gt=0, le=1)
    """The share of the loss that is the divergence from the teacher; the rest is the usual. The dev loss is without."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """The type of matrix products. auto: bf16 where the hardware has it, fp16 on older GPUs, else and for narrow models
    fp32. Frozen weights are held in that type, trained ones in float32."""
    gradient_checkpointing: bool = False
    """Compute each block again in the backward pass instead of keeping what is inside it: less memory, more time."""
    prefix_cache: Annotated[Literal["auto", "memory", "disk", "off"], Runtime()] = "auto"
    """With freeze: where the output of the frozen lower blocks is kept for later epochs. auto: where there is room."""
    shard: Annotated[bool, Runtime()] = False
    """Several processes hold weights, gradients and moments between them (FSDP2) instead of each all of them: for full
    training of what one cannot hold. More is sent between them. For `method: full` with `optimizer: adamw`."""
    seed: int = Field(0, ge=0)
    """Decides the order of the data, the replay drawn, an adapter's start and dropout."""
    dev_every: int | None = Field(None, ge=1)
    """Measure the dev loss every so many steps. Left out: after each epoch."""
    keep_best: bool = False
    """Save the weights of the lowest dev loss rather than the last."""
    patience: int | None = Field(None, ge=1)
    """Stop when that many dev losses in a row were no new lowest, and save the weights of the lowest."""
    log_every: Annotated[int, Runtime()] = Field(10, ge=1)
    """Report progress every so many steps; the log in the artifact has every step."""

    @model_validator(mode="after")
    def _settings_agree(self) -> "Training":
        lora = self.method.lora if isinstance(self.method, LoraMethod) else None
        if self.shard and (self.method != "full" or self.optimizer != "adamw" or self.teacher is not None):
            raise ValueError("shard is for `method: full` with `optimizer: adamw` and no teacher: leave it out")
        if self.optimizer == "muon" and self.method == "rows":
            raise ValueError("muon makes whole matrices orthogonal, and new rows are part of one: use adamw")
        if self.optimizer == "muon" and lora is not None:
            raise ValueError("muon makes whole matrices orthogonal, LoRA's factors are thin: use `optimizer: adamw`")
        if self.quantize is not None and lora is None:
            raise ValueError(
                "a quantised base stays as it is, so full fine-tuning and freeze cannot train it: use "
                "`method: {lora: {...}}`, or leave quantize out"
            )
        if self.quantize == "int8" and lora is not None and lora.dora:
            raise ValueError("dora needs the base's norms, which `quantize: int8` does not give: use `quantize: 8bit`")
        if self.teacher is None and "teacher_weight" in self.model_fields_set:
            raise ValueError("teacher_weight has no effect without a teacher: name one, or leave it out")
        if self.decay is not None and self.schedule != "wsd":
            raise ValueError(f"decay has no effect with `schedule: {self.schedule}`: leave it out, or use wsd")
        if self.patience is not None and self.dev_every is None and self.patience >= self.epochs:
            raise ValueError(
                f"patience {self.patience} can never run out with {self.epochs} dev losses, one after each epoch: set "
                "dev_every, or a patience below epochs"
            )
        if self.prefix_cache != "auto" and self.method in ("full", "rows"):
            raise ValueError(
                f"prefix_cache keeps what frozen lower blocks compute below all that trains, and with `method: "
                f"{self.method}` none is: leave it out "
                "or use `method: {freeze: {blocks: N}}`"
            )
        if self.prefix_cache in ("memory", "disk") and self.neftune is not None:
            raise ValueError("neftune changes what the lower blocks read each time: leave it or prefix_cache out")
        if self.prefix_cache in ("memory", "disk") and self.epochs == 1:
            raise ValueError("prefix_cache is read from the second epoch on, and there is one: leave it out")
        return self

    @property
    def data(self) -> str:
        """The name of the step that is learned from."""
        return str(getattr(self, self.data_field))

    @property
    def peak_rate(self) -> float:
        """The peak learning rate, given or by method."""
        return default_rate(self.method) if self.learning_rate is None else self.learning_rate

    @property
    def keeps_best(self) -> bool:
        """Whether the weights of the lowest dev loss are saved rather than the last."""
        return self.keep_best or self.patience is not None

    def most_steps(self, length: int) -> int | None:  # noqa: ARG002
        """The optimizer steps after which to stop, at blocks of that length; None: when all is read."""
        return self.max_steps

    def length(self, context: int) -> int:
        """The longest sequence to train on, for a model of that context. Raises ModelError above it."""
        wanted: int | None = getattr(self, self.length_field)
        if wanted is None:
            return min(context, LONGEST_BY_DEFAULT)
        if wanted > context:
            raise ModelError(
                f"the model's context is {context} tokens",
                where=self.length_field,
                value=wanted,
                cure=f"set {self.length_field} to at most {context}",
            )
        return wanted

    def check(self, sources: Mapping[str, Source]) -> None:
        """Raise InputError for what the model's config.json or the data's splits already show to be wrong."""
        self.check_machine()
        for folder in sources[self.model].paths:
            self.check_model(folder)
            for teacher in sources[self.teacher].paths if self.teacher is not None else ():
                check_teacher(folder, teacher)
        self.check_dev(sources)
        check_memory(self, sources)

    def preparation(self, ctx: Context) -> Callable[[], None] | None:
        """Encoding what is read, where that is much."""
        read = (path for source in ctx.sources.values() for folder in source.paths for path in folder.glob("*.jsonl"))
        return self._encode(ctx) if sum(path.stat().st_size for path in read) >= PREPARED_FROM else None

    def _encode(self, ctx: Context) -> Callable[[], None]:
        def encode() -> None:
            from metier.models.load import read_tokenizer

            folder = ctx.source(self.model).path
            self.material(read_tokenizer(folder), self.length(context_of(plain_config(folder))), ctx)

        return encode

    def check_processes(self, count: int) -> None:
        """Raise RecipeError where the blocks of an optimizer step cannot be dealt out evenly."""
        blocks = self.batch_size * self.accumulation
        if blocks % count == 0:
            return
        fitting = ", ".join(str(n) for n in range(2, blocks + 1) if blocks % n == 0)
        run_with = f"run with {fitting} processes, or " if fitting else ""
        raise RecipeError(
            f"an optimizer step has {blocks} blocks (batch_size x accumulation), which {count} processes cannot share "
            "evenly",
            where="batch_size",
            value=self.batch_size,
            cure=f"{run_with}set batch_size or accumulation to a multiple of {count}",
        )

    def check_dev(self, sources: Mapping[str, Source]) -> None:
        """Raise DataError where a dev loss is asked for and a step that has run left nothing to measure it on."""
        source, split = self.dev_source(sources)
        for folder in source.paths:
            if not has_rows(folder / f"{split}.jsonl"):
                self.refuse_without_dev()

    def dev_source(self, sources: Mapping[str, Source]) -> tuple[Source, str]:
        """The step and its split that the dev loss is measured on."""
        return sources[self.data], self.dev_split

    @property
    def beside(self) -> float:
        """The share of what is read that stands in another step than the data's."""
        return 0.0

    def batches(self, material: "Material", micro_tokens: int | None) -> "Batches":
        """What is read, in which order. micro_tokens: of a micro-step (None: batch_size blocks)."""
        from metier.train.batches import Batches

        return Batches(
            material.pieces,
            material.replay,
            material.replay_share,
            material.block_size,
            self.batch_size,
            self.accumulation,
            self.seed,
            micro_tokens,
            material.domains,
            material.refusals,
            material.refusal_share,
        )

    def objective(
        self,
        forward: "Forward",  # noqa: ARG002
        material: "Material",  # noqa: ARG002
        micro_tokens: int,  # noqa: ARG002
        check_stop: Callable[[], None],  # noqa: ARG002
    ) -> "Objective | None":
        """What is minimised, where that is not the mean loss. forward: of the model as it is before training."""
        return None

    @property
    def most_loss(self) -> float | None:
        """How many times what it was at the start the dev loss may be before training stops."""
        return None

    def estimate(self, sources: Mapping[str, Source], machine: Machine) -> Estimate | None:
        """Memory, disk and time, for architectures that are known; see `metier.train.estimate`."""
        return of_stage(self, sources, machine)

    def check_machine(self) -> None:
        """Raise InputError where a package is missing or the hardware cannot do what is asked."""
        asked = f"quantize: {self.quantize}" if self.quantize in ("8bit", "4bit") else ""
        asked = asked or ("optimizer: adamw8bit" if self.optimizer == "adamw8bit" else "")
        if asked and find_spec("bitsandbytes") is None:
            raise MissingExtra("bitsandbytes", "quant", needed_by=asked)
        if self.precision == "fp16":  # only this asks torch whether there is a GPU
            from metier.train.precision import best_device, choose

            choose("fp16", width=0, device=best_device())

    def check_model(self, folder: Path) -> None:
        """Raise ModelError where a setting does not fit the model in `folder`. Reads no weights."""
        config = plain_config(folder)
        if config.get("quantization_config") is not None:
            raise ModelError(
                "the model is quantised already, and can be neither trained nor quantised again",
                where="quantize" if self.quantize else "model",
                value=config["quantization_config"].get("quant_method"),
                cure="use the model it was quantised from",
            )
        self.length(context_of(config))
        anatomy = anatomy_of(folder, config)
        extension = read_extension(folder) if trains_new_rows(self.method) else None
        check(self.method, anatomy, quantize=self.quantize, where="method", extension=extension)
        if self.prefix_cache in ("memory", "disk") and frozen_below(self.method, anatomy) == 0:
            raise ModelError(
                "no block lies below everything that trains, so there is nothing to keep",
                where="prefix_cache",
                value=self.prefix_cache,
                cure="leave it out, or train fewer of the last blocks (a tied head trains the embeddings: head: false)",
            )

    def refuse_without_dev(self) -> None:
        """Raise DataError if something was asked for that only a dev loss can tell."""
        asked = ["dev_every"] if self.dev_every is not None else []
        asked += ["keep_best"] if self.keep_best else []
        asked += ["patience"] if self.patience is not None else []
        if asked:
            raise DataError(
                f"there is nothing to measure a dev loss on: step {self.data!r} has no {self.dev_split} split",
                where=asked[0],
                value=getattr(self, asked[0]),
                cure=f"give step {self.data!r} a {self.dev_split} split, or leave {asked[0]} out",
            )

    @abstractmethod
    def material(self, tokenizer: "Tokenizer", length: int, ctx: Context) -> "Material":
        """The encoded data. Raises DataError where nothing is left to learn from."""

    def stop(self, tokenizer: "Tokenizer") -> frozenset[int]:  # noqa: ARG002
        """The ids, beside the end token, that what is trained here ends a text with."""
        return frozenset()

    def run(self, ctx: Context) -> Mapping[str, float]:
        """Encode, train, save. Metrics: loss, dev_loss, steps, tokens and numbers of parameters."""
        from metier.train.job import train

        return train(self, ctx)


class Pretrain(Training):
    """Go on pre-training: predict every token of the documents, packed into blocks of whole documents."""

    data_field: ClassVar[str] = "documents"
    dev_split: ClassVar[str] = "heldout"
    length_field: ClassVar[str] = "block_size"

    kind: Literal["pretrain"] = "pretrain"
    """What this step does."""
    documents: Annotated[str, Needs("documents", "stream")]
    """The step whose documents to read, or a `stream` step; its held-out ones give the dev loss."""
    tokens: int | None = Field(None, ge=1)
    """Stop after about so many tokens: as many steps of batch_size x accumulation x block_size as that takes. With
    a `stream` step this or max_steps has to be given, as nobody knows its end."""
    block_size: int | None = Field(None, ge=16)
    """Tokens a block; longer documents go on in the next. Left out: the model's context, at most 1024."""
    packing: Literal["documents", "stream"] = "documents"
    """documents: blocks are filled with whole documents, as well as they fit, none of which sees another. stream: the
    documents follow one another as one text that is cut every block_size tokens, across documents, as many scripts do
    it; a token then sees what happens to stand before its document."""

    @model_validator(mode="after")
    def _one_length(self) -> "Pretrain":
        if self.tokens is not None and self.max_steps is not None:
            raise ValueError("tokens and max_steps both say where to stop: give one of them")
        return self

    def most_steps(self, length: int) -> int | None:
        """As `tokens` or `max_steps` says."""
        if self.tokens is None:
            return self.max_steps
        return -(-self.tokens // (self.batch_size * self.accumulation * length))

    def check(self, sources: Mapping[str, Source]) -> None:
        """As every training step; and a stream needs a length, in steps or tokens."""
        if sources[self.documents].produces == STREAM:
            if self.tokens is None and self.max_steps is None:
                raise RecipeError(
                    f"{self.documents!r} is a stream, whose end nobody knows, so it has to be said how long to train",
                    where="tokens",
                    cure="set tokens, such as 2000000000, or max_steps",
                )
            if self.epochs != 1:
                raise RecipeError(
                    f"{self.documents!r} is a stream, and how much an epoch of it is, is not known beforehand",
                    where="epochs",
                    value=self.epochs,
                    cure="leave epochs out: set tokens or max_steps, and a stream that ends before begins again",
                )
        super().check(sources)

    def material(self, tokenizer: "Tokenizer", length: int, ctx: Context) -> "Material":
        """The documents, split at the block size."""
        from metier.train.material import documents, of_corpus

        source = ctx.source(self.documents)
        if source.produces == STREAM:
            return of_corpus(
                source.path,
                source.made_from,
                tokenizer,
                block_size=length,
                whole=self.packing == "documents",
                seed=self.seed,
                events=ctx.events,
                check_stop=ctx.check_stop,
                cache=cache_of(ctx),
            )
        return documents(
            ctx.source(self.documents).path,
            tokenizer,
            block_size=length,
            events=ctx.events,
            check_stop=ctx.check_stop,
            cache=cache_of(ctx),
            stream=self.packing == "stream",
        )


class PromptFile(Config):
    """A prompt template of the user's own."""

    file: FilePattern
    """A Jinja chat template, rendered in a sandbox: it sees `messages`, `bos_token`, `eos_token` and
    `add_generation_prompt`."""


class Prompted(Training):
    """What stages that learn from conversations have in common: how these are written down."""

    length_field: ClassVar[str] = "max_length"

    max_length: int | None = Field(None, ge=16)
    """Longer conversations are cut there, counted and shown. Left out: the model's context, at most 1024."""
    prompt: PromptName | PromptFile = "auto"
    """How a conversation is written down, saved with the model: its own chat template (model), plain, zephyr, alpaca,
    patient-scenario, or {file: PATH}. auto: the model's own, else plain."""
    max_masked: float = Field(0.05, ge=0, le=1)
    """Stop where more than this share of the examples is cut or has no token to train on."""

    def check(self, sources: Mapping[str, Source]) -> None:
        """As every training step, and a template of the user's own is tried."""
        super().check(sources)
        self._template(sources)

    def dress(self, tokenizer: "Tokenizer", sources: Mapping[str, Source]) -> None:
        """Put the template on the tokenizer that is trained with, asked with and saved."""
        from metier.text.prompts import use_template

        if isinstance(self.prompt, PromptFile):
            use_template(tokenizer, self.prompt.file, self._template(sources))
        else:
            use_template(tokenizer, self.prompt)

    def _template(self, sources: Mapping[str, Source]) -> str | None:
        """The source of a template of the user's own. Raises DataError where it cannot be used."""
        if not isinstance(self.prompt, PromptFile):
            return None
        paths = sources[self.prompt.file].paths
        if len(paths) != 1:
            what = f"a prompt template is one file, and this names {len(paths)}"
            raise DataError(what, where="prompt.file", value=self.prompt.file, cure="name one .jinja file")
        return read_template(paths[0])

    def stop(self, tokenizer: "Tokenizer") -> frozenset[int]:
        """What the chat template ends a turn with."""
        from metier.text.chat import stop_ids

        return stop_ids(tokenizer)


class Tune(Prompted):
    """Teach the model to answer: loss on the assistant's tokens only, the one that ends its turn included."""

    version: ClassVar[int] = 4

    data_field: ClassVar[str] = "examples"
    dev_split: ClassVar[str] = "dev"

    kind: Literal["tune"] = "tune"
    """What this step does."""
    examples: Annotated[str, Needs("examples")]
    """The step whose conversations to learn from."""
    prompt_loss_weight: float = Field(0.0, ge=0, le=1)
    """How much the loss of a token that is not the assistant's counts beside one that is."""

    def material(self, tokenizer: "Tokenizer", length: int, ctx: Context) -> "Material":
        """The conversations through the chat template."""
        from metier.train.material import examples

        self.dress(tokenizer, ctx.sources)
        return examples(
            ctx.source(self.examples).path,
            tokenizer,
            max_length=length,
            max_masked=self.max_masked,
            prompt_weight=self.prompt_loss_weight,
            events=ctx.events,
            check_stop=ctx.check_stop,
            cache=cache_of(ctx),
        )
