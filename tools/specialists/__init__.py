"""The data of the specialists: texts, questions and studies rendered from the tables of facts beside this file.

For: `recipes/data/{pharma,medication,sleep-stress,pubmedqa}`, written by `python -m tools.specialists` and compared
byte for byte by the tests. The READMEs there are written by hand.
Refuses: a line of a table with too few or too many fields, an empty field, a name that stands twice.
Costs: about a second; the standard library only.
"""
