"""Chat encoding: the label mask character by character, one begin token, trained ends, prompts that are prefixes."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fakes import byte_tokenizer

from metier.core.errors import DataError
from metier.text.chat import (
    encode_choices,
    encode_conversation,
    encode_document,
    encode_prompt,
    prompt_choices,
    stop_ids,
)
from metier.text.nouns import Conversation, Message
from metier.text.prompts import TEMPLATES, template_text, use_template

FOLDERS = {
    "tinyllama": "tokenizers/tinyllama",
    "gpt2": "tokenizers/gpt2",
    "llama3": "tokenizers/llama3",
    "stories": "models/stories260K",
}
OWN_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
TALK = Conversation(
    "c1",
    (
        Message("system", "Be </s> brief."),
        Message("user", "Hi <|endoftext|> there"),
        Message("assistant", "Hello, you"),
        Message("user", "More\n"),
        Message("assistant", "\nYes é 海 <|end|>!"),
    ),
)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufdd0"), max_size=40)


def _small() -> Any:
    """A byte-level BPE with a few merges and the chat tokens of the built-in model, made on the spot."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(["Question: What is the whale?\nAnswer: the whale is a mammal.\n\n"] * 9, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<|begin|>", eos_token="<|end|>")
    made.chat_template = OWN_TEMPLATE
    return made


@pytest.fixture(scope="module")
def small() -> Any:
    return _small()


@pytest.fixture(scope="module", params=["small", *[pytest.param(n, marks=pytest.mark.shared) for n in FOLDERS]])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    if request.param == "small":
        return _small()
    from transformers import AutoTokenizer

    folder = request.getfixturevalue("shared") / FOLDERS[request.param]
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


@pytest.fixture(params=["auto", *TEMPLATES])
def dressed(tokenizer: Any, request: pytest.FixtureRequest) -> Any:
    own = tokenizer.chat_template
    use_template(tokenizer, request.param)
    yield tokenizer
    tokenizer.chat_template = own


def _runs(ids: list[int], trained: list[bool]) -> list[list[int]]:
    """The trained stretches."""
    runs: list[list[int]] = []
    for before, i, now in zip([False, *trained], ids, trained, strict=False):
        if now:
            runs = runs if before else [*runs, []]
            runs[-1].append(i)
    return runs


def test_mask_character_by_character(dressed: Any) -> None:
    encoded = encode_conversation(dressed, TALK, max_length=500)
    runs = _runs(encoded.ids, encoded.trained)
    answers = [m.content for m in TALK.messages if m.role == "assistant"]
    assert [dressed.decode(run[:-1], clean_up_tokenization_spaces=False).lstrip(" ") for run in runs] == answers
    assert [run[-1] for run in runs] == [dressed.eos_token_id] * 2, "each answer's end is trained"
    unseen = dressed.decode([i for i, t in zip(encoded.ids, encoded.trained, strict=True) if not t])
    assert "Hello, you" not in unseen
    assert "Hi <|endoftext|> there" in unseen
    assert not encoded.truncated
    assert not encoded.masked


def test_one_begin_token_and_text_stays_text(dressed: Any) -> None:
    encoded = encode_conversation(dressed, TALK, max_length=500)
    assert encoded.ids[0] == dressed.bos_token_id
    ends = encoded.ids[1:].count(dressed.eos_token_id)
    turns = 5 if dressed.chat_template == OWN_TEMPLATE or "'<|' +" in dressed.chat_template else 2
    assert ends == turns, "the end tokens written inside messages are ordinary text"
    if dressed.bos_token_id != dressed.eos_token_id:
        assert encoded.ids.count(dressed.bos_token_id) == 1


def test_prompt_is_what_was_trained(dressed: Any) -> None:
    encoded = encode_conversation(dressed, TALK, max_length=500)
    for asked in (2, 4):
        prompt = encode_prompt(dressed, TALK.messages[:asked])
        assert encoded.ids[: len(prompt)] == prompt
        assert encoded.trained[len(prompt)]
        assert not encoded.trained[len(prompt) - 1]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(texts, min_size=2, max_size=4))
