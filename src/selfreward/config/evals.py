"""What is measured after every model."""

from typing import Literal

from pydantic import Field

from selfreward.config.section import Section


class EvalConfig(Section):
    """What is measured after every model; nothing here feeds training."""

    num_votes: int = Field(default=3, ge=1)
    """Judge votes for each held-out ranked response."""
    oracle: bool = False
    """Score responses with the micro-world's exact oracle; lab data only."""
    head_to_head: Literal["none", "oracle", "policy"] = "policy"
    """Who compares each model's responses with the previous model's; `policy` judges both orders."""
    pairwise_rubric: str = "pairwise"
    """For `eval.head_to_head=policy`: a shipped pairwise rubric's name or a file."""
    bootstrap_samples: int = Field(default=2000, ge=100)
    """Resamples behind each 95 % interval."""
