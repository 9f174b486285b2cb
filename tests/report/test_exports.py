"""Exports and mixtures on the page, in its Markdown twin and in the published folder."""

from pathlib import Path
from typing import Any

from fake_run import NASTY, FakeRun, model_files

from metier.report import publish
from metier.report.collect import collect
from metier.report.exports import exports, mixtures


def form(name: str, kind: str, **others: Any) -> dict[str, Any]:
    usual = {
        "form": name,
        "format": kind,
        "same_ids": True,
        "difference": 0.0125,
        "largest": 24.2,
        "tolerance": 0.048,
        "positions": 314,
        "same_top": 0.994,
        "greedy": 1.0,
        "stops": 3,
        "of_stops": 3,
        "chats": 3,
        "problems": [],
    }
    return usual | others


def add_export(run: FakeRun, *, here: bool) -> None:
    about = {
        "method": "export",
        "files": {"model.safetensors": 9_908_624, "gguf/model-F16.gguf": 9_973_408},
        "forms": [
            form("merged", "merged", difference=1e-6),
            form("gguf/model-F16.gguf", "F16"),
            form(NASTY, "F16", chats=0),
        ],
    }
    seen = {"forms": [form("gguf/model-F16.gguf in llama.cpp", "F16")] if here else []}
    run.add(
        "shipped",
        {"kind": "export", "model": "tuned"},
        "model",
        files={**model_files("export", trained=False), "about.json": about, "README.md": "# Sea\n"},
        measured={"parity.json": seen, "card.md": "## Time and energy\n\n12 s\n"},
        inputs={"tuned": "model"},
    )


def a_run(root: Path, *, here: bool = True) -> FakeRun:
    run = FakeRun(root / "store")
    run.add("tuned", {"kind": "tune"}, "model", files=model_files("lora", adapter="seedling"))
    tries = [
        {"weight": 1.0, "bits_per_byte": 0.9, "rise": 0.1, "low": 0.08, "high": 0.12, "within": False},
        {"weight": 0.5, "bits_per_byte": 0.81, "rise": 0.01, "low": None, "high": None, "within": True},
    ]
    for name, about in (
        ("gentle", {"method": "interpolate", "weight": 0.5, "max_rise": 0.02, "documents": 40, "tries": tries}),
        ("both", {"method": "combine, ties", "weights": {"one": 1.0, "two": 0.5}}),
        ("chatty", {"method": "residual", "weight": 0.7}),
    ):
        kind = {"gentle": "interpolate", "both": "combine", "chatty": "residual"}[name]
        files = {**model_files("x", trained=False), "about.json": about}
        run.add(name, {"kind": kind}, "model", files=files)
    add_export(run, here=here)
    return run


def test_they_are_read_as_they_were_written(tmp_path: Path) -> None:
    run = collect(a_run(tmp_path).result, "quickstart")
    (shipped,) = exports(run)
    assert shipped.forms[1] == (
        "gguf/model-F16.gguf", "F16", "equal", "0.013", "0.048", "99.4 % of 314", "100 %", "3 of 3",
    )  # fmt: skip
    assert shipped.forms[-1][0] == "gguf/model-F16.gguf in llama.cpp"
    assert shipped.note == ""
    gentle, both, chatty = mixtures(run)
    assert [row[0] for row in gentle.tries] == ["1", "0.5"]
    assert gentle.tries[0][3:] == ("+0.0800 to +0.1200", "past the limit")
    assert both.sentence == "TIES of one (1), two (0.5)."
    assert "weight of 0.7" in chatty.sentence


def test_page_twin_and_folder(tmp_path: Path) -> None:
    run, out = a_run(tmp_path), tmp_path / "runs" / "quickstart"
    for _ in range(2):  # published again, nothing doubles
        publish(run.result, "quickstart", out)
        page, twin = (out / "report.html").read_text(), (out / "report.md").read_text()
        assert (out / "exports" / "shipped" / "README.md").read_text() == "# Sea\n\n## Time and energy\n\n12 s\n"
    assert '<a href="#exports">Exports</a>' in page
    assert "<td>gguf/model-F16.gguf in llama.cpp</td>" in page
    assert "<script>alert" not in page
    assert "| gguf/model-F16.gguf | F16 | equal | 0.013 | 0.048 |" in twin
    assert "the strongest weight within the limit of 0.02 bits per byte" in twin
    assert (out / "exports" / "shipped" / "model.safetensors").read_bytes() == b"weights"


def test_without_llama_cpp_it_is_said_and_without_exports_nothing_is(tmp_path: Path) -> None:
    publish(a_run(tmp_path, here=False).result, "quickstart", tmp_path / "runs" / "q")
    assert "llama.cpp was not installed" in (tmp_path / "runs" / "q" / "report.html").read_text()
    alone = FakeRun(tmp_path / "other")
    alone.add("tuned", {"kind": "tune"}, "model", files=model_files("lora", adapter="seedling"))
    publish(alone.result, "quickstart", tmp_path / "runs" / "p")
    assert "Exports" not in (tmp_path / "runs" / "p" / "report.html").read_text()
    assert not (tmp_path / "runs" / "p" / "exports").exists()
