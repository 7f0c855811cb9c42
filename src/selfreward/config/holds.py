"""What the rules of `rules` look at: each yields a line for each contradiction between valid settings.

A line names the settings with their values, why they do not go together, and which to change.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from selfreward.config.endpoints import endpoint_name, unknown_endpoint
from selfreward.config.players import POLICY

if TYPE_CHECKING:
    from selfreward.config.seed import SourceConfig
    from selfreward.config.tree import Config

Problems = Iterator[str]

# --- the model, the engine and who plays a role ------------------------------------------------------------------------


def start_is_trainable(config: "Config") -> Problems:
    if endpoint_name(config.model.path) is not None:
        yield (
            f"model.path={config.model.path!r}: an endpoint cannot be trained; give a model folder (roles may name endpoints)"
        )


def endpoints_exist(config: "Config") -> Problems:
    roles = {"judge.model": config.judge.model, "propose.model": config.propose.model}
    roles |= {f"judge.panel[{place}].model": seat.model for place, seat in enumerate(config.judge.panel) if seat.model}
    for setting, model in roles.items():
        if problem := unknown_endpoint(config.endpoints, setting, model):
            yield problem


def script_is_there(config: "Config") -> Problems:
    if config.engine.name == "scripted" and not config.engine.script:
        yield "engine.name=scripted needs engine.script"


def script_is_read(config: "Config") -> Problems:
    if config.engine.name != "scripted" and config.engine.script:
        yield (
            f"engine.script={config.engine.script!r} is not read with engine.name={config.engine.name}; "
            "set engine.name=scripted, or remove it"
        )


def vllm_is_used(config: "Config") -> Problems:
    if config.engine.name == "vllm":
        return
    usual = type(config.engine.vllm)()
    for name, value in config.engine.vllm:
        if value != getattr(usual, name):
            yield (
                f"engine.vllm.{name}={value} is not read with engine.name={config.engine.name}; set engine.name=vllm, or "
                "remove it"
            )


# --- seed data --------------------------------------------------------------------------------------------------------


def sources_are_there(config: "Config") -> Problems:
    if not config.seed.sources:
        yield "seed.sources must hold one source at least, such as [{format: lab}]"


def sources_have_paths(config: "Config") -> Problems:
    seed = config.seed
    open_ones = [source for source in seed.sources if source.format != "lab" and not source.path]
    if open_ones and not seed.path:
        yield f"a source of format {open_ones[0].format} in seed.sources needs a path; set its path, or seed.path"
    if seed.path and seed.sources and not open_ones:
        yield f"seed.path={seed.path!r} belongs to no source; set seed.sources=[{{format: auto}}] to read it"


def lab_has_no_path(config: "Config") -> Problems:
    for place, source in enumerate(config.seed.sources):
        if source.format == "lab" and source.path:
            yield (
                f"seed.sources[{place}].path={source.path!r} is not read with format=lab (the embedded micro-world); "
                "remove one of them"
            )


def some_response_fits(config: "Config") -> Problems:
    for place, source in enumerate(config.seed.sources):
        low, high = source.min_response_words, source.max_response_words
        if low is not None and high is not None and low > high:
            yield (
                f"seed.sources[{place}]: min_response_words={low} is above max_response_words={high}: no response fits; "
                "change either"
            )


def something_to_train_on(config: "Config") -> Problems:
    if config.seed.sources and all(source.split == "heldout" for source in config.seed.sources):
        yield "seed.sources have split=heldout all: nothing is left to train on; give a source split=auto or train"


def sources_differ(config: "Config") -> Problems:
    seen: dict[SourceConfig, int] = {}
    for place, source in enumerate(config.seed.sources):
        if source in seen:
            yield f"seed.sources[{place}] is the same as seed.sources[{seen[source]}]; remove one"
        seen.setdefault(source, place)


def eft_has_data(config: "Config") -> Problems:
    if config.mode == "no-eft" and config.replay.num_items:
        yield "replay.num_items needs EFT data, but mode=no-eft has none; set replay.num_items=0"


def enough_targets(config: "Config") -> Problems:
    if config.mode == "self-rewarding" and config.seed.num_eft and config.eft.min_targets > config.seed.num_eft:
        yield (
            f"eft.min_targets={config.eft.min_targets} is above seed.num_eft={config.seed.num_eft}, the most there can be; "
            "change either"
        )


# --- training ---------------------------------------------------------------------------------------------------------


def batches_divide(config: "Config") -> Problems:
    for name, options in (("sft", config.sft), ("dpo", config.dpo)):
        if options.batch_size % options.micro_batch_size:
            yield (
                f"{name}.batch_size={options.batch_size} is not a multiple of {name}.micro_batch_size="
                f"{options.micro_batch_size}; change either"
            )


def rates_fall(config: "Config") -> Problems:
    for name, options in (("sft", config.sft), ("dpo", config.dpo)):
        if options.final_learning_rate > options.learning_rate:
            yield (
                f"{name}.final_learning_rate={options.final_learning_rate} is above {name}.learning_rate="
                f"{options.learning_rate}; lower it"
            )


# --- a round ----------------------------------------------------------------------------------------------------------


def some_proposal_fits(config: "Config") -> Problems:
    propose = config.propose
    if propose.min_words > propose.max_words:
        yield (
            f"propose.min_words={propose.min_words} is above propose.max_words={propose.max_words}: no proposal fits; "
            "change either"
        )


def banned_words_are_words(config: "Config") -> Problems:
    if not all(word.strip() for word in config.propose.banned_words):
        yield "propose.banned_words holds an empty text; remove it"


def prompt_file_is_named(config: "Config") -> Problems:
    propose = config.propose
    if propose.source == "file" and not propose.path:
        yield "propose.source=file needs propose.path"
    if propose.source != "file" and propose.path is not None:
        yield f"propose.path={propose.path!r} is not read with propose.source={propose.source}; set propose.source=file"


def file_asks_nobody(config: "Config") -> Problems:
    if config.propose.source == "file" and config.propose.model != POLICY:
        yield f"propose.model={config.propose.model!r} is not asked with propose.source=file; remove one of them"


def enough_attempts(config: "Config") -> Problems:
    propose = config.propose
    if propose.max_attempts < propose.num_prompts:
        yield (
            f"propose.max_attempts={propose.max_attempts} is below propose.num_prompts={propose.num_prompts}: there cannot be "
            "that many; change either"
        )


def enough_prompts(config: "Config") -> Problems:
    if config.num_rounds and config.pair.min_pairs > config.propose.num_prompts:
        yield (
            f"pair.min_pairs={config.pair.min_pairs} is above propose.num_prompts={config.propose.num_prompts}: a prompt gives "
            "one pair at most; change either"
        )


# --- judging and measuring ----------------------------------------------------------------------------------------------


def votes_suffice(config: "Config") -> Problems:
    judge = config.judge
    for place, seat in enumerate(judge.members):
        name = f"judge.panel[{place}]" if judge.panel and judge.panel[place].num_votes else "judge"
        if judge.min_votes > seat.num_votes:
            yield (
                f"judge.min_votes={judge.min_votes} is above {name}.num_votes={seat.num_votes}; lower it or ask for more votes"
            )
            return


def heldout_votes_suffice(config: "Config") -> Problems:
    if config.judge.min_votes > config.eval.num_votes:
        yield (
            f"eval.num_votes={config.eval.num_votes} is below judge.min_votes={config.judge.min_votes}: no held-out response "
            "could get a score; raise eval.num_votes or lower judge.min_votes"
        )


def retries_differ(config: "Config") -> Problems:
    if config.judge.max_retries and config.judge.temperature == 0:
        yield (
            f"judge.max_retries={config.judge.max_retries} asks again, but with judge.temperature=0 the reply is always the "
            "same; change either"
        )


def seats_differ(config: "Config") -> Problems:
    seats = [(member.model, member.rubric) for member in config.judge.members]
    if twice := [seat for seat in seats if seats.count(seat) > 1]:
        yield f"judge.panel: model {twice[0][0]!r} with rubric {twice[0][1]!r} sits there twice; raise its num_votes"


def sampled_judgements_justify(config: "Config") -> Problems:
    if config.judge.mode == "sampled" and not config.judge.justify:
        yield "judge.justify=false needs judge.mode=expected: sampled judgements justify their scores"


def at_once_is_once(config: "Config") -> Problems:
    judge = config.judge
    if judge.mode == "sampled" or judge.justify:
        return
    votes = {"judge.num_votes": judge.num_votes, "eval.num_votes": config.eval.num_votes}
    votes |= {f"judge.panel[{number}].num_votes": seat.num_votes for number, seat in enumerate(judge.panel) if seat.num_votes}
    for name, number in votes.items():
        if number != 1:
            yield f"{name}={number}, but judge.justify=false samples nothing, so votes are equal; set {name}=1"
    if judge.max_retries:
        yield f"judge.max_retries={judge.max_retries}, but judge.justify=false samples nothing to try again; set it to 0"


def oracle_has_its_world(config: "Config") -> Problems:
    formats = [source.format for source in config.seed.sources]
    if config.eval.oracle and formats and "lab" not in formats:
        yield f"eval.oracle needs a seed source of format lab, got {', '.join(formats)}; set eval.oracle=false"


def oracle_is_on(config: "Config") -> Problems:
    if config.eval.head_to_head == "oracle" and not config.eval.oracle:
        yield "eval.head_to_head=oracle compares oracle scores; set eval.oracle=true, or another head_to_head"
