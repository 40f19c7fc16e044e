"""Published checkpoints of other projects as models of dla-train."""
