"""Numbers of things in messages."""


def counted(number: int, thing: str) -> str:
    """`1 shard`, `2 shards`, `1,000 shards`; `2 processes`."""
    ending = "" if number == 1 else "es" if thing.endswith("s") else "s"
    return f"{number:,} {thing}{ending}"
