"""The blocks of known architectures, computed with less work and memory than their own forward, and equal to it."""
