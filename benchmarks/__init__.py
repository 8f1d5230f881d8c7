"""How fast it is, beside another implementation."""
