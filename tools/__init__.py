"""Builders of what the project ships; not part of the installed package."""
