"""The guard: what must still hold, what is tried when it does not, and what is refused before anything starts."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from fakes import CONTEXT, byte_tokenizer, save_tiny, tiny_llama
from metier.core.errors import DataError, Interrupted, ModelError, RecipeError
from metier.core.events import Events
from metier.core.machine import Machine
from metier.core.stage import Context, Source, Stage
from metier.models.load import load
from metier.models.save import save_model
from metier.prune import size, trying
from metier.prune.probe import Looker
from metier.prune.settings import Guard, fewest, needed_margin
from metier.prune.stage import Keep, Prune
from metier.prune.verdicts import conditions
from metier.text.artifacts import write_jsonl
from metier.text.chat import encode_document

Rows = list[dict[str, Any]]
WORDS = ("otter", "whale", "crab", "kelp", "shore", "stone")
QA = {"examples": "qa", "margin": 0.9, "repetition_margin": 0.9, "max_new_tokens": 8}
TEXTS = [f"The {WORDS[i % 6]} is near the {WORDS[i % 5]} in winter. " * 4 for i in range(24)]


def talk(index: int, answer: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Item {index}?"}, {"role": "assistant", "content": answer}]
    return {"id": f"q{index}", "messages": messages, "group": more.pop("group", ""), **more}


class House:
    """Folders, sources and contexts of one test."""

    def __init__(self, root: Path, base: Path) -> None:
        self.root = root
        self.sources: dict[str, Source] = {}
        self.events: Rows = []
        self.add("base", shutil.copytree(base, root / "base"))
        rows = [{"id": f"d{i}", "text": text} for i, text in enumerate(TEXTS)]
        self.rows("sea", train=rows, heldout=rows[:6])
        self.rows("qa", train=[talk(i, "stones") for i in range(8)], dev=[talk(i, f"e{i} e") for i in range(24)])
        labels = [("yes", "no")[i % 2] for i in range(48)]
        self.rows("labels", dev=[talk(i, a, meta={"choices": "yes|no", "label": a}) for i, a in enumerate(labels)])

    def add(self, name: str, folder: Path) -> Path:
        self.sources[name] = Source(name, (folder,), f"../../{name}/files", name)
        return folder

    def rows(self, name: str, **splits: Rows) -> None:
        folder = self.add(name, self.root / name)
        folder.mkdir(exist_ok=True)
        for split, rows in splits.items():
            write_jsonl(folder / f"{split}.jsonl", rows)

    def run(self, stage: Stage, step: str = "step", stop: Callable[[], bool] = lambda: False) -> Path:
        stage.check(self.sources)
        folders = [self.root / step / part for part in ("files", "measured", "scratch")]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        stage.run(Context(step, *folders, Events(step, None, [self.events.append]), self.sources, stop))
        return self.add(step, folders[0])

    def about(self, step: str = "step") -> dict[str, Any]:
        return json.loads((self.root / step / "files/about.json").read_text())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that has learnt the texts, so that taking something from it does harm."""
    model, tokenizer = tiny_llama().train(), byte_tokenizer()
    ids = torch.tensor([encode_document(tokenizer, text)[:CONTEXT] for text in TEXTS])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(30):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("base")
    save_model(model.eval(), tokenizer, folder)
    return folder


