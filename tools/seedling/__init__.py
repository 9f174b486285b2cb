"""The seedling: text generator, tokenizer, training and measurement of the embedded base model."""
