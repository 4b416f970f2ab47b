"""A judge behind an OpenAI-compatible server: one structured call a question, patient retries, hidden keys."""

import json
import re
import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from efficient_empathy.distill.endpoint import NO_KEY, api_key, base_url, shown_url, without_query
from efficient_empathy.distill.judges import Answer, NoAnswerError, OnLost, Usage, send_again
from efficient_empathy.distill.options import JudgeOptions
from efficient_empathy.distill.questions import Criteria, SubjectT
from efficient_empathy.distill.retries import Retries, reached
from efficient_empathy.errors import EmpathyError, require

_FORMATS = ("json_schema", "json_object", "text")
# Models that think first count their thoughts as part of the answer.
_MAX_TOKENS_THINKING = 4096
_BEARER = re.compile(r"(?i)(bearer\s+)[^\s\"',}]+")
_FORMAT_WORDS = re.compile(r"(?i)response.?format|json|schema|grammar|structured|guided")
_LENGTH_WORDS = re.compile(r"(?i)context.{0,20}(length|size|window)|too (long|large)|exceed_context")
_EXCERPT = 200
_CONNECT_S = 10.0
"""Longest wait for a connection; for an answer it is ``--timeout``."""
_SHORTEST_SECRET = 8
"""Shorter values of an address's query are in no answer that they would have to be taken out of but by chance."""


