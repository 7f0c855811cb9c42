"""The whole configuration tree: YAML file + `a.b=c` overrides -> one frozen, validated `Config`.

Every field has a docstring, a default that is safe on a laptop, and is read by some code (a test checks).
Values that the paper fixes are in `configs/paper.yaml`, each with its section.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from yaml import YAMLError

from selfreward.errors import ConfigError

POLICY = "policy"
"""The `model` value that means: the live model of the round (self-rewarding)."""
SCRIPTED_PREFIX = "scripted:"
"""A `model` value `scripted:NAME` is answered by the scripted engine with that table."""


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, numbers are finite, values cannot change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class ModelConfig(Section):
    """The pretrained model that the run starts from (M0)."""

    path: str = "lab"
    """A local Hugging Face model folder, a hub id (needs `model.allow_download`), or `lab` for the embedded model."""
    allow_download: bool = False
    """Let Transformers fetch `model.path` from the hub; otherwise no network is used."""
    trust_remote_code: bool = False
    """Run Python code shipped inside the model folder. Off unless you trust its author."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Weights' type for generation; training on CPU always keeps float32 weights."""
    chat_template: str | None = None
    """A Jinja file that replaces the tokenizer's chat template; needed when the tokenizer has none."""


class EngineConfig(Section):
    """Who generates text, and with how much of the machine."""

    name: Literal["hf", "scripted"] = "hf"
    """`hf`: any Hugging Face causal LM, CPU or GPU. `scripted`: replies from a table, for tests."""
    script: str | None = None
    """For `scripted`: a JSON file of replies, or a built-in table's name."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes the GPU when there is one."""
    threads: int = Field(default=0, ge=0)
    """CPU threads for generation and training; 0 means all cores of the machine."""
    batch_size: int = Field(default=256, ge=1)
    """Most replies generated at a time."""
    chunk_size: int = Field(default=2048, ge=1)
    """Requests handed to the engine in one piece and committed together; a restart redoes at most one chunk."""


class SeedConfig(Section):
    """The human seed data: IFT pairs, EFT targets, held-out prompts and ranked sets."""

    source: Literal["files", "oasst", "lab"] = "lab"
    """`files`: a folder in selfreward's seed formats. `oasst`: an Open Assistant tree export. `lab`: the micro-world."""
    path: str | None = None
    """Folder (`files`) or `.jsonl`/`.jsonl.gz` file (`oasst`)."""
    num_ift: int = Field(default=3200, ge=1)
    """At most this many IFT pairs (paper section 3.1: 3,200)."""
    num_eft: int = Field(default=1630, ge=0)
    """At most this many EFT training targets (paper section 3.1: 1,630)."""
    num_heldout_prompts: int = Field(default=256, ge=1)
    """Held-out prompts for generation (paper section 3.2: 256)."""
    num_heldout_ranked: int = Field(default=190, ge=1)
    """Held-out ranked sets for judge quality (paper: 541 replies, 2.85 a prompt)."""
    heldout: Literal["dev", "test"] = "test"
    """Lab only: which held-out set to load. Choose settings on `dev`, report figures on `test`."""
    lang: str = "en"
    """Open Assistant only: language of the trees that are kept."""


class EftConfig(Section):
    """Building EFT targets from ranked replies with the SFT baseline as judge (paper section 3.1)."""

    samples: int = Field(default=3, ge=1)
    """Judgements sampled for each ranked reply; the first ones that agree with the human order are kept."""
    max_share: float = Field(default=0.4, gt=0, le=1)
    """No score may make up more than this share of the EFT targets (the paper down-samples score 4)."""
    min_targets: int = Field(default=1, ge=0)
    """Fewer EFT targets stop the run; 0 lets M1 train on those there are, without any on IFT alone."""


class OptimConfig(Section):
    """What SFT and DPO training share."""

    learning_rate: float = Field(default=5.5e-6, gt=0)
    """Peak learning rate."""
    final_learning_rate: float = Field(default=1.1e-6, ge=0)
    """Learning rate at the end of the cosine."""
    warmup_ratio: float = Field(default=0.0, ge=0, lt=1)
    """Share of the steps spent warming up (not reported in the paper)."""
    num_epochs: int = Field(default=1, ge=1)
    """Passes over the data (not reported in the paper)."""
    batch_size: int = Field(default=16, ge=1)
    """Examples (or pairs) an optimizer step."""
    micro_batch_size: int = Field(default=16, ge=1)
    """Examples (or pairs) in one forward pass; `batch_size` must be a multiple of it."""
    max_length: int = Field(default=2048, ge=8)
    """Longest prompt + answer in tokens; longer ones are dropped and counted, never cut."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradient clipping."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Attention dropout while training (the paper says dropout 0.1; Llama-like models have no other kind)."""
    gradient_checkpointing: bool = False
    """Trade compute for memory."""
    bf16: bool = False
    """bfloat16 autocast while training."""

    @model_validator(mode="after")
    def _batches_divide(self) -> "OptimConfig":
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size={self.batch_size} is not a multiple of micro_batch_size={self.micro_batch_size}; change either"
            )
        if self.final_learning_rate > self.learning_rate:
            raise ValueError(
                f"final_learning_rate={self.final_learning_rate} is above learning_rate={self.learning_rate}; lower it"
            )
        return self


