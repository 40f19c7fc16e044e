"""What happens around training, one concern per file."""
