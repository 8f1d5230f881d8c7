"""Experiments as data: every file opens with the command that runs it and says only what differs from `base`."""
