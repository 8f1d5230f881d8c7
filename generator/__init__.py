"""Tokens -> distributions: layouts, conditioning, heads, the objective; `generator.sampling` turns them into Tokens."""
