"""What runs a local judge: xllamacpp for GGUF files, transformers for the rest."""

import hashlib
import http.client
import importlib.util
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import orjson

from efficient_empathy.distill.judges import NoAnswerError
from efficient_empathy.environment import usable_cores
from efficient_empathy.errors import EmpathyError, require
from efficient_empathy.manifest import sha256_file

_CONTEXT_TOKENS = 4096
# Far more than the ten digits, since other words may stand between them.
_TOP_TOKENS = 64
_TIMEOUT_S = 600
_HASHED = ("*.safetensors", "config.json", "tokenizer*", "*.model", "chat_template*")
# Where a verdict is read: a number, or one capital letter that goes on to no word.
_VERDICT_TOKEN = re.compile(r" *(?:-?\d|-$|[A-Z](?![^\W\d_]))")

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class LocalModel:
    """A model and the hash that its answers are stored under."""

    name: str
    """``local:`` and the file's, folder's or Hub repository's name, without the path that led there."""
    source: str
    """Path or Hub id to load."""
    digest: str
    """SHA-256 over the weights and the tokenizer; for a Hub id, its name."""

    @property
    def is_gguf(self) -> bool:
        """Whether the model is one GGUF file."""
        return self.source.endswith(".gguf")

    @classmethod
    def find(cls, source: str, option: str = "--judge local") -> "LocalModel":
        """Look at what the user named; nothing is loaded.

        Args:
            source: a GGUF file, a folder with safetensors, or a Hub id.
            option: how the user named it, for messages.

        Raises:
            EmpathyError: it looks like a path, and there is nothing there that can be loaded.
        """
        path = Path(source).expanduser()
        if path.is_file() and path.suffix == ".gguf":
            return cls(f"local:{path.name}", str(path), sha256_file(path))
        if path.is_dir():
            files = sorted({file for pattern in _HASHED for file in path.glob(pattern) if file.is_file()})
            if not any(file.suffix == ".safetensors" for file in files):
                raise EmpathyError(f"{option}: '{source}' holds no .safetensors file; pickled weights are not loaded.")
            digest = hashlib.sha256()
            for file in files:
                digest.update(f"{file.name} {sha256_file(file)}\n".encode())
            return cls(f"local:{path.resolve().name}", str(path), digest.hexdigest())
        if path.exists() or source.endswith(".gguf") or source.startswith((".", "/", "~")) or source.count("/") > 1:
            message = f"{option}: '{source}' must be a .gguf file, a folder with safetensors or a Hub id"
            raise EmpathyError(f"{message}; {'it is something else' if path.exists() else 'there is nothing there'}.")
        return cls(f"local:{source}", source, source)


class Backend(Protocol):
    """Runs one model."""

    form: str

    def render(self, messages: Messages) -> str:
        """The prompt in the model's own chat format, up to where its answer starts."""
        ...

    def following(self, text: str) -> Mapping[str, float]:
        """The probability of each next token by its text; holds every likely one that starts a verdict."""
        ...

    def count(self, text: str) -> int:
        """Tokens of a text."""
        ...


def open_backend(local: LocalModel) -> Backend:
    """Load a model: a GGUF file with xllamacpp where it is installed, everything else with transformers."""
    if local.is_gguf and importlib.util.find_spec("xllamacpp") is not None:
        return LlamaBackend(local)
    if local.is_gguf:
        require("gguf", "llama", "--judge local:….gguf (xllamacpp, of the same extra, runs it faster)")
    require("transformers", "distill", "--judge local:…")
    return TransformersBackend(local)


