"""The options of decoding: one object for Python, the command line and the manifest."""

from dataclasses import dataclass
from typing import Any

from efficient_empathy.ranges import within


@dataclass(frozen=True)
class DecodingOptions:
    """How answers are chosen, token by token."""

    max_new_tokens: int = 64
    """Longest answer, 1 to 100,000."""
    sample: bool = False
    """Draw each token from the model's distribution; without, the likeliest is taken."""
    temperature: float = 0.7
    """Logits are divided by it before drawing, 0.01 to 100."""
    top_p: float = 0.9
    """Draw from the likeliest tokens that together have this probability, over 0 and up to 1."""
    top_k: int = 50
    """Draw from so many of the likeliest tokens; 0 takes all."""
    seed: int = 0
    """Of the draws, 0 or more. Each row draws by itself, by this seed and its id."""
    batch_size: int = 16
    """Rows that go through the model at once, 1 to 4096."""
    use_cache: bool = True
    """Keep the keys and values of past tokens; without, all are computed again for every new one."""

    def __post_init__(self) -> None:
        within("max_new_tokens", self.max_new_tokens, 1, 100_000)
        within("temperature", self.temperature, 0.01, 100.0)
        within("top_p", self.top_p, 1e-6, 1.0)
        within("top_k", self.top_k, 0, 10**9)
        within("seed", self.seed, 0, 2**63 - 1)
        within("batch_size", self.batch_size, 1, 4096)

    def describe(self) -> dict[str, Any]:
        """What the manifest says of it; greedy decoding has no temperature."""
        drawing = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k} if self.sample else {}
        return {
            "max_new_tokens": self.max_new_tokens,
            "sample": self.sample,
            **drawing,
            "seed": self.seed,
            "batch_size": self.batch_size,
        }