class OpenAIJudge:
    """Asks ``chat/completions``; what a server does not support is left out for good after its first refusal."""

    def __init__(self, model: str, client: Any, options: JudgeOptions, secrets: tuple[str, ...]) -> None:
        self.name = f"openai:{model}"
        self.model = model
        self.concurrency = options.concurrency
        self._client = client
        self._timeout = options.timeout
        self._retries = Retries(options.attempts)
        self._max_tokens = options.max_tokens
        self._secrets = secrets
        self._lock = threading.Lock()
        self._where = shown_url(str(client.base_url))
        self._format = 0
        self._temperature = True
        self._thinking = False

    @classmethod
    def connect(cls, model: str, options: JudgeOptions, ask: bool = True) -> "OpenAIJudge":
        """Set up the client; nothing is sent yet.

        Args:
            model: the model's name at the server.
            options: address, name of the key's environment variable, timeout, attempts and concurrency.
            ask: False for a dry run, which needs no key.

        Raises:
            EmpathyError: the key is missing or malformed, or the ``openai`` package is not installed.
        """
        openai = require("openai", "distill", "--judge openai:…")
        url = base_url(options)
        key = api_key(options, url) if ask else NO_KEY
        # The client would write the path of a request behind a query.
        bare, query = without_query(url)
        patience = openai.Timeout(options.timeout, connect=min(options.timeout, _CONNECT_S))
        client = openai.OpenAI(api_key=key, base_url=bare, default_query=query, timeout=patience, max_retries=0)
        held = [value for value in query.values() if len(value) >= _SHORTEST_SECRET]
        secrets = tuple(text for text in (key, urlsplit(url).password, *held) if text and text != NO_KEY)
        return cls(model, client, options, secrets)

    @property
    def parameters(self) -> Mapping[str, Any]:
        """What the answer depends on beside the question and the model; not the form that the server happens to support."""
        return {"temperature": 0}

    @property
    def max_completion_tokens(self) -> int:
        """The most tokens of one answer: more once the server has said that its model thinks first."""
        return max(_MAX_TOKENS_THINKING, self._max_tokens) if self._thinking else self._max_tokens

    def describe(self) -> dict[str, Any]:
        """The judge and where it is asked, without key or password."""
        return {"name": self.name, "base_url": self._where, **self.parameters}

    def stop(self) -> None:
        """Give up waiting between attempts."""
        self._retries.stop()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def ask(self, subject: SubjectT, criteria: Criteria[SubjectT], on_lost: OnLost = send_again) -> Answer:
        """Ask one question in one call, e.g. for all dimensions of a rubric."""
        import openai

        def send() -> Any:
            return self._send(subject, criteria)

        try:
            response = self._retries.run(send, on_lost)
        except openai.APIStatusError as error:
            raise self._status_problem(error) from None
        except openai.APIConnectionError as error:
            cause = self.scrub(str(error.__cause__ or error))
            if reached(error) and isinstance(error, openai.APITimeoutError):
                raise NoAnswerError("timeout", f"no answer within {self._timeout:g} s") from None
            if reached(error):
                raise NoAnswerError("connection-lost", cause[:_EXCERPT]) from None
            advice = "Is the server running, and is --base-url right?"
            raise EmpathyError(f"cannot reach the judge at {self._where}: {cause}. {advice}") from None
        except openai.APIError as error:
            raise NoAnswerError("bad-response", self.scrub(str(error))[:_EXCERPT]) from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            # The client's own JSON reader, on a body that is not JSON: it came as an answer, so it is kept as one.
            return Answer(self.scrub(str(getattr(error, "doc", error))), None, "bad-response", form=self._form())
        return self._read(response, criteria)

    def scrub(self, text: str) -> str:
        """Text from a server with the key taken out, in case it echoes what it was sent."""
        for secret in self._secrets:
            text = text.replace(secret, "[key]")
        return _BEARER.sub(r"\1[key]", text)

    def _send(self, subject: SubjectT, criteria: Criteria[SubjectT]) -> Any:
        import openai

        while True:
            tried = (self._format, self._temperature, self._thinking)
            try:
                return self._client.chat.completions.create(**self._request(subject, criteria))
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                if not self._leave_out(str(error), tried):
                    raise

    def _request(self, subject: SubjectT, criteria: Criteria[SubjectT]) -> dict[str, Any]:
        request: dict[str, Any] = {"model": self.model, "messages": criteria.prompt(subject)}
        if self._temperature:
            request["temperature"] = 0
        request["max_completion_tokens" if self._thinking else "max_tokens"] = self.max_completion_tokens
        form = _FORMATS[self._format]
        if form == "json_schema":
            schema = {"name": "verdict", "strict": True, "schema": criteria.json_schema()}
            request["response_format"] = {"type": form, "json_schema": schema}
        elif form == "json_object":
            request["response_format"] = {"type": form}
        return request

    def _leave_out(self, message: str, tried: tuple[int, bool, bool]) -> bool:
        """Ask for less of what the server has just refused; False when the refusal is about something else."""
        with self._lock:
            if tried != (self._format, self._temperature, self._thinking):
                # Another thread met the same refusal first.
                return True
            if "max_tokens" in message and not self._thinking and not _LENGTH_WORDS.search(message):
                self._thinking = True
            elif "temperature" in message.lower() and self._temperature:
                self._temperature = False
            elif _LENGTH_WORDS.search(message):
                return False
            elif _FORMAT_WORDS.search(message) and self._format + 1 < len(_FORMATS):
                self._format += 1
            else:
                return False
            return True

    def _status_problem(self, error: Any) -> EmpathyError | NoAnswerError:
        status = error.status_code
        where = self._where
        if status == 403:
            # As some services say that a text was found unfit; a key that may do nothing is refused each time.
            return NoAnswerError("http-403", "the text was found unfit, or the key may not be used for this")
        if status == 401:
            # The server's own words are left out: they may quote a part of the key.
            return EmpathyError(
                f"the judge at {where} refused the key (HTTP {status}). Check the key in the environment."
            )
        excerpt = " ".join(self.scrub(error.message or "").split())[:_EXCERPT]
        if status == 404:
            return EmpathyError(
                f"the judge at {where} does not know the model '{self.model}' or the address (HTTP 404): {excerpt}"
            )
        if error.code == "insufficient_quota" or status == 402:
            return EmpathyError(
                f"the account at {where} has no credit left (HTTP {status}): {excerpt}. "
                "What was answered is kept; run the same command again later."
            )
        if status in (400, 413, 422) and _LENGTH_WORDS.search(error.message or ""):
            return NoAnswerError("too-long", excerpt)
        return NoAnswerError(f"http-{status}", excerpt)

    def _form(self) -> str:
        return _FORMATS[self._format] + ("" if self._temperature else ", the server's own temperature")

    def _read(self, response: Any, criteria: Criteria[Any]) -> Answer:
        usage = _usage(response)
        choices = getattr(response, "choices", None)
        if not choices or getattr(choices[0], "message", None) is None:
            return Answer(self.scrub(str(response)), None, "no-choices", usage, self._form())
        message = choices[0].message
        refusal = getattr(message, "refusal", None)
        raw = self.scrub(message.content if isinstance(message.content, str) else refusal or "")
        cut_off = choices[0].finish_reason == "length"
        scores, reason = criteria.read(raw, cut_off)
        if scores is None and refusal:
            reason = "refused"
        elif scores is None and choices[0].finish_reason == "content_filter":
            reason = "content-filter"
        elif scores is None and cut_off:
            reason = "cut-off"
        return Answer(raw, scores, reason, usage, self._form())


def _usage(response: Any) -> Usage:
    usage = getattr(response, "usage", None)
    prompt = _count(usage, "prompt_tokens")
    cached = _count(getattr(usage, "prompt_tokens_details", None), "cached_tokens")
    return Usage(prompt, _count(usage, "completion_tokens"), min(cached, prompt))


def _count(counts: Any, name: str) -> int:
    # Servers differ: what is no count is taken as not counted.
    value = getattr(counts, name, None)
    return max(0, value) if isinstance(value, int) else 0
