"""The Lightning side of a mixture: the router moves, and nothing else."""

from typing import Any

import torch
from torch import Tensor, nn

from efficient_empathy.experts.batches import Batch
from efficient_empathy.experts.loss import IGNORED
from efficient_empathy.experts.module import ResponseModule
from efficient_empathy.moe.options import MixtureOptions
from efficient_empathy.moe.regularisers import (
    at_positions,
    kl_prior,
    load_balancing,
    mutual_information,
)
from efficient_empathy.moe.routed import Routing
from efficient_empathy.moe.router import Router


class MixtureModule(ResponseModule):
    """Trains the router of a model that experts were attached to, on responses alone."""

    def __init__(self, model: Any, router: Router, options: MixtureOptions, prior: tuple[float, ...]):
        """Freeze all but the router.

        Args:
            model: what ``attach`` changed.
            router: what it gave.
            options: how to train.
            prior: share of each expert, for the regulariser that has one.
        """
        super().__init__(model, options.fit, options.seed)
        self._balance = options.balance
        self.shares = self._balance.regulariser == "none"  # the others look at what the gates say at each position
        self.register_buffer("prior", torch.tensor(prior) / sum(prior), persistent=False)
        self._router = (router,)  # in a tuple, so that it is not a second name of the model's own
        model.requires_grad_(False)
        router.requires_grad_(True)
        check_trained(self, router)

    @property
    def router(self) -> Router:
        """The gates."""
        return self._router[0]

    def on_fit_start(self) -> None:
        """The base stays as it answers, without dropout; but gradient checkpointing works in train mode alone."""
        self.model.train(self.options.gradient_checkpointing)
        self.router.train()

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """The language model's loss, and the regulariser times its weight."""
        if self._balance.regulariser == "none":
            return super().training_step(batch, index)
        with self.router.recording() as found:
            loss = super().training_step(batch, index)
        if not found:  # a batch without rows, on one of several devices
            return loss
        chosen_BT = batch["labels"][:, 1:] != IGNORED
        routing = at_positions(list(found.values()), chosen_BT)
        # As the loss is: the batch counts by its share of the step's supervised tokens.
        share = chosen_BT.sum() * self.options.accumulate * self.trainer.world_size / batch["step_tokens"]
        return loss + self._balance.weight * share * self.penalty(routing)

    def penalty(self, routing: Routing) -> Tensor:
        """The regulariser of what the gates said at the positions that count, (S, N, E)."""
        if self._balance.regulariser == "mutual-information":
            return mutual_information(routing.gates)
        if self._balance.regulariser == "kl-prior":
            assert isinstance(self.prior, Tensor)  # noqa: S101 - narrows the type for the checker
            return kl_prior(routing.gates, self.prior)
        return load_balancing(routing)


def check_trained(module: nn.Module, router: Router) -> None:
    """See that what requires gradients is the router's parameters, the very tensors, and nothing beside.

    Raises:
        AssertionError: it is not.
    """
    trained = {id(parameter) for parameter in module.parameters() if parameter.requires_grad}
    wanted = {id(parameter) for parameter in router.parameters()}
    if trained != wanted:
        raise AssertionError(
            f"{len(trained - wanted)} tensors beside the router would be trained, {len(wanted - trained)} of it not"
        )
