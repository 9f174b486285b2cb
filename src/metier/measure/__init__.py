"""How answers are scored, and how sure one can be: metrics and statistics that several rooms need. Knows no recipe."""
