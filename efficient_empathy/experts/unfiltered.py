"""A Lightning data module that makes its own subset: unfiltered dialogues in, the batches of an expert's training out."""

from pathlib import Path

from efficient_empathy.errors import EmpathyError
from efficient_empathy.experts.fitting import TrainingOptions, plan_rows
from efficient_empathy.experts.module import ResponseData
from efficient_empathy.experts.options import ExpertOptions
from efficient_empathy.experts.rendering import Renderer
from efficient_empathy.experts.subsets import Chosen, choose
from efficient_empathy.scorer.engine import run
from efficient_empathy.scorer.job import Job, RatesExamples, Route


class UnfilteredData(ResponseData):
    """What ``train-expert`` trains on, from data that nobody has filtered yet.

    ``prepare_data`` runs the job as ``ee-cli filter`` would, in one process a machine: bounded memory, as many workers as the job
    says, continued after a kill, at once when it has been done before. ``setup`` reads the subset from there, in every process,
    renders it and plans the steps. The batches are those of ``ee-cli filter`` followed by ``ee-cli train-expert``.

    Give the trainer ``max_epochs=1``, for all steps are one pass, ``accumulate_grad_batches=options.fit.accumulate`` and
    ``use_distributed_sampler=False``.
    """

    def __init__(
        self,
        job: Job,
        scorer: RatesExamples,
        policy: Route,
        subset: str,
        renderer: Renderer,
        options: ExpertOptions | None = None,
    ):
        """Say what is to be filtered and trained on.

        Args:
            job: the unfiltered inputs, and the folder that the subsets go to.
            scorer: rates the examples.
            policy: chooses the subset of each.
            subset: the policy's subset to train on.
            renderer: makes tokens of examples; of the base model's tokenizer.
            options: held-out share, control, seed, batches and steps; ``where.devices`` is how many ranks share a step.

        Raises:
            EmpathyError: the policy has no such subset.
        """
        if subset not in policy.subsets:
            raise EmpathyError(f"subset must be one of the policy's, {', '.join(policy.subsets)}, not '{subset}'.")
        super(ResponseData, self).__init__()  # rows, plan and steps are known in setup only
        self.job, self.scorer, self.policy, self.subset = job, scorer, policy, subset
        self.renderer = renderer
        self.options: ExpertOptions = options or ExpertOptions()
        self.chosen: Chosen | None = None
        """Training and held-out examples, once ``setup`` has run."""

    @property
    def folder(self) -> Path:
        """The subset's folder, which ``train-expert --data`` takes as well."""
        return self.job.out / self.subset

    def prepare_data(self) -> None:
        """Score and split whatever has not been split yet."""
        run(self.job, self.scorer, self.policy)

    def setup(self, stage: str | None = None) -> None:
        """Read the subset and plan the steps; once, whatever the stage."""
        if self.chosen is not None:
            return
        options: TrainingOptions = self.options
        chosen = choose([str(self.folder)], self.options.control, self.options.holdout, self.options.seed)
        found = plan_rows(chosen, self.renderer, options)
        self.train, self.held_out, self.plan, self.steps = found.train, found.held_out, found.plan, found.steps
        self.chosen = chosen
