"""The whole way: train, sample, evaluate."""
