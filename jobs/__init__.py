"""What `main.py --job=` runs: one file a job, read from top to bottom."""
