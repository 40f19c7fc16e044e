"""Numbers of things in messages."""


def counted(number: int, thing: str) -> str:
    """`1 shard`, `2 shards`, `1,000 shards`."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"
