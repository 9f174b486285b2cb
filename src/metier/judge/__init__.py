"""Judges: who says of each answer whether it is right, and how far they can be trusted themselves."""
