"""Samplers over `Generator.extend`: one small file a method, no model code in any."""
