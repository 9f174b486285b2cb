"""Models on disk and in memory: finding, loading, saving, adapting and measuring causal language models."""
