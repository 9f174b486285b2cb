"""The demo domain, marine biology: a fact table, the articles and the questions rendered from it.

For: `recipes/data/marine`, written anew by `python -m tools.marine` and compared byte for byte by the tests.
Refuses: an entry with an unknown attribute, fewer than five facts, or a value longer than eight words.
Costs: about two seconds; standard library and PyYAML only.
"""
