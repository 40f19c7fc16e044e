"""Tasks of our own: they need no network and no further package."""
