"""The `endpoints` section: OpenAI-compatible servers that may play a role. A branch of the tree.

A role names one by `endpoint:NAME`. The API key is never part of a config: only the name of the environment variable that
holds it is, so that no config, log, record or report can show it.
"""

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, StringConstraints, field_validator

from selfreward.config.section import Section

ENDPOINT_PREFIX = "endpoint:"
"""A `model` value `endpoint:NAME` is answered by the server that `endpoints.NAME` describes."""
MAX_STOPS = 4
"""The API takes at most this many stop strings."""
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
"""Upper case, as such names are written: most keys hold a small letter."""

EndpointName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$")]


class EndpointConfig(Section):
    """One server that speaks the OpenAI API, and how much may be asked of it."""

    base_url: str
    """Where the API lies, without the last part of its paths: `http://127.0.0.1:8000/v1`. No user, password or query in it."""
    model: str = Field(min_length=1)
    """The model's name there, sent with every request."""
    api: Literal["chat", "completions"] = "chat"
    """`chat`: conversations, which the server templates; the judge needs it. `completions`: plain text, for completion
    templates of `propose`."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the API key, in capitals; none is sent without it."""
    context_length: int = Field(default=4096, ge=2)
    """Most tokens that the server takes for a prompt and its reply together."""
    max_tokens_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the chat API calls the longest reply; OpenAI's newer models know the second name only."""
    send_seed: bool = False
    """Send each request's seed (its lowest 31 bits). Servers may not know seeds, and few promise equal replies."""
    max_concurrency: int = Field(default=8, ge=1, le=1000)
    """Most requests on their way at a time; one that waits to be tried again counts."""
    timeout_s: float = Field(default=120.0, gt=0)
    """A request without a whole answer after this many seconds is tried again."""
    max_retries: int = Field(default=5, ge=0)
    """How often a request is tried again after a timeout, a lost connection, status 408, 409, 429 or 5xx, or an unreadable
    answer."""
    backoff_s: float = Field(default=1.0, gt=0)
    """Seconds before the first retry; doubled for each further one, shortened by up to half at random."""
    max_wait_s: float = Field(default=120.0, gt=0)
    """Longest wait before a retry. A server whose Retry-After asks for more stops the run."""
    max_requests: int | None = Field(default=None, ge=1)
    """Most HTTP requests of one stage, retries included, counted anew when a run is continued; null: no limit."""
    max_total_tokens: int | None = Field(default=None, ge=1)
    """No request is sent once the server has counted this many tokens (read and written) in one stage, counted anew when a
    run is continued; what is on its way then may go beyond. null: no limit. Needs a server that reports usage."""

    @field_validator("base_url")
    @classmethod
    def _is_plain_url(cls, url: str) -> str:
        """The messages do not repeat the URL: what is wrong may be a password in it."""
        try:
            parts = urlsplit(url)
            has_host = bool(parts.hostname) and (parts.port is None or parts.port > 0)
        except ValueError as error:
            raise ValueError("base_url is no URL; give one like http://127.0.0.1:8000/v1") from error
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ValueError("base_url must hold no user, password, query or fragment; name a key's variable in api_key_env")
        if parts.scheme not in ("http", "https") or not has_host or url != url.strip() or not url.isprintable():
            raise ValueError("base_url must be an http:// or https:// URL with a host, like http://127.0.0.1:8000/v1")
        return url.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _is_variable(cls, name: str | None) -> str | None:
        """The message does not repeat the value: it may be the key itself."""
        if name is not None and not _VARIABLE.fullmatch(name):
            raise ValueError(
                "api_key_env must be the name of an environment variable, in capitals (A-Z, 0-9, _), never the key itself"
            )
        return name


def endpoint_name(model: str) -> str | None:
    """NAME of `endpoint:NAME`, None for every other `model` value."""
    return model.removeprefix(ENDPOINT_PREFIX) if model.startswith(ENDPOINT_PREFIX) else None


def unknown_endpoint(endpoints: Mapping[str, EndpointConfig], setting: str, model: str) -> str | None:
    """What is wrong with a role's value that names an endpoint which nobody described; else None."""
    name = endpoint_name(model)
    if name is None or name in endpoints:
        return None
    near = difflib.get_close_matches(name, endpoints, n=1)
    hint = f"did you mean {ENDPOINT_PREFIX}{near[0]}? " if near else ""
    return f"{setting}={model!r} names no endpoint; {hint}endpoints knows: {', '.join(endpoints) or 'none'}"
