"""Unsafe prompts, each beside a harmless one that sounds alike: the data for refusal tuning and for measuring it."""
