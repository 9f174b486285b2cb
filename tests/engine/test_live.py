"""Generation that requests join and leave: the same tokens as `generate`, whoever else is under way."""

import math
from pathlib import Path

import pytest
import torch

from fakes import byte_tokenizer, tiny_gpt2, tiny_llama
from metier.core.errors import InputError
from metier.engine.live import Live, Request, Wish
from metier.engine.local import generate, held_back
from metier.engine.sampling import forbid
from metier.models.load import Loaded, add_adapters, load
from metier.models.save import save_model

PROMPTS = [[0, 60, 61, 62], [0, 70], [0, 80, 81, 82, 83, 84, 85], [0, 90, 91]]


def loaded(kind: str = "llama") -> Loaded:
    model = tiny_llama() if kind == "llama" else tiny_gpt2()
    return Loaded(model.eval(), byte_tokenizer(), Path())


def finish(live: Live) -> dict[int, str]:
    """All text of every request, by its identity, once nothing is under way."""
    text: dict[int, str] = {}
    while live.busy:
        for told in live.step():
            text[id(told.request)] = text.get(id(told.request), "") + told.text
    return text


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_requests_that_come_one_by_one_get_what_generate_gives(kind: str):
    who = loaded(kind)
    wanted = [g.text for g in generate(who, PROMPTS, max_new_tokens=20)]
    live = Live(who, slots=2)
    requests: list[Request] = []
    text: dict[int, str] = {}
    for prompt in PROMPTS:
        requests.append(live.add(Wish(prompt, 20)))
        for told in live.step():
            text[id(told.request)] = text.get(id(told.request), "") + told.text
    for key, more in finish(live).items():
        text[key] = text.get(key, "") + more
    assert [text[id(r)] for r in requests] == wanted


def test_an_architecture_without_a_pass_of_its_own_takes_turns(monkeypatch: pytest.MonkeyPatch):
    who = loaded()
    wanted = [g.text for g in generate(who, PROMPTS, max_new_tokens=12)]
    monkeypatch.setattr("metier.engine.local.body_for", lambda *_: None)
    live = Live(who, slots=3)
    requests = [live.add(Wish(prompt, 12)) for prompt in PROMPTS]
    text = finish(live)
    assert [text[id(r)] for r in requests] == wanted
    assert not live.tells_logprobs


def test_each_request_samples_for_itself():
    who = loaded()
    alone = [generate(who, [p], max_new_tokens=16, temperature=0.9, top_p=0.8, seed=3)[0].text for p in PROMPTS]
    live = Live(who, slots=8)
    drawn = [live.add(Wish(p, 16, 0.9, 0.8, 3)) for p in PROMPTS]
    plain = live.add(Wish(PROMPTS[0], 16))
    text = finish(live)
    assert [text[id(r)] for r in drawn] == alone
    assert text[id(plain)] == generate(who, [PROMPTS[0]], max_new_tokens=16)[0].text


def test_a_stop_text_ends_the_answer_before_it():
    who = loaded()
    whole = generate(who, [PROMPTS[0]], max_new_tokens=24)[0].text
    stop = whole[5:8]
    live = Live(who)
    request = live.add(Wish(PROMPTS[0], 24, stop=(stop, "never there")))
    assert finish(live)[id(request)] == whole[: whole.index(stop)]
    assert request.finish == "stop"


def test_what_may_begin_a_stop_text_is_held_back():
    assert held_back("abc", ("cde",)) == 1
    assert held_back("abcd", ("cde", "bcdx")) == 3
    assert held_back("abc", ("xyz",)) == 0
    assert held_back("aaa", ("aaaa",)) == 3


def test_log_probabilities_are_the_models():
    who = loaded()
    live = Live(who)
    request = live.add(Wish(PROMPTS[0], 6, top_logprobs=3))
    finish(live)
    ids = torch.tensor([[*PROMPTS[0], *request.row.ids]])
    with torch.inference_mode():
        logits = forbid(who.model(ids).logits[0], live._speaker.banned)  # what is never said has no share
    spread = logits.log_softmax(-1)
    for place, one in enumerate(request.logprobs):
        row = spread[len(PROMPTS[0]) - 1 + place]
        assert one.logprob == pytest.approx(float(row[one.token]), abs=1e-4)
        assert one.top[0][2] >= one.top[1][2] >= one.top[2][2]
        assert math.isclose(one.top[0][2], one.logprob)


def test_a_cancelled_request_is_gone_and_the_others_go_on():
    who = loaded()
    live = Live(who, slots=2)
    requests = [live.add(Wish(p, 30)) for p in PROMPTS]
    live.step()
    requests[0].cancelled = requests[3].cancelled = True
    text = finish(live)
    assert requests[0].finish == requests[3].finish == "cancelled"
    wanted = generate(who, PROMPTS[1:3], max_new_tokens=30)
    assert [text[id(r)] for r in requests[1:3]] == [g.text for g in wanted]


def test_what_cannot_be_done_is_refused():
    live = Live(loaded())
    with pytest.raises(InputError, match="temperature"):
        live.add(Wish([0, 1], temperature=-1))
    with pytest.raises(InputError, match="no tokens"):
        live.add(Wish([]))
    with pytest.raises(InputError, match="context"):
        live.add(Wish([1] * 5000))
    assert not live.busy


def test_adapters_on_one_base_answer_as_each_does_alone(tmp_path: Path):
    from metier.models.adapter import LoraSettings, add_lora
    from metier.models.save import save_adapter
    from metier.serve.hosting import switch

    base = tmp_path / "base"
    save_model(tiny_llama(), byte_tokenizer(), base)
    folders = {}
    for name, seed in (("first.one", 1), ("second", 2)):
        torch.manual_seed(seed)
        model = add_lora(load(base).model, LoraSettings(r=4, alpha=64.0))
        for key, value in model.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(value, std=0.5)
        save_adapter(model, byte_tokenizer(), tmp_path / name, base=str(base))
        folders[name] = tmp_path / name
    alone = {name: generate(load(folder), PROMPTS, max_new_tokens=10) for name, folder in folders.items()}
    plain = generate(load(base), PROMPTS, max_new_tokens=10)
    family = add_adapters(load(base), folders)
    assert family["first.one"].model is family["second"].model
    for name, one in family.items():
        switch(one.model, one.adapter)
        assert [g.text for g in generate(one, PROMPTS, max_new_tokens=10)] == [g.text for g in alone[name]]
    switch(family["second"].model, None)
    assert [g.text for g in generate(family["second"], PROMPTS, max_new_tokens=10)] == [g.text for g in plain]
    assert [g.text for g in alone["second"]] != [g.text for g in plain]