class SftConfig(OptimConfig):
    """Supervised fine-tuning of the SFT baseline (IFT) and of M1 (IFT + EFT)."""


class DpoConfig(OptimConfig):
    """Preference training of one round."""

    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate (paper section 3.1: 1e-6)."""
    final_learning_rate: float = Field(default=1e-7, ge=0)
    """Learning rate at the end of the cosine (paper section 3.1: 1e-7)."""
    method: Literal["dpo", "positives-only"] = "dpo"
    """`positives-only` trains SFT on the chosen answers instead: the paper's control."""
    beta: float = Field(default=0.1, gt=0)
    """DPO temperature (paper section 3.1: 0.1)."""
    nll_weight: float = Field(default=0.0, ge=0)
    """Weight of the per-token NLL of the chosen answer (Iterative RPO, arXiv 2404.19733); 0 is plain DPO."""


class ReplayConfig(Section):
    """Judge training inside the rounds, from the EFT seed targets; an option that the paper does not have."""

    num_items: int = Field(default=0, ge=0)
    """EFT training items used again each round; 0 switches replay off (the paper's recipe)."""
    method: Literal["sft", "pairs"] = "sft"
    """`sft`: after DPO, fine-tune on the items' targets and the round's chosen answers. `pairs`: M_t judges the items again,
    and its right votes over its wrong ones join the round's preference pairs."""
    learning_rate: float = Field(default=5.5e-6, gt=0)
    """For `sft`: peak learning rate; the other optimizer settings are those of `sft.*`, with one epoch."""
    num_votes: int = Field(default=3, ge=1)
    """For `pairs`: votes sampled for each item; a vote whose score differs from the target's becomes the rejected one."""
    max_pairs_per_item: int = Field(default=1, ge=1)
    """For `pairs`: most judgement pairs made of one item."""
    min_score_gap: float = Field(default=1.0, gt=0)
    """For `pairs`: a vote must differ from the target's score by at least this to be rejected."""
    chosen: Literal["target", "vote"] = "vote"
    """For `pairs`: what is chosen over a wrong vote, the seed target, or the model's own vote with the target's score (the
    target where there is none)."""


class ProposeConfig(Section):
    """New prompts by self-instruct (paper section 2.2 and appendix A.1)."""

    model: str = POLICY
    """`policy`, a local model folder, or `scripted:NAME`."""
    template: str = "self_instruct"
    """A shipped template's name or a file; chat templates show the demonstrations in one user turn,
    completion templates are continued as plain text."""
    num_prompts: int = Field(default=1000, ge=1)
    """Accepted new prompts a round (not reported in the paper)."""
    max_attempts: int = Field(default=20000, ge=1)
    """Stop asking after this many proposals and go on with what was accepted."""
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

    @model_validator(mode="after")
    def _filters_let_something_pass(self) -> "ProposeConfig":
        if self.min_words > self.max_words:
            raise ValueError(f"min_words={self.min_words} is above max_words={self.max_words}: no proposal fits; change either")
        if not all(word.strip() for word in self.banned_words):
            raise ValueError("banned_words holds an empty text; remove it")
        return self


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


class JudgeConfig(Section):
    """LLM-as-a-judge (paper section 2.1 and figure 2)."""

    model: str = POLICY
    """`policy` (self-rewarding), a local model folder, or `scripted:NAME` (`scripted:random` is the control)."""
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
    """For `expected`: weigh the scores behind a sampled justification; `false`: at once, with 1 as both `num_votes`."""
    min_mass: float = Field(default=0.5, ge=0, le=1)
    """For `expected`: a vote fails as `off_scale` where all legal scores together have less probability than this."""

    @model_validator(mode="after")
    def _votes_suffice(self) -> "JudgeConfig":
        if self.min_votes > self.num_votes:
            raise ValueError(f"min_votes={self.min_votes} is above num_votes={self.num_votes}; lower it or ask for more votes")
        return self


