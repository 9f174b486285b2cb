"""`python -m tools.seedling`: build the seedling."""

from tools.seedling.build import main

main()
