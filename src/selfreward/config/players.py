"""The `model` values of roles that are no path; see `endpoints` for `endpoint:NAME`."""

POLICY = "policy"
"""The `model` value that means: the live model of the round (self-rewarding)."""
SCRIPTED_PREFIX = "scripted:"
"""A `model` value `scripted:NAME` is answered by the scripted engine with that table."""
