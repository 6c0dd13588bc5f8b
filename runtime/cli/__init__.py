"""The `microturn` command."""
