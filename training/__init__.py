"""The one training loop and what it owns: optimizers, checkpoints, metrics, progress."""