class LlamaBackend:
    """xllamacpp's server in this process, on a free loopback port; it computes the shared start of prompts once."""

    form = "xllamacpp"

    def __init__(self, local: LocalModel) -> None:
        import xllamacpp

        parameters = xllamacpp.CommonParams()
        parameters.model.path = local.source
        parameters.n_ctx = _CONTEXT_TOKENS
        parameters.n_parallel = 1
        # Its threads wait for each other after every layer: one that has to share its core slows all of them down.
        parameters.cpuparams.n_threads = max(1, usable_cores() - 1)
        parameters.verbosity = -1
        parameters.warmup = False
        parameters.port = 0
        try:
            self._server = xllamacpp.Server(parameters)
        except RuntimeError as error:
            raise EmpathyError(f"--judge local: xllamacpp cannot load '{local.source}': {error}") from error
        self._address = urlsplit(self._server.listening_address)

    def render(self, messages: Messages) -> str:
        """The prompt; a model whose format knows no system role gets those words in the user's turn."""
        status, body = self._post("/apply-template", {"messages": list(messages)})
        if status != 200:
            status, body = self._post("/apply-template", {"messages": _merged(messages)})
        return str(self._expect(status, body)["prompt"])

    def following(self, text: str) -> Mapping[str, float]:
        """The most likely next tokens."""
        request = {"prompt": text, "n_predict": 1, "n_probs": _TOP_TOKENS, "temperature": 0, "cache_prompt": True}
        body = self._expect(*self._post("/completion", request))
        found: dict[str, float] = {}
        for item in body["completion_probabilities"][0]["top_logprobs"]:
            found[item["token"]] = found.get(item["token"], 0.0) + math.exp(item["logprob"])
        return found

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._expect(*self._post("/tokenize", {"content": text, "parse_special": True}))["tokens"])

    def _post(self, path: str, value: dict[str, Any]) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(self._address.hostname or "", self._address.port, timeout=_TIMEOUT_S)
        try:
            connection.request("POST", path, orjson.dumps(value), {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, orjson.loads(response.read())
        except (OSError, http.client.HTTPException, orjson.JSONDecodeError) as error:
            raise NoAnswerError("bad-response", f"xllamacpp: {error}") from error
        finally:
            connection.close()

    @staticmethod
    def _expect(status: int, body: Any) -> Any:
        if status == 200:
            return body
        problem = body.get("error", {}) if isinstance(body, dict) else {}
        reason = "too-long" if "context" in str(problem.get("type", "")) else f"http-{status}"
        raise NoAnswerError(reason, str(problem.get("message", body))[:200])


class TransformersBackend:
    """A causal language model under transformers; what two prompts share at their start is computed once."""

    form = "transformers"

    def __init__(self, local: LocalModel) -> None:
        import torch
        import transformers

        gguf = {"gguf_file": Path(local.source).name} if local.is_gguf else {}
        source = str(Path(local.source).parent) if local.is_gguf else local.source
        cuda = torch.cuda.is_available()
        options = {} if local.is_gguf else {"use_safetensors": True}
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(source, **gguf)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                source, dtype=torch.bfloat16 if cuda else torch.float32, **options, **gguf
            )
        except (OSError, ValueError) as error:
            first = str(error).split("\n", 1)[0]
            raise EmpathyError(f"--judge local: transformers cannot load '{local.source}': {first}") from error
        self._model = model.eval().to("cuda" if cuda else "cpu")
        self._limit = getattr(model.config, "max_position_embeddings", None) or _CONTEXT_TOKENS
        self._verdicts = {
            index: text
            for token, index in self._tokenizer.get_vocab().items()
            if _VERDICT_TOKEN.match(text := token.replace("Ġ", " ").replace("▁", " "))
        }
        self._ids: list[int] = []
        self._cache: Any = None

    def render(self, messages: Messages) -> str:
        """The prompt; without a chat format of the model's own, the messages one after the other."""
        from jinja2 import TemplateError

        if not self._tokenizer.chat_template:
            return (self._tokenizer.bos_token or "") + "\n\n".join(m["content"] for m in messages) + "\n\nAnswer: "
        options = {"tokenize": False, "add_generation_prompt": True}
        try:
            return str(self._tokenizer.apply_chat_template(list(messages), **options))
        except TemplateError:
            return str(self._tokenizer.apply_chat_template(_merged(messages), **options))

    def following(self, text: str) -> Mapping[str, float]:
        """The probability of every next token that starts a number or is a single capital letter."""
        import torch

        ids = self._encode(text)
        if len(ids) > self._limit:
            raise NoAnswerError("too-long", f"{len(ids)} tokens, the model reads {self._limit}")
        shared = self._shared(ids)
        with torch.inference_mode():
            part = torch.tensor([ids[shared:]], device=self._model.device)
            output = self._model(input_ids=part, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
            probabilities = output.logits[0, -1].float().softmax(-1).cpu().tolist()
        self._ids, self._cache = ids, output.past_key_values
        found: dict[str, float] = {}
        for index, token in self._verdicts.items():
            if index < len(probabilities):
                found[token] = found.get(token, 0.0) + probabilities[index]
        return found

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._encode(text))

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _shared(self, ids: list[int]) -> int:
        """Cut the cache back to what the new prompt shares with the last one, and return how many tokens that is."""
        layers = getattr(self._cache, "layers", [])
        shared = 0
        while shared < min(len(ids) - 1, len(self._ids)) and ids[shared] == self._ids[shared]:
            shared += 1
        # A sliding window has forgotten the start: it cannot be cut back.
        if shared == 0 or not layers or any(getattr(layer, "is_sliding", True) for layer in layers):
            self._cache = None
            return 0
        self._cache.crop(shared)
        return shared


def _merged(messages: Messages) -> list[dict[str, str]]:
    return [{"role": "user", "content": "\n\n".join(message["content"] for message in messages)}]
