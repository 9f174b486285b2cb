"""The kinds of file that users bring, one module each: rows with their places, or a text."""
