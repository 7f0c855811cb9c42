"""Secrets that this process knows, and texts without them.

Whoever reads an API key from the environment says so here; whatever writes a text that may hold foreign words (a log, an error
file, a message) asks for it without the key. A server may repeat the key in any of its answers.
"""

import json
from urllib.parse import quote, quote_plus

HIDDEN = "***"
"""What stands where a secret stood."""
SHORTEST = 8
"""Shorter values are no secrets worth the name: taking `key` or `none` out of every text would spoil honest ones."""

_SECRETS: dict[str, None] = {}


def keep_secret(value: str) -> None:
    """From now on `hide` takes this value out, in every way in which JSON and URLs write it."""
    if len(value) < SHORTEST:
        return
    in_json = json.dumps(value)[1:-1]
    for form in (value, in_json, in_json.replace("/", r"\/"), quote(value, safe=""), quote(value), quote_plus(value)):
        _SECRETS[form] = None


def hide(text: str) -> str:
    """The text without any secret known so far."""
    for secret in sorted(_SECRETS, key=len, reverse=True):  # the longest first: one key may begin like another
        text = text.replace(secret, HIDDEN)
    return text


def holds_secret(text: str) -> bool:
    """Whether a text holds a secret known so far."""
    return any(secret in text for secret in _SECRETS)
