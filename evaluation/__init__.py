"""Images in, numbers and pictures out: what a sample is worth, what it looks like, whether it was copied."""
