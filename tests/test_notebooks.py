"""The notebooks run top to bottom in one pass, here with few steps; as written they are without outputs."""

import os
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from tools.notebooks import NOTEBOOKS, written

ROOT = Path(__file__).resolve().parents[1]
FOUND = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))


def test_the_notebooks_are_those_that_the_tool_writes():
    assert FOUND == sorted(NOTEBOOKS) == ["marine-biology.ipynb", "quickstart.ipynb", "your_data.ipynb"]
    for name in FOUND:
        text = (ROOT / "notebooks" / name).read_text(encoding="utf-8")
        assert text == written(NOTEBOOKS[name]), "run `python -m tools.notebooks`"
        assert all(not cell.get("outputs") for cell in nbformat.reads(text, as_version=4).cells)


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUND)
def test_a_notebook_runs_in_one_pass(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("METIER_SMOKE", "1")
    monkeypatch.setenv("METIER_ROOT", str(ROOT))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    shutil.copy(ROOT / "notebooks" / name, tmp_path / name)
    notebook = nbformat.read(tmp_path / name, as_version=4)
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    (report,) = tmp_path.glob("runs/*/report.html")
    assert "<html" in report.read_text(encoding="utf-8")
    shown = [output["data"] for cell in code for output in cell.outputs if "data" in output]
    assert sum("<iframe" in data.get("text/html", "") for data in shown) == 1
    assert any("<table" in data.get("text/html", "") for data in shown)
    if name != "your_data.ipynb":
        assert any("image/png" in data for data in shown)
