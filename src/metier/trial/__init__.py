"""A recipe tried before it is run: as one of its variants, or small."""
