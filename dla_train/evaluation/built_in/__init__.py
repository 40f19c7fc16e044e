"""Our own tasks, which need no network and no further package."""
