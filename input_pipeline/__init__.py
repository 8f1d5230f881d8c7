"""Files to batches: images or extracted tokens, shuffled, augmented, and with a position that a checkpoint can hold."""
