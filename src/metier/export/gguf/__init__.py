"""GGUF, the one-file format of llama.cpp and Ollama: write it, and read back what was written."""
