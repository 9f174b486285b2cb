"""`python -m tools.specialists [FOLDER]` writes all data sets below FOLDER (default: recipes/data)."""

import sys
from pathlib import Path

from tools.specialists.build import DATA, build

build(Path(sys.argv[1]) if len(sys.argv) > 1 else DATA)
