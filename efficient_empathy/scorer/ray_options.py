"""How a run is spread over a Ray cluster."""

from dataclasses import dataclass

from efficient_empathy.errors import EmpathyError


@dataclass(frozen=True)
class RayOptions:
    """Which cluster rates, and what each of its actors takes."""

    address: str | None = None
    """``host:port`` of a running cluster, ``auto`` for the one that this machine belongs to, ``local`` for a Ray of our own
    on this machine; None takes ``RAY_ADDRESS`` of the environment, else ``local``."""
    gpus: float = 0.0
    """GPUs of each actor, which may be a share such as 0.25; 0 rates on the CPU."""
    retries: int = 3
    """How many more times a unit is begun after the actor that rated it was lost."""
    start_seconds: float = 300.0
    """How long to wait while the cluster can start no actor at all."""

    def __post_init__(self) -> None:
        if not self.gpus >= 0 or (self.gpus > 1 and self.gpus != int(self.gpus)):
            raise EmpathyError(f"gpus must be 0, a share below 1 such as 0.5, or a whole number, not {self.gpus}.")
        if not isinstance(self.retries, int) or self.retries < 0:
            raise EmpathyError(f"retries must be a whole number from 0, not {self.retries}.")
        if not self.start_seconds > 0:
            raise EmpathyError(f"start_seconds must be above 0, not {self.start_seconds}.")

    @property
    def device(self) -> str:
        """Where the actors run the scorer."""
        return "cuda" if self.gpus else "cpu"
