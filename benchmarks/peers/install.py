"""Makes the peers' virtual environments: `python -m benchmarks.peers.install [trl|litgpt|llamafactory ...]`.

Each goes to build/peers/<name> with the exact versions of benchmarks/peers/<name>.txt; one that is there stays. Which
build of torch is taken follows from pip's own configuration; without a GPU it must be one without CUDA. About 5 GB.
"""

import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.peers.contenders import ENVIRONMENTS

HERE = Path(__file__).parent
UNWANTED = {"llamafactory": ("torchvision", "torchaudio")}
"""Their builds want CUDA, and break the import of transformers beside a torch that has none."""
STUBS = {"llamafactory": {"torchaudio.py": '"""Stands in for torchaudio, which is imported for sound alone."""\n'}}


def main() -> None:
    wanted = sys.argv[1:] or sorted(path.stem for path in HERE.glob("*.txt"))
    for name in wanted:
        pins = HERE / f"{name}.txt"
        if not pins.is_file():
            raise SystemExit(
                f"no such peer: {name} (there are: {', '.join(p.stem for p in sorted(HERE.glob('*.txt')))})"
            )
        install(name, pins)


def install(name: str, pins: Path) -> None:
    """One environment, unless it is there."""
    folder = ENVIRONMENTS / name
    if folder.exists():
        print(f"{name}: is there")
        return
    aside = folder.with_name(f"{name}.aside")
    venv.create(aside, clear=True, with_pip=True)
    pip = [str(aside / "bin/python"), "-m", "pip"]
    subprocess.run([*pip, "install", "--quiet", "--disable-pip-version-check", "-r", str(pins)], check=True)
    for package in UNWANTED.get(name, ()):
        subprocess.run([*pip, "uninstall", "--quiet", "--yes", package], check=True)
    (packages,) = aside.glob("lib/python*/site-packages")
    for file, text in STUBS.get(name, {}).items():
        (packages / file).write_text(text, encoding="utf-8")
    aside.rename(folder)
    print(f"{name}: made")


if __name__ == "__main__":
    main()