@pytest.fixture
def house(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.setattr(size, "ROUNDS", 1)
    monkeypatch.setattr(size, "STEPS", 2)
    return House(tmp_path, base)


def prune(**changed: Any) -> Prune:
    usual = {
        "model": "base",
        "method": {"width": {"fraction": 0.5, "multiple": 8}},
        "guard": {"documents": "sea"},
        "calibration": {"documents": "sea", "samples": 4, "tokens": 32},
    }
    return Prune.model_validate(usual | changed)


def same(a: Path, b: Path) -> bool:
    return (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()


def test_what_holds_is_kept_and_all_is_told(house: House):
    out = house.run(prune(guard={"documents": "sea", "general": "sea", "bits_margin": 9.0}))
    about = house.about()
    (tried,) = about["tries"]
    assert about["kept"] == tried["title"] == "32 of 64 MLP channels removed"
    assert [c["name"] for c in tried["conditions"]] == ["domain bits per byte", "general bits per byte"]
    assert tried["predicted"]["bytes"] == tried["size"]["bytes"] < about["before"]["size"]["bytes"]
    assert [p["ratio"] for p in about["points"]] == [0.0, 0.5]
    assert about["verdict"] == "removed"
    measured = json.loads((out.parent / "measured/about.json").read_text())
    assert measured["tries"][0]["after_token_seconds"] > 0
    assert measured["tries"][0]["ratio"] > 0
    assert load(out).model.config.intermediate_size == 32
    taken = json.loads((out / "taken.json").read_text())
    assert [len(units) for units in taken.values()] == [32, 32]


def test_where_nothing_holds_the_model_stays_as_it_was(house: House):
    out = house.run(prune(guard={"documents": "sea", "bits_margin": 1e-9}))
    about = house.about()
    assert [t["ratio"] for t in about["tries"]] == [0.5, 0.375, 0.25, 0.125]
    assert not any(t["holds"] for t in about["tries"])
    assert about["kept"] is None
    assert "none of what was tried holds" in about["verdict"]
    assert same(out, house.root / "base")
    assert any("handed on as it was" in e.get("text", "") for e in house.events if e["event"] == "warning")
    assert not list((house.root / "step/scratch").glob("try-*/model"))


def test_less_is_tried_until_it_holds(house: House):
    """Channels that do nothing may go; with more than them the reading changes."""
    model = load(house.root / "base").model
    with torch.no_grad():
        for block in model.model.layers:
            block.mlp.down_proj.weight[:, :24] = 0
    house.add("idle", house.root / "idle")
    save_model(model, byte_tokenizer(), house.root / "idle")
    house.run(prune(model="idle", guard={"documents": "sea", "bits_margin": 1e-4}))
    about = house.about()
    assert [(t["ratio"], t["holds"]) for t in about["tries"]] == [(0.5, False), (0.375, True)]
    assert about["kept"] == "24 of 64 MLP channels removed"


def test_no_guard_takes_what_was_asked(house: House):
    house.run(prune(guard=False))
    about = house.about()
    assert (about["guarded"], about["ratio"], about["points"]) == (False, 0.5, [])


def test_zeroed_weights_save_nothing_and_that_is_said(house: House):
    for method in ({"heads": {"fraction": 0.5, "last_layers": 1}}, {"weights": {"fraction": 0.5}}):
        house.run(prune(method=method, guard=False), f"zero-{next(iter(method))}")
        about = house.about(f"zero-{next(iter(method))}")
        assert about["verdict"].startswith("mask only, nothing saved")
        assert about["tries"][0]["size"]["zeros"] > about["before"]["size"]["zeros"]
        assert about["tries"][0]["size"]["bytes"] == about["before"]["size"]["bytes"]


def test_a_second_run_gives_the_same_bytes(house: House):
    for step in ("one", "two"):
        house.run(prune(heal="reconstruct", guard=QA), step)
    names = [p.name for p in (house.root / "one/files").iterdir()]
    assert "guard.jsonl" in names
    for name in names:
        assert (house.root / "one/files" / name).read_bytes() == (house.root / "two/files" / name).read_bytes(), name


class Stopper:
    """Asks to stop at the given look."""

    def __init__(self, at: int) -> None:
        self.at, self.asked = at, 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.asked == self.at


def test_stopped_anywhere_it_ends_with_the_same_bytes(house: House):
    guard = QA | {"documents": "sea", "bits_margin": 1e-9, "max_new_tokens": 2}
    stage = prune(heal="reconstruct", guard=guard, smaller=[0.5])
    count = Stopper(-1)
    house.run(stage, "whole", count)
    stops = 0
    for at in range(1, count.asked, max(1, count.asked // 4)):
        step = f"stopped-{at}"
        with pytest.raises(Interrupted):
            house.run(stage, step, Stopper(at))
        assert not (house.root / step / "files/about.json").exists()
        house.run(stage, step)
        stops += 1
        for name in ("about.json", "guard.jsonl", "model.safetensors"):
            left, right = (house.root / s / "files" / name for s in ("whole", step))
            assert left.read_bytes() == right.read_bytes(), (at, name)
    assert stops >= 4


def test_finished_tries_are_not_done_again(house: House, monkeypatch: pytest.MonkeyPatch):
    stage = prune(guard={"documents": "sea", "bits_margin": 1e-9})
    looks: list[str] = []
    stopped: list[bool] = []
    look = Looker.look
    monkeypatch.setattr(
        Looker, "look", lambda self, loaded, name, kept: looks.append(name) or look(self, loaded, name, kept)
    )
    real = trying._try

    def stop_at_third(ctx: Any, candidate: Any, home: Path, *rest: Any) -> Any:
        if home.name == "try-3" and not stopped:
            stopped.append(True)
            raise Interrupted("stopped")
        return real(ctx, candidate, home, *rest)

    monkeypatch.setattr(trying, "_try", stop_at_third)
    with pytest.raises(Interrupted):
        house.run(stage)
    house.run(stage)
    assert looks == ["before", *(f"{n} of 64 MLP channels removed" for n in (32, 24, 16, 8))]


# --- what the guard must reject


def test_a_destroyed_model_is_rejected_by_every_condition():
    guard = Guard(examples="qa", documents="sea", general="sea")
    good = {
        "answers": [{"id": str(i), "score": 0.6 + (i % 5) / 20, "repetition": 0.0} for i in range(60)],
        "domain": [{"id": str(i), "bits": 100.0 + i, "bytes": 80} for i in range(20)],
        "general": [{"id": str(i), "bits": 120.0 + i, "bytes": 80} for i in range(20)],
    }
    assert all(c.holds for c in conditions(good, good, guard))
    bad = {
        "answers": [{"id": str(i), "score": 0.0, "repetition": 0.9} for i in range(60)],
        "domain": [{"id": str(i), "bits": 900.0, "bytes": 80} for i in range(20)],
        "general": [{"id": str(i), "bits": None, "bytes": 80} for i in range(20)],
    }
    found = conditions(good, bad, guard)
    assert [c.name for c in found] == ["token_f1", "repetition", "domain bits per byte", "general bits per byte"]
    assert not any(c.holds for c in found)
    assert found[3].why == "the likelihood is not finite"


def test_a_lost_class_is_rejected_though_accuracy_hardly_falls():
    guard = Guard(classes="labels", class_margin=0.5)

    def rows(maybe: int) -> Any:
        labels = ["yes"] * 60 + ["no"] * 30 + ["maybe"] * 10
        right = [1] * 90 + [1] * maybe + [0] * (10 - maybe)
        return {
            "classes": [
                {"id": str(i), "label": c, "found": f} for i, (c, f) in enumerate(zip(labels, right, strict=True))
            ]
        }

    held = conditions(rows(3), rows(3), guard)
    assert [(c.name, c.holds) for c in held] == [("class yes", True), ("class no", True), ("class maybe", True)]
    lost = conditions(rows(3), rows(0), guard)
    assert [c.holds for c in lost] == [True, True, False]
    assert lost[2].why == "not one item of the class is found any more"


def test_refusals_must_neither_vanish_nor_spread():
    guard = Guard(examples="qa", refusals="qa")
    old = {"unsafe": [{"complied": 0}] * 60, "harmless": [{"declined": 0}] * 60}
    assert all(c.holds for c in conditions(old, old, guard))
    new = {"unsafe": [{"complied": 1}] * 12 + [{"complied": 0}] * 48, "harmless": [{"declined": 1}] * 60}
    assert [c.holds for c in conditions(old, new, guard)] == [False, False]


def test_what_cannot_be_told_does_not_hold():
    guard = Guard(documents="sea")
    one = {"domain": [{"id": "a", "bits": 100.0, "bytes": 80}]}
    (found,) = conditions(one, one, guard)
    assert not found.holds
    assert found.why == "too few documents to tell"


def test_the_fewest_items_are_exactly_enough():
    for margin in (0.02, 0.05, 0.1, 0.15, 0.3):
        n = fewest(margin, 0.95)
        for count, holds in ((n, True), (n - 1, False)):
            guard = Guard(classes="labels", class_margin=margin)
            rows = {"classes": [{"label": "yes", "found": 1}] * count}
            assert conditions(rows, rows, guard)[0].holds is holds, (margin, count)
        assert fewest(needed_margin(n, 0.95), 0.95) <= n


def test_guards_look_at_real_models(house: House):
    """A model of noise instead of the one before: every kind of condition is measured, and it does not pass."""
    model = tiny_llama(seed=0)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 3)
    house.add("noise", house.root / "noise")
    save_model(model, byte_tokenizer(), house.root / "noise")
    prompts = [talk(i, "no", group=("unsafe", "harmless")[i % 2]) for i in range(50)]
    house.rows("qa", refusals_test=prompts)
    guard = {
        "examples": "qa",
        "documents": "sea",
        "classes": "labels",
        "refusals": "qa",
        "max_new_tokens": 8,
        "margin": 0.1,
    }
    stage = Keep.model_validate(
        {"before": "base", "models": ["noise"], "conditions": guard | {"repetition_margin": 0.1}}
    )
    out = house.run(stage)
    (tried,) = house.about()["tries"]
    names = [c["name"] for c in tried["conditions"]]
    assert names == [
        "token_f1",
        "repetition",
        "domain bits per byte",
        "class yes",
        "class no",
        "unsafe prompts complied with",
        "harmless prompts declined",
    ]
    assert not tried["holds"]
    assert not next(c for c in tried["conditions"] if c["name"] == "domain bits per byte")["holds"]
    assert same(out, house.root / "base")
    rows = [json.loads(line) for line in (out / "guard.jsonl").read_text().splitlines()]
    assert {(r["model"], r["part"]) for r in rows} >= {("before", "answers"), ("noise", "harmless")}


def test_keep_hands_on_the_first_that_holds(house: House):
    house.add("other", save_tiny(house.root / "other", seed=3))
    house.add("copy", shutil.copytree(house.root / "base", house.root / "copy"))
    stage = Keep.model_validate(
        {"before": "base", "models": ["other", "copy"], "conditions": {"documents": "sea", "bits_margin": 1e-6}}
    )
    out = house.run(stage)
    about = house.about()
    assert about["kept"] == "copy"
    assert [t["holds"] for t in about["tries"]] == [False, True]
    assert same(out, house.root / "copy")


def test_a_plan_says_what_it_takes(house: House):
    machine = Machine(1e9, "cpu", "fp32")
    plain = prune().estimate(house.sources, machine)
    healed = prune(heal="reconstruct").estimate(house.sources, machine)
    assert plain is not None
    assert healed is not None
    numbers = sum(p.numel() for p in tiny_llama().parameters())
    assert plain.memory["the model"] == 4 * numbers
    assert healed.memory_bytes == plain.memory_bytes + 4 * numbers + 4 * 4 * 32 * 32
    later = Source("later", (), "", "", (house.sources["base"],))
    guessed = prune(model="later").estimate({"later": later}, machine)
    assert guessed is not None
    assert (guessed.about, guessed.disk_bytes) == (True, plain.disk_bytes)


# --- bad input


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"guard": {}}, "a guard needs data"),
        ({"guard": {"general": "sea"}}, "a guard needs data"),
        ({"guard": {"documents": "sea", "margin": 0.1}}, "`margin` has no effect without `examples`"),
        ({"guard": {"examples": "qa", "metric": "token_f2"}}, "token_f1"),
        ({"guard": {"examples": "qa", "metric": "repetition"}}, "no metric that a guard can hold"),
        ({"smaller": [0.5, 0.75]}, "each below the one before"),
        ({"guard": False, "smaller": [0.5]}, "has no effect with `guard: false`"),
        ({"method": {"weights": {}}, "heal": "reconstruct"}, "leave `heal` out"),
        ({"method": {"weights": {"rank": "magnitude"}}}, "`calibration` has no effect"),
        ({"calibration": {"documents": "sea", "examples": "qa"}}, "either `documents` or `examples`"),
        ({"method": {"width": {"fraction": 0.5, "heigth": 1}}}, "heigth"),
    ],
    ids=str,
)
def test_settings_that_do_not_agree_are_refused(changed: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        prune(**changed)


def test_a_guard_must_be_spoken_of():
    with pytest.raises(ValidationError, match="guard"):
        Prune.model_validate({"model": "base", "method": {"width": {"fraction": 0.5}}})


def test_too_few_items_are_refused_before_anything_is_loaded(house: House):
    with pytest.raises(DataError, match="with 24 questions not even an unchanged model") as caught:
        prune(guard={"examples": "qa", "margin": 0.05}).check(house.sources)
    assert caught.value.where == "guard.examples"
    assert "ask at least 45" in str(caught.value.cure)
    with pytest.raises(DataError, match="questions labelled 'yes'"):
        prune(guard={"classes": "labels", "class_margin": 0.05}).check(house.sources)


def test_what_a_step_before_made_is_looked_at_when_it_is_there(house: House):
    later = {name: dataclasses.replace(source, paths=()) for name, source in house.sources.items()}
    stage = prune(guard={"examples": "qa", "margin": 0.05})
    stage.check(later)
    folders = [house.root / "late" / part for part in ("files", "measured", "scratch")]
    for folder in folders:
        folder.mkdir(parents=True)
    with pytest.raises(DataError, match="with 24 questions"):
        stage.run(Context("late", *folders, Events("late"), house.sources))
    assert not list(folders[0].iterdir())


def test_empty_splits_are_refused(house: House):
    house.rows("empty", train=[], dev=[], heldout=[])
    for guard, where in (
        ({"documents": "empty"}, "guard.documents"),
        ({"examples": "empty"}, "guard.examples"),
        ({"documents": "sea", "refusals": "qa"}, "guard.refusals"),
    ):
        with pytest.raises(DataError, match="nothing to look at") as caught:
            prune(guard=guard).check(house.sources)
        assert caught.value.where == where
    with pytest.raises(DataError, match="train split") as caught:
        prune(calibration={"documents": "empty"}).check(house.sources)
    assert caught.value.where == "calibration"


def test_without_any_text_to_calibrate_on_it_is_refused(house: House):
    stage = Prune.model_validate({"model": "base", "method": {"layers": {"count": 1}}, "guard": False})
    with pytest.raises(RecipeError, match="no text to read") as caught:
        stage.check(house.sources)
    assert "magnitude" in str(caught.value.cure)


def test_other_architectures_and_quantised_models_are_refused(house: House):
    config = house.root / "base/config.json"
    known = json.loads(config.read_text())
    config.write_text(json.dumps(known | {"model_type": "gpt_neox"}))
    with pytest.raises(ModelError, match="cannot be pruned"):
        prune().check(house.sources)
    config.write_text(json.dumps(known | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ModelError, match="quantised"):
        prune().check(house.sources)


def test_a_model_named_twice_is_refused(house: House):
    stage = Keep.model_validate({"before": "base", "models": ["base"], "conditions": {"documents": "sea"}})
    with pytest.raises(RecipeError, match="named twice"):
        stage.check(house.sources)
