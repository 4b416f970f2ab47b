"""A judge in this process: a language model whose next-token probabilities are read as scores, no sampling."""

from collections.abc import Mapping
from typing import Any

import orjson

from efficient_empathy.distill.judges import EXPECTED_VALUE, Answer, OnLost, Usage, send_again
from efficient_empathy.distill.local_backends import Backend, LocalModel, open_backend
from efficient_empathy.distill.questions import Criteria, SubjectT


class LocalJudge:
    """Answers one question at a time: forces the start of the JSON verdict and reads the next token's distribution."""

    concurrency = 1
    model = ""
    max_completion_tokens = 0

    def __init__(self, local: LocalModel, backend: Backend | None, method: str = EXPECTED_VALUE) -> None:
        self.name = local.name
        self._method = method
        self._local = local
        self._backend = backend

    @classmethod
    def load(cls, model: str, ask: bool = True, method: str = EXPECTED_VALUE) -> "LocalJudge":
        """Find the model and, if questions will be asked, load it.

        Args:
            model: a ``.gguf`` file, a folder with safetensors, or a Hub id.
            ask: False for a dry run: the model is named but not loaded.
            method: how probabilities become scores, as ``open_judge``.

        Raises:
            EmpathyError: the model cannot be found or read, or what runs it is not installed.
        """
        local = LocalModel.find(model)
        return cls(local, open_backend(local) if ask else None, method)

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The method and the model's weights: a file of the same name with other weights is another judge."""
        return {"method": self._method, "weights": self._local.digest}

    def describe(self) -> dict[str, Any]:
        """The judge, the hash of its weights and the method."""
        return {"name": self.name, **self.parameters}

    def ask(self, subject: SubjectT, criteria: Criteria[SubjectT], on_lost: OnLost = send_again) -> Answer:
        """Answer one question: the criteria say at which places of the answer the next token's distribution is read."""
        if self._backend is None:
            raise ValueError("this judge was opened to be named, not asked")
        backend = self._backend
        prompt = backend.render(criteria.prompt(subject))
        details, verdict = criteria.weigh(lambda given: backend.following(prompt + given))
        return Answer(_text(details), *verdict, Usage(backend.count(prompt)), backend.form)

    def stop(self) -> None:
        """Nothing to stop: a question takes one short computation."""

    def close(self) -> None:
        """Let go of the model."""
        self._backend = None


def _text(details: Mapping[str, Any]) -> str:
    return orjson.dumps(dict(details)).decode()
