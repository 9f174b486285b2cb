"""`python -m tools.marine [FOLDER]` writes the demo domain's data (default: recipes/data/marine)."""

import sys
from pathlib import Path

from tools.marine.build import DATA, build

build(Path(sys.argv[1]) if len(sys.argv) > 1 else DATA)
