"""Take a finished model out of the pipeline: merge adapters into standalone models."""
