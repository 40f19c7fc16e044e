"""The recipe's `report` section."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What a run shows when it ends.

    Attributes:
        bigram: also fit a smoothed bigram model on the same tokens, as a yardstick; seconds for a few million tokens.
        prompt: the text that the sample continues; null writes none.
        max_tokens: length of the continuation.
        temperature: 0 takes the likeliest token each time; higher is more varied.
        top_p: sample among the likeliest tokens that hold this much of the probability.
    """

    bigram: bool = True
    prompt: str | None = None
    max_tokens: int = 128
    temperature: float = 0.8
    top_p: float = 0.95

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}; it must be at least 1")
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; it must be at least 0")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
