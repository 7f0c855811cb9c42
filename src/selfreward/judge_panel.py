"""One seat of a judge panel (`judge.panel`). Belongs to the tree in config.py."""

from pydantic import Field

from selfreward.section import Section


class PanelMember(Section):
    """Who votes, by which rubric, how often, and with which weight; what is left out is taken from `judge.*`."""

    model: str = ""
    """As `judge.model`; empty: `judge.model`."""
    rubric: str = ""
    """As `judge.rubric`; empty: `judge.rubric`. All rubrics of a panel have one scale."""
    num_votes: int = Field(default=0, ge=0)
    """Judgements sampled for each response; 0: `judge.num_votes`."""
    weight: float = Field(default=1.0, gt=0)
    """Share of the member's score in the panel's weighted mean."""
