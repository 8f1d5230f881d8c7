"""Quantizers by name; a new one is a file here and a line in this table."""

from tokenizer.quantizers.vector import VectorQuantizer

QUANTIZERS = {"vector": VectorQuantizer}
