"""The `model` values of roles that are no path; see `endpoints` for `endpoint:NAME`."""

POLICY = "policy"
"""The `model` value that means: the live model of the round (self-rewarding)."""
FIRST = "m1"
"""The `judge.model` value that means: the run's own M1 in every round, frozen."""
SCRIPTED_PREFIX = "scripted:"
"""A `model` value `scripted:NAME` is answered by the scripted engine with that table."""
