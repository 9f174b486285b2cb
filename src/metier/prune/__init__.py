"""Make a model smaller and keep it as good: heads, width, layers and weights; the guard; healing."""
