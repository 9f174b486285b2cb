"""The ground floor: errors, events, fingerprints, stages and the store. Knows nothing of language models; no torch."""
