"""Writes every data set of the specialists."""

from pathlib import Path

from tools.specialists import marine_biology, medication, pharma, pubmedqa, sleep

DATA = Path(__file__).resolve().parents[2] / "recipes" / "data"
MAKERS = {
    "pharma": pharma.files,
    "medication": medication.files,
    "sleep-stress": sleep.files,
    "pubmedqa": pubmedqa.files,
    "marine-biology": marine_biology.files,
}
"""By folder, what makes its files: their texts by their names."""


def build(data: Path) -> None:
    """Write the files of every set into its folder below `data`."""
    for name, files in MAKERS.items():
        (data / name).mkdir(parents=True, exist_ok=True)
        for file, text in files().items():
            (data / name / file).write_text(text, encoding="utf-8", newline="\n")
