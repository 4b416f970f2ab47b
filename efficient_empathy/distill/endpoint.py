"""Where an OpenAI-compatible judge is asked, with which key, and how the address can be shown."""

import os
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from efficient_empathy.distill.options import JudgeOptions
from efficient_empathy.errors import EmpathyError

NO_KEY = "no-key"
"""Sent to servers that ask for no key: they still want the header to be there."""
_OWN_HOST = "api.openai.com"
_DEFAULT_URL = f"https://{_OWN_HOST}/v1"


def base_url(options: JudgeOptions) -> str:
    """Where questions go: the option, else the client's own environment variable, else OpenAI.

    Raises:
        EmpathyError: it is no web address; the message does not show it, since it may hold a password.
    """
    url = options.base_url or os.environ.get("OPENAI_BASE_URL") or _DEFAULT_URL
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        source = "--base-url" if options.base_url else "the environment variable OPENAI_BASE_URL"
        raise EmpathyError(f"{source} is no web address; write it as http://HOST:PORT/v1.")
    return url


def is_own_service(options: JudgeOptions) -> bool:
    """Whether questions go to OpenAI itself, so that its list prices hold."""
    return urlsplit(base_url(options)).hostname == _OWN_HOST


def without_query(url: str) -> tuple[str, dict[str, str]]:
    """An address and its query, which goes with every request: gateways want a version or a key there."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(query="", fragment="")), dict(parse_qsl(parts.query, keep_blank_values=True))


def shown_url(url: str) -> str:
    """An address that can be shown: without user, password and query, where keys are sometimes put."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    return urlunsplit((parts.scheme, f"{host}:{parts.port}" if parts.port else host, parts.path.rstrip("/"), "", ""))


def api_key(options: JudgeOptions, url: str) -> str:
    """The key from the environment, or a placeholder for a server of one's own.

    Raises:
        EmpathyError: OpenAI is asked without a key, or the key was not copied as it is; the message does not show it.
    """
    key = os.environ.get(options.api_key_env, "").strip()
    if not key and urlsplit(url).hostname == _OWN_HOST:
        raise EmpathyError(
            f"no key: put it in the environment variable {options.api_key_env}, "
            "or name a server that needs none with --base-url."
        )
    if any(not 33 <= ord(character) <= 126 for character in key):
        raise EmpathyError(
            f"the key in {options.api_key_env} holds a blank or a character that is not plain ASCII. "
            "Was it copied as it is?"
        )
    return key or NO_KEY
