"""Training the same work with other tools, each in a virtual environment of its own and in a process of its own."""
