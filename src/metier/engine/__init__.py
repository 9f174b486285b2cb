"""The only loops that run a model to read or to write: generation and log-likelihood."""
