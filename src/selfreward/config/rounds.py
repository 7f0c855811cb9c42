"""What a round does before it trains: propose, sample, judge, pair."""

from typing import Literal

from pydantic import Field

from selfreward.config.players import POLICY
from selfreward.config.section import Section


class ProposeConfig(Section):
    """New prompts by self-instruct (paper section 2.2 and appendix A.1), or from a file."""

    source: Literal["self-instruct", "file"] = "self-instruct"
    """`self-instruct`: a model writes them. `file`: each round takes the next rows of `propose.path`; no model is asked."""
    path: str | None = None
    """For `file`: prompts, one a line (`.txt`) or as `prompt` or `instruction` in any file that seed sources read."""
    model: str = POLICY
    """`policy`, a local model folder, `endpoint:NAME`, or `scripted:NAME`."""
    template: str = "self_instruct"
    """A shipped template's name or a file; a chat template is one user turn, a completion one is continued as plain text."""
    num_prompts: int = Field(default=1000, ge=1)
    """Accepted new prompts a round (not reported in the paper)."""
    max_attempts: int = Field(default=20000, ge=1)
    """Stop after this many proposals (rows of the file) and go on with what was accepted."""
    num_seed_shots: int = Field(default=6, ge=1)
    """Demonstrations from the IFT prompts."""
    num_generated_shots: int = Field(default=2, ge=0)
    """Demonstrations from prompts that earlier proposals added; IFT prompts stand in until there are enough."""
    temperature: float = Field(default=0.6, ge=0)
    """Sampling temperature."""
    top_p: float = Field(default=0.9, gt=0, le=1)
    """Nucleus sampling mass."""
    max_tokens: int = Field(default=256, ge=1)
    """Longest proposal; one that reaches it is dropped as truncated."""
    max_rouge_l: float = Field(default=0.7, gt=0, le=1)
    """ROUGE-L F1 above this to any prompt in the pool rejects a proposal."""
    min_words: int = Field(default=4, ge=1)
    """Fewer words reject a proposal."""
    max_words: int = Field(default=150, ge=1)
    """More words reject a proposal."""
    banned_words: tuple[str, ...] = (
        "image", "images", "graph", "graphs", "picture", "pictures", "file", "files",
        "map", "maps", "draw", "plot", "go to",
    )  # fmt: skip
    """Words for what a text model cannot see or do; a proposal that holds one is rejected."""
    unsafe_words_file: str | None = None
    """A text file of words and phrases that no proposal may hold, one a line; lines that begin with `#` are comments."""
    ascii_start: bool = True
    """Reject a proposal that begins with a non-ASCII character (the paper's rule); set false for other scripts."""
    lang: str | None = None
    """Two- or three-letter code (`en`): reject a proposal that is clearly in another language. None lets all pass."""


class SampleConfig(Section):
    """Candidate responses (paper section 3.1: N = 4, T = 0.7, p = 0.9)."""

    num_candidates: int = Field(default=4, ge=2)
    """Responses sampled for each prompt."""
    temperature: float = Field(default=0.7, gt=0)
    """Sampling temperature."""
    top_p: float = Field(default=0.9, gt=0, le=1)
    """Nucleus sampling mass."""
    max_tokens: int = Field(default=1024, ge=1)
    """Longest response; a candidate that reaches it is dropped as truncated."""


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


class JudgeConfig(Section):
    """LLM-as-a-judge (paper section 2.1 and figure 2)."""

    model: str = POLICY
    """`policy` (self-rewarding), `m1` (the run's M1, frozen), a local model folder, a hub id (needs `model.allow_download`),
    `endpoint:NAME`, or `scripted:NAME` (`scripted:random`: the control)."""
    rubric: str = "additive"
    """A shipped rubric's name or a file."""
    num_votes: int = Field(default=3, ge=1)
    """Judgements sampled for each response (paper section 3.1: 3)."""
    min_votes: int = Field(default=1, ge=1)
    """A candidate with fewer valid votes leaves with the reason `too_few_votes`."""
    temperature: float = Field(default=0.7, ge=0)
    """Sampling temperature."""
    top_p: float = Field(default=0.9, gt=0, le=1)
    """Nucleus sampling mass."""
    max_tokens: int = Field(default=512, ge=1)
    """Longest judgement; one that reaches it without a verdict is a failed vote."""
    mode: Literal["sampled", "expected"] = "sampled"
    """`sampled`: a vote is the score that a sampled judgement says (the paper). `expected`: the mean of all legal scores, each
    weighed with the model's probability for it in that place. EFT targets and replay are always sampled."""
    justify: bool = True
    """For `expected`: weigh the scores behind a sampled justification; `false`: at once, with 1 as every `num_votes`."""
    min_mass: float = Field(default=0.5, ge=0, le=1)
    """For `expected`: a vote fails as `off_scale` where all legal scores together have less probability than this."""
    max_retries: int = Field(default=0, ge=0)
    """How often a failed vote is sampled again; its failed replies are kept. A prompt that is too long or withheld by a server
    is not asked again."""
    aggregate: Literal["mean", "median", "trimmed-mean"] = "mean"
    """A response's score from its valid votes; `trimmed-mean` leaves out one lowest and one highest of three or more."""
    panel: tuple[PanelMember, ...] = ()
    """Several judges or rubrics instead of one for the rounds' responses: the score is the weighted mean of the members', and
    each member needs `min_votes`. EFT, replay and evaluation go by `judge.rubric` alone."""

    @property
    def members(self) -> tuple[PanelMember, ...]:
        """Who judges in the rounds, with nothing left out: the panel, or the one judge."""
        own = {"model": self.model, "rubric": self.rubric, "num_votes": self.num_votes}
        return tuple(
            member.model_copy(update={name: value for name, value in own.items() if not getattr(member, name)})
            for member in self.panel or (PanelMember(),)
        )


class PairConfig(Section):
    """Preference pairs (paper section 2.3): chosen = highest mean score, rejected = lowest, equal scores = no pair."""

    min_margin: float = Field(default=0.0, ge=0)
    """The chosen score must exceed the rejected one by more than this."""
    min_pairs: int = Field(default=1, ge=0)
    """Fewer pairs stop the run; 0 lets a round go on with fewer: without any pair, of answers or
    judgements, it passes its model on unchanged."""
