"""Attention under visibility intervals, once for each kind of hardware."""
