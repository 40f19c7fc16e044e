"""Text made into shards of tokens once, by several processes, and read again by memory mapping."""
