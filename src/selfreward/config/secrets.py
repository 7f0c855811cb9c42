"""Keys and values that look like a secret: a config holds none, and no message shows one."""

import re
from collections.abc import Iterator
from typing import Any

from selfreward.config.yaml_text import Path

ADVICE = "a config holds no secret: export it in an environment variable (an endpoint's is named in its api_key_env)"

_NAME = re.compile(
    r"(?i)(.*[_-])?(api_?key|key|secrets?|passwords?|passwd|pwd|(api|auth|access|bearer|hf)_?token|token|bearer)"
)
_VALUE = re.compile(
    r"\b(sk|rk|pk)-(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{16,}"  # OpenAI and others
    r"|\bhf_[A-Za-z0-9]{16,}"  # Hugging Face
    r"|\b(ghp|gho|ghs|ghu|github_pat|glpat)[_-][A-Za-z0-9_]{16,}"
    r"|\bxox[abps]-[A-Za-z0-9-]{10,}"
    r"|\bAKIA[0-9A-Z]{16}\b"
    r"|\bAIza[0-9A-Za-z_-]{30,}"
    r"|\b[Bb]earer\s+[A-Za-z0-9._-]{16,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|://[^/\s:@]+:[^/\s@]+@"  # user and password of a URL
)


def names_secret(key: str) -> bool:
    """Whether a setting of this name would hold a secret."""
    return _NAME.fullmatch(key) is not None


def secret_in(text: str) -> str | None:
    """What a text seems to hold, in words that do not show it; None where it looks harmless."""
    match = _VALUE.search(text)
    if match is None:
        return None
    return "a user and password" if match[0].startswith("://") else "a secret key"


def secret_values(value: Any, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Every text in a tree that looks like a secret: where it stands, and what it seems to hold. Keys count as texts."""
    if isinstance(value, str):
        if what := secret_in(value):
            yield path, what
    elif isinstance(value, dict):
        for key, item in value.items():
            if secret_in(key):
                yield path, "a secret key as the name of a setting"
            else:
                yield from secret_values(item, (*path, key))
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from secret_values(item, (*path, place))
