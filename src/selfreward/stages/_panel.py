"""Who judges a round's responses: one judge, or the members of a panel (`judge.panel`)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfreward.artifacts import Artifact, Run
from selfreward.config import JudgeConfig, PanelMember
from selfreward.errors import ConfigError
from selfreward.judging import rubric_identity
from selfreward.rubrics import Rubric, load_rubric
from selfreward.stages._roles import Player, cast_role


@dataclass(frozen=True, slots=True)
class Judge:
    """One member: who votes, by which rubric. Its votes on a response are numbered from `first_vote` on."""

    seat: PanelMember
    player: Player
    rubric: Rubric
    first_vote: int

    @property
    def name(self) -> str:
        """What votes and records call it: `m1 additive`."""
        return f"{self.player.label} {self.rubric.name}"

    def section(self, config: JudgeConfig) -> Mapping[str, Any]:
        """What decides its votes beside the weights of the live model and `judge.*`."""
        return {
            "player": self.player.section,
            "rubric": rubric_identity(self.rubric, config),
            "num_votes": self.seat.num_votes,
            "weight": self.seat.weight,
        }

    @property
    def facts(self) -> Mapping[str, Any]:
        """The member for a record."""
        return {
            "member": self.name,
            "model": self.player.label,
            "rubric": self.rubric.name,
            "rubric_hash": self.rubric.content_hash,
            "language": self.rubric.language,
            "num_votes": self.seat.num_votes,
            "weight": self.seat.weight,
        }


def cast_panel(run: Run, policy: Artifact) -> list[Judge]:
    """The judges of a round whose live model is `policy`. Raises ConfigError as `panel_rubrics` does, and for two members
    whose votes could not be told apart."""
    return seat_panel(run.config.judge, lambda model: cast_role(model, policy, run.config, run.dir))


def seat_panel(config: JudgeConfig, cast: Callable[[str], Player]) -> list[Judge]:
    """The same for whoever `cast` takes for a member's `model`."""
    judges: list[Judge] = []
    for seat, rubric in zip(config.members, panel_rubrics(config), strict=True):
        player = cast(seat.model)
        judges.append(Judge(seat, player, rubric, sum(judge.seat.num_votes for judge in judges)))
    names = [judge.name for judge in judges]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"judge.panel has two members {twice[0]!r}; give their rubrics different names")
    return judges


def panel_rubrics(config: JudgeConfig) -> list[Rubric]:
    """The rubric of each member. Raises ConfigError for one that cannot be used, and for different scales.

    Scores are averaged over the members, and a point of one scale is not a point of another.
    """
    rubrics = [
        load_rubric(seat.rubric, "pointwise", f"judge.panel[{number}].rubric" if config.panel else "judge.rubric")
        for number, seat in enumerate(config.members)
    ]
    for rubric in rubrics:
        if rubric.scale != rubrics[0].scale:
            shown = [f"{item.name!r} ({item.scale[0]:g} to {item.scale[1]:g})" for item in (rubrics[0], rubric)]
            raise ConfigError(f"judge.panel: the rubrics {shown[0]} and {shown[1]} have different scales; a panel needs one")
    return rubrics


def roles_of(judges: Sequence[Judge]) -> dict[str, str]:
    """`judge` for a stage's roles: the model, or every member of a panel."""
    return {"judge": judges[0].player.label if len(judges) == 1 else " + ".join(judge.name for judge in judges)}
