"""`python -m tools.refusals [FOLDER]` writes the data of refusal tuning (default: recipes/data/refusals)."""

import sys
from pathlib import Path

from tools.refusals.build import DATA, build

build(Path(sys.argv[1]) if len(sys.argv) > 1 else DATA)
