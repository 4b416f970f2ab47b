"""The options of a mixture: one object for Python, the command line, the YAML file and the manifest."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from efficient_empathy.errors import EmpathyError
from efficient_empathy.experts.options import DeviceOptions, FitOptions
from efficient_empathy.ranges import within

Sites = Literal["mlp", "all"]
Granularity = Literal["token", "layer", "sequence"]
Init = Literal["zeros", "prototypes"]
Regulariser = Literal["none", "mutual-information", "kl-prior", "load-balancing"]
DataControl = Literal["union", "full"]


@dataclass(frozen=True)
class RouterOptions:
    """Where the gates are, what they read, and how they begin."""

    sites: Sites = "mlp"
    """``mlp``: the linears outside of attention, as in the paper; attention then has the experts' uniform mean. ``all``: every
    linear that an expert adapts."""
    granularity: Granularity = "token"
    """``token``: a gate a linear, on its own input (the paper). ``layer``: a gate a decoder layer, on what enters it, for all its
    linears. ``sequence``: one, on the mean of the prompt's last hidden states, the same for all linears and all of an answer."""
    top_k: int | None = None
    """Experts that are mixed at a time, their gates summing to 1, from 2 to one less than there are; None mixes all."""
    init: Init = "zeros"
    """``zeros``: begin with the uniform mixture. ``prototypes``: with the differences of the subsets' mean hidden states."""

    def __post_init__(self) -> None:
        _one_of("sites", self.sites, Sites)
        _one_of("granularity", self.granularity, Granularity)
        _one_of("init", self.init, Init)
        if self.top_k is not None and self.top_k < 2:
            raise EmpathyError(
                f"top_k must be 2 or more, not {self.top_k}: the gate of a single expert is always 1, so nothing could be learnt."
            )

    def check(self, experts: int) -> None:
        """See that the options fit so many experts.

        Raises:
            EmpathyError: fewer than two experts, or ``top_k`` leaves nothing out or cannot begin at zero.
        """
        if experts < 2:
            raise EmpathyError(f"a mixture needs two experts or more, and {experts} was given: repeat --expert.")
        if self.top_k is None:
            return
        if self.top_k >= experts:
            raise EmpathyError(
                f"top_k is {self.top_k} of {experts} experts: it must leave one out. Without --top-k all are mixed."
            )
        if self.init == "zeros":
            raise EmpathyError(
                "gates that begin at zero are tied, so --top-k would always leave the same experts out: add --init prototypes."
            )


@dataclass(frozen=True)
class BalanceOptions:
    """What the gates are asked for beside a low loss; counted on the tokens that are learnt, a batch at a time."""

    regulariser: Regulariser = "none"
    """``none``, as in the paper. ``mutual-information``: decided at each token, even over all. ``kl-prior``: as much of each expert
    as ``prior`` says. ``load-balancing``: the loss of the Switch transformer, where ``top_k`` leaves some out."""
    weight: float = 0.01
    """What it is multiplied by, over 0 and up to 100; nats beside nats a token."""
    prior: tuple[float, ...] | None = None
    """Share of each expert for ``kl-prior``, over 0, divided by their sum; None takes the sizes of the subsets."""

    def __post_init__(self) -> None:
        _one_of("regulariser", self.regulariser, Regulariser)
        if not 0 < self.weight <= 100:
            raise EmpathyError(f"weight must be over 0 and up to 100, not {self.weight}.")
        if self.regulariser == "none" and self.weight != type(self).weight:
            raise EmpathyError(f"a weight ({self.weight:g}) is for a regulariser: name one, or leave the weight out.")
        if self.prior is not None and self.regulariser != "kl-prior":
            raise EmpathyError(f"a prior is for the regulariser kl-prior, not for '{self.regulariser}': leave it out.")
        if self.prior is not None and min(self.prior) <= 0:
            raise EmpathyError(f"each share of the prior must be over 0: {', '.join(map(str, self.prior))}.")

    def check(self, experts: int, top_k: int | None) -> None:
        """See that the regulariser means something for so many experts.

        Raises:
            EmpathyError: a load-balancing loss where every token takes every expert, or a prior of another length.
        """
        if self.regulariser == "load-balancing" and top_k is None:
            raise EmpathyError(
                f"with {experts} of {experts} experts at every token the Switch load-balancing loss is a constant, so it has no "
                "gradient. Use mutual-information or kl-prior, or three experts or more with --top-k."
            )
        if self.prior is not None and len(self.prior) != experts:
            raise EmpathyError(f"the prior has {len(self.prior)} shares for {experts} experts.")


@dataclass(frozen=True)
class RouterFit(FitOptions):
    """How long and how fast a router is trained: it is small, so its rate is higher than an adapter's."""

    learning_rate: float = 1e-3
    """Peak rate, over 0 and up to 1: up over the first tenth of the steps, then down to 0 linearly."""


@dataclass(frozen=True)
class MixtureOptions:
    """From experts to a mixture."""

    base: str | None = None
    """Where the experts' base is now; None where it was when they were trained."""
    data_control: DataControl = "union"
    """``union``: trained on the given subsets. ``full``: on all subsets of their run, the discarded too, as the paper did; as many
    steps."""
    holdout: float | None = None
    """Share of the conversations that is never trained on; no larger than the experts' own, else they have seen them. None takes
    the least of theirs."""
    validation_examples: int = 128
    """Held-out examples that are measured during training, at most, 1 or more."""
    seed: int = 0
    """Of the order of the examples, 0 to 2,147,483,647."""
    router: RouterOptions = field(default_factory=RouterOptions)
    """The gates."""
    balance: BalanceOptions = field(default_factory=BalanceOptions)
    """The regulariser."""
    fit: FitOptions = field(default_factory=RouterFit)
    """Length and rate of training."""
    where: DeviceOptions = field(default_factory=DeviceOptions)
    """Where it runs."""

    def __post_init__(self) -> None:
        _one_of("data_control", self.data_control, DataControl)
        if self.holdout is not None:
            within("holdout", self.holdout, 0.001, 0.5)
        within("validation_examples", self.validation_examples, 1, 10**9)
        within("seed", self.seed, 0, 2**31 - 1)


def _one_of(name: str, value: str, kind: Any) -> None:
    if value not in get_args(kind):
        raise EmpathyError(f"{name} must be one of {', '.join(get_args(kind))}, not '{value}'.")
