"""What `--job=verify` recomputes: a folder of reference outputs, its models, and a rule for every array."""