def test_prompt_prefix_whatever_the_text(dressed: Any, turns: list[str]) -> None:
    roles = ("user", "assistant")
    messages = tuple(Message(roles[i % 2], text) for i, text in enumerate(turns[: len(turns) // 2 * 2]))  # type: ignore[arg-type]
    encoded = encode_conversation(dressed, Conversation("c", messages), max_length=10_000)
    prompt = encode_prompt(dressed, messages[:-1])
    assert encoded.ids[: len(prompt)] == prompt
    assert len(_runs(encoded.ids, encoded.trained)) == len(messages) // 2
    last = max(i for i, t in enumerate(encoded.trained) if t)
    assert encoded.ids[last] in stop_ids(dressed)


def test_truncation_keeps_the_start(small: Any) -> None:
    whole = encode_conversation(small, TALK, max_length=500)
    cut = encode_conversation(small, TALK, max_length=12)
    assert cut.ids == whole.ids[:12]
    assert cut.truncated
    assert cut.masked
    exact = encode_conversation(small, TALK, max_length=len(whole.ids))
    assert not exact.truncated


def test_documents_stand_between_begin_and_end(tokenizer: Any) -> None:
    ids = encode_document(tokenizer, "A whale </s><|end|><|endoftext|> sings.")
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert not {tokenizer.bos_token_id, tokenizer.eos_token_id} & set(ids[1:-1])
    assert "</s><|end|><|endoftext|> sings." in tokenizer.decode(ids)


def test_boundary_that_would_merge_is_kept() -> None:
    small = _small()
    small.add_tokens(["Answer:x"])  # a token that spans the cut between prompt and response
    small.chat_template = template_text("plain").replace("'Answer: '", "'Answer:'")
    talk = Conversation("c", (Message("user", "a"), Message("assistant", "xyz")))
    encoded = encode_conversation(small, talk, max_length=99)
    prompt = encode_prompt(small, talk.messages[:1])
    assert encoded.ids[: len(prompt)] == prompt
    assert small.decode(_runs(encoded.ids, encoded.trained)[0]) == "xyz<|end|>"


def test_template_without_an_end_gets_one(small: Any) -> None:
    own, small.chat_template = (
        small.chat_template,
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}",
    )
    encoded = encode_conversation(small, TALK, max_length=500)
    prompt = encode_prompt(small, TALK.messages[:4])
    small.chat_template = own
    assert encoded.ids[: len(prompt)] == prompt
    assert [small.decode(run)[-8:] for run in _runs(encoded.ids, encoded.trained)] == ["\n<|end|>"] * 2


def test_template_that_forgets_is_refused(small: Any) -> None:
    own, small.chat_template = (
        small.chat_template,
        "{{ messages | length }}" + OWN_TEMPLATE,
    )
    with pytest.raises(DataError, match="earlier turns") as caught:
        encode_conversation(small, TALK, max_length=500)
    small.chat_template = own
    assert "conversation c1" in str(caught.value)
    assert "`prompt` to one of plain" in str(caught.value)


def test_template_that_refuses_a_role(small: Any) -> None:
    own, small.chat_template = small.chat_template, "{{ raise_exception('no system, please') }}"
    with pytest.raises(DataError, match="no system, please"):
        encode_conversation(small, TALK, max_length=500)
    small.chat_template = own


def test_template_cannot_reach_python(small: Any) -> None:
    own, small.chat_template = small.chat_template, "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(DataError, match="refuses the conversation"):
        encode_prompt(small, TALK.messages[:2])
    small.chat_template = own


def test_use_template(small: Any) -> None:
    own = small.chat_template
    assert use_template(small, "auto") == "model"
    small.chat_template = None
    bare = encode_prompt(small, TALK.messages[:2])
    assert use_template(small, "auto") == "plain"
    assert encode_prompt(small, TALK.messages[:2]) == bare
    with pytest.raises(DataError, match="zephyr"):
        use_template(small, "zefyr")
    small.chat_template = own


def test_tokenizer_without_end_token() -> None:
    tokenizer = _small()
    tokenizer.eos_token = None
    tokenizer.chat_template = template_text("plain")
    with pytest.raises(DataError, match="nothing ends") as caught:
        encode_conversation(tokenizer, TALK, max_length=500)
    assert "eos_token" in str(caught.value)


@pytest.mark.shared
def test_choices_are_split_as_the_harness_splits(shared: Path) -> None:
    """Context and continuation ids equal lm-evaluation-harness's `_encode_pair`, written out here."""
    from transformers import AutoTokenizer

    messages = (Message("user", "Does  it rain? "),)
    for folder, template in (("tinyllama", "plain"), ("tinyllama", None), ("gpt2", "plain"), ("llama3", "zephyr")):
        tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / folder)
        text = template_text(template) if template else None
        prompted = prompt_choices(tokenizer, messages, ["yes", "no", "may be"], template=text)
        ((context, continuations),) = encode_choices(tokenizer, [prompted])
        for continuation, ids in zip(prompted.continuations, continuations, strict=True):
            spaces = len(prompted.context) - len(prompted.context.rstrip())
            moved = prompted.context[len(prompted.context) - spaces :] + continuation
            bare = prompted.context[: len(prompted.context) - spaces]
            plain = tokenizer.encode(bare, add_special_tokens=False)
            whole = tokenizer.encode(bare + moved, add_special_tokens=False)
            begin = [tokenizer.bos_token_id] if plain[0] != tokenizer.bos_token_id else []
            assert context == begin + plain
            assert ids == whole[len(plain) :]


def test_choices_that_mention_special_tokens_stay_text() -> None:
    tokenizer = byte_tokenizer()
    prompted = prompt_choices(tokenizer, (Message("user", "Is it <|end|>?"),), ["<|end|>", "no"])
    ((context, (sly, no)),) = encode_choices(tokenizer, [prompted])
    assert context.count(tokenizer.eos_token_id) == 1  # the template's own
    assert tokenizer.eos_token_id not in sly
    assert tokenizer.decode(sly) == "<|end|>"
    assert tokenizer.decode(no) == "no"


def test_a_template_that_changes_answers_is_refused_for_choices() -> None:
    tokenizer = byte_tokenizer()
    loud = "{% for m in messages %}{{ m.content | upper }};{% endfor %}"
    with pytest.raises(DataError, match="does not write an answer as it is given"):
        prompt_choices(tokenizer, (Message("user", "Is it?"),), ["no"], template=loud)
