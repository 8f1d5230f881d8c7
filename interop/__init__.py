"""Public checkpoints -> our parameters: one explicit name table a source."""
