"""The table of rules: settings that contradict each other, each rule with a name. docs/config-checks.md is made of it.

A rule looks at valid values only; what it looks at, `holds` says.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from selfreward.config import holds

if TYPE_CHECKING:
    from selfreward.config.tree import Config


@dataclass(frozen=True, slots=True)
class Rule:
    """What must hold between settings. `reads`: the settings, dotted, that it looks at."""

    name: str
    says: str
    reads: tuple[str, ...]
    problems: "Callable[[Config], holds.Problems]"

    @property
    def sections(self) -> frozenset[str]:
        """The first parts of what it reads."""
        return frozenset(setting.partition(".")[0] for setting in self.reads)


@dataclass(frozen=True, slots=True)
class Broken:
    """A rule that does not hold, and why."""

    rule: Rule
    problem: str

    def __str__(self) -> str:
        return f"{self.problem} (rule {self.rule.name})"


def broken_rules(config: "Config", valid: frozenset[str] | None = None) -> list[Broken]:
    """All rules of the table that do not hold; with `valid`, of those alone that read nothing but these sections."""
    rules = [rule for rule in RULES if valid is None or rule.sections <= valid]
    return [Broken(rule, problem) for rule in rules for problem in rule.problems(config)]


RULES: tuple[Rule, ...] = (
    Rule("start-is-trainable", "The run's model is no endpoint.", ("model.path",), holds.start_is_trainable),
    Rule(
        "endpoints-exist",
        "Each `endpoint:NAME` of a role is described under `endpoints`.",
        ("judge.model", "judge.panel", "propose.model", "endpoints"),
        holds.endpoints_exist,
    ),
    Rule("script-is-there", "The scripted engine has a script.", ("engine.name", "engine.script"), holds.script_is_there),
    Rule(
        "script-is-read",
        "A script is named for the scripted engine alone.",
        ("engine.name", "engine.script"),
        holds.script_is_read,
    ),
    Rule("vllm-is-used", "Settings of vLLM are for that engine alone.", ("engine.name", "engine.vllm"), holds.vllm_is_used),
    Rule("sources-are-there", "There is a seed source.", ("seed.sources",), holds.sources_are_there),
    Rule(
        "sources-have-paths",
        "Each seed source has a path, its own or `seed.path`, and `seed.path` belongs to one.",
        ("seed.sources", "seed.path"),
        holds.sources_have_paths,
    ),
    Rule("lab-has-no-path", "The micro-world is read from no path.", ("seed.sources",), holds.lab_has_no_path),
    Rule(
        "some-response-fits",
        "A source's shortest response is no longer than its longest.",
        ("seed.sources",),
        holds.some_response_fits,
    ),
    Rule("something-to-train-on", "Not all seed sources are held out.", ("seed.sources",), holds.something_to_train_on),
    Rule("sources-differ", "No seed source is there twice.", ("seed.sources",), holds.sources_differ),
    Rule("eft-has-data", "Judge training in the rounds needs EFT data.", ("mode", "replay.num_items"), holds.eft_has_data),
    Rule(
        "enough-targets",
        "As many EFT targets as are needed may be kept.",
        ("mode", "eft.min_targets", "seed.num_eft"),
        holds.enough_targets,
    ),
    Rule(
        "batches-divide",
        "A batch is a whole number of micro-batches.",
        ("sft.batch_size", "sft.micro_batch_size", "dpo.batch_size", "dpo.micro_batch_size"),
        holds.batches_divide,
    ),
    Rule(
        "rates-fall",
        "The last learning rate is not above the first.",
        ("sft.learning_rate", "sft.final_learning_rate", "dpo.learning_rate", "dpo.final_learning_rate"),
        holds.rates_fall,
    ),
    Rule(
        "some-proposal-fits",
        "The shortest new prompt is no longer than the longest.",
        ("propose.min_words", "propose.max_words"),
        holds.some_proposal_fits,
    ),
    Rule("banned-words-are-words", "No banned word is empty.", ("propose.banned_words",), holds.banned_words_are_words),
    Rule(
        "prompt-file-is-named",
        "`propose.path` is there for `propose.source=file`, and only then.",
        ("propose.source", "propose.path"),
        holds.prompt_file_is_named,
    ),
    Rule(
        "file-asks-nobody",
        "Prompts from a file are proposed by no model.",
        ("propose.source", "propose.model"),
        holds.file_asks_nobody,
    ),
    Rule(
        "enough-attempts",
        "As many proposals may be made as prompts are wanted.",
        ("propose.max_attempts", "propose.num_prompts"),
        holds.enough_attempts,
    ),
    Rule(
        "enough-prompts",
        "A round has as many prompts as it needs pairs.",
        ("num_rounds", "pair.min_pairs", "propose.num_prompts"),
        holds.enough_prompts,
    ),
    Rule(
        "votes-suffice",
        "Each judge is asked for as many votes as a score needs.",
        ("judge.min_votes", "judge.num_votes", "judge.panel"),
        holds.votes_suffice,
    ),
    Rule(
        "heldout-votes-suffice",
        "Held-out responses get as many votes as a score needs.",
        ("judge.min_votes", "eval.num_votes"),
        holds.heldout_votes_suffice,
    ),
    Rule(
        "retries-differ",
        "Who asks again can get another reply.",
        ("judge.max_retries", "judge.temperature"),
        holds.retries_differ,
    ),
    Rule(
        "seats-differ",
        "No model sits in the panel twice with one rubric.",
        ("judge.panel", "judge.model", "judge.rubric"),
        holds.seats_differ,
    ),
    Rule(
        "judgements-justify",
        "Only expected scores go without a justification.",
        ("judge.mode", "judge.justify"),
        holds.sampled_judgements_justify,
    ),
    Rule(
        "at-once-is-once",
        "Scores without a justification are asked for once: they are always the same.",
        ("judge.mode", "judge.justify", "judge.num_votes", "judge.panel", "judge.max_retries", "eval.num_votes"),
        holds.at_once_is_once,
    ),
    Rule(
        "oracle-has-its-world",
        "The oracle knows the micro-world alone.",
        ("eval.oracle", "seed.sources"),
        holds.oracle_has_its_world,
    ),
    Rule(
        "oracle-is-on", "Comparisons by the oracle need its scores.", ("eval.head_to_head", "eval.oracle"), holds.oracle_is_on
    ),
)
"""Every rule. Where a rule needs files (a rubric, a model folder), it stands in `preflight`."""
