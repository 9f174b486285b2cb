"""The same pipeline on several processes or machines."""
