"""`python -m metier`, which is how torchrun starts it: `torchrun --nproc-per-node 2 -m metier run recipe.yaml`."""

from metier.cli import main

if __name__ == "__main__":
    main()
