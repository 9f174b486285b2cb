"""What the models answered, how good it is, and how sure one can be of that."""
