"""The options of judging: one object for Python, the command line, the YAML file and the manifest."""

from dataclasses import dataclass
from pathlib import Path

from efficient_empathy.errors import EmpathyError
from efficient_empathy.ranges import within

DEFAULT_KEY_ENV = "OPENAI_API_KEY"


@dataclass(frozen=True)
class JudgeOptions:
    """Who judges, how much, at what pace and for how much money."""

    judge: str
    """``openai:MODEL`` for any OpenAI-compatible server, ``local:PATH-OR-ID`` for a language model in this process."""
    rubric: Path | None = None
    """YAML file of the rubric; None for the paper's two dimensions."""
    budget: int = 1000
    """How many examples to have judged at most; chosen by ``seed``, spread over as many conversations as possible."""
    seed: int = 0
    """Chooses the examples: the same seed and dialogues give the same examples, in whatever order they are read."""
    store: Path | None = None
    """SQLite file that answers land in the moment they arrive; None for ``<output>.sqlite`` beside the labels."""
    base_url: str | None = None
    """Address of an OpenAI-compatible server; None for the client's default (``OPENAI_BASE_URL``, else OpenAI)."""
    api_key_env: str = DEFAULT_KEY_ENV
    """Name of the environment variable that holds the key; the key itself is never an option."""
    concurrency: int = 8
    """Questions under way at once, 1 to 256; a local judge answers one at a time."""
    max_usd: float | None = None
    """Stop before the next question could bring the cost of these labels above this many dollars; None for no limit."""
    prices: Path | None = None
    """YAML price table that is laid over the one we ship."""
    retry_unscored: bool = False
    """Ask again for the examples whose stored answer could not be read."""
    max_tokens: int = 256
    """The longest answer in tokens, 16 to 100000; a model that thinks aloud needs thousands."""
    timeout: float = 120.0
    """Seconds to wait for one answer, over 0."""
    attempts: int = 6
    """How often one question is sent at most, 1 to 20, when the server is busy or failing."""

    def __post_init__(self) -> None:
        within("budget", self.budget, 1, 100_000_000)
        within("concurrency", self.concurrency, 1, 256)
        within("max_tokens", self.max_tokens, 16, 100_000)
        within("attempts", self.attempts, 1, 20)
        if not self.timeout > 0:
            raise EmpathyError(f"timeout must be more than 0 seconds, not {self.timeout}.")
        if self.max_usd is not None and not self.max_usd >= 0:
            raise EmpathyError(f"max_usd must be 0 or more dollars, not {self.max_usd}.")
        if self.base_url is not None and not self.base_url.startswith(("http://", "https://")):
            raise EmpathyError("base_url must start with http:// or https://.")  # unnamed: it may hold a key
