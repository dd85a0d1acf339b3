"""The `rill` command."""
