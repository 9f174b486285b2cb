"""Metier teaches a small language model a trade.

Layers, imports only ever pointing right:
cli > report | serve | scale | track > pipeline > recipe > stages
> data | tokenizer | synthesize | train | prune | export | evaluate | judge > engine > measure > models > text > core
"""

__version__ = "0.1.0"
