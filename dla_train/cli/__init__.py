"""The `dla-train` command."""