class PairConfig(Section):
    """Preference pairs (paper section 2.3): chosen = highest mean score, rejected = lowest, equal scores = no pair."""

    min_margin: float = Field(default=0.0, ge=0)
    """The chosen score must exceed the rejected one by more than this."""
    min_pairs: int = Field(default=1, ge=0)
    """Fewer pairs stop the run; 0 lets a round go on with fewer: without any pair, of answers or
    judgements, it passes its model on unchanged."""


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

    @model_validator(mode="after")
    def _oracle_is_there(self) -> "EvalConfig":
        if self.head_to_head == "oracle" and not self.oracle:
            raise ValueError("eval.head_to_head=oracle compares oracle scores; set eval.oracle=true, or another head_to_head")
        return self


class Config(Section):
    """One run: every setting of every stage."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Names the run's folder, `<run_dir>/<name>`."""
    run_dir: str = "runs"
    """Where runs are kept."""
    random_seed: int = Field(default=0, ge=0)
    """All randomness of the run derives from this number."""
    mode: Literal["self-rewarding", "no-eft"] = "self-rewarding"
    """`no-eft` trains M1 on IFT alone: the paper's ablation."""
    num_rounds: int = Field(default=2, ge=0)
    """DPO rounds; 2 gives M3."""
    model: ModelConfig = ModelConfig()
    engine: EngineConfig = EngineConfig()
    seed: SeedConfig = SeedConfig()
    eft: EftConfig = EftConfig()
    sft: SftConfig = SftConfig()
    propose: ProposeConfig = ProposeConfig()
    sample: SampleConfig = SampleConfig()
    judge: JudgeConfig = JudgeConfig()
    pair: PairConfig = PairConfig()
    replay: ReplayConfig = ReplayConfig()
    dpo: DpoConfig = DpoConfig()
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _settings_agree(self) -> "Config":
        if self.seed.source != "lab" and self.eval.oracle:
            raise ValueError(f"eval.oracle needs seed.source=lab, got seed.source={self.seed.source}; set eval.oracle=false")
        if self.seed.source != "lab" and not self.seed.path:
            raise ValueError(f"seed.source={self.seed.source} needs seed.path")
        if self.engine.name == "scripted" and not self.engine.script:
            raise ValueError("engine.name=scripted needs engine.script")
        if self.judge.min_votes > self.eval.num_votes:
            raise ValueError(
                f"eval.num_votes={self.eval.num_votes} is below judge.min_votes={self.judge.min_votes}: no held-out response "
                "could get a score; raise eval.num_votes or lower judge.min_votes"
            )
        if self.mode == "no-eft" and self.replay.num_items:
            raise ValueError("replay.num_items needs EFT data, but mode=no-eft has none; set replay.num_items=0")
        return self


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `a.b=c` overrides, validate.

    Raises ConfigError naming every wrong key or value on a line of its own.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"config file {str(path)!r} does not exist")
    try:
        tree: Any = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {_one_line(error)}") from error
    if not OmegaConf.is_dict(tree):
        raise ConfigError(f"{path} must hold a mapping of settings at its top level")
    for override in overrides:
        if "=" not in override or override.startswith("="):
            raise ConfigError(f"override {override!r} must look like section.key=value")
        try:
            tree = OmegaConf.merge(tree, OmegaConf.from_dotlist([override]))
        except (YAMLError, OmegaConfBaseException) as error:
            raise ConfigError(f"override {override!r} does not fit: {_one_line(error)}") from error
    try:
        plain = OmegaConf.to_container(tree, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path} cannot be resolved: {_one_line(error)}") from error
    return parse_config(plain, origin=str(path))


def parse_config(tree: Any, origin: str = "config") -> Config:
    """Validate a plain mapping; see `load_config`."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(item) for item in error.errors()]
        raise ConfigError(f"{origin}: " + "; ".join(lines)) from error


def _explain(item: Any) -> str:
    """One pydantic error as one line: key, value, what is allowed, the nearest known key."""
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = _known_keys(item["loc"][:-1])
        near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known here: {', '.join(known)}"
        return f"unknown setting {key!r}{hint}"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "missing":
        return f"setting {key!r} is required"
    if not key or item["type"] == "value_error":
        return f"{key + ': ' if key else ''}{message}"
    return f"{key}={item['input']!r}: {message}"


def _known_keys(loc: Sequence[Any]) -> list[str]:
    section: Any = Config
    for part in loc:
        section = section.model_fields[part].annotation
    return list(section.model_fields)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
