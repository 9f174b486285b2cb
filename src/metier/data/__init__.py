"""From the user's files to documents and examples: reading, refusing, splitting."""
