"""config: YAML + overrides -> one validated, frozen tree; wrong settings are named."""

from typing import get_args

import pytest
from pydantic import BaseModel, ValidationError

from selfreward.config import (
    Config,
    DpoConfig,
    JudgeConfig,
    OptimConfig,
    ProposeConfig,
    SampleConfig,
    SftConfig,
    load_config,
    parse_config,
)
from selfreward.errors import ConfigError
from selfreward.stages.seed import located_sources


def load(tmp_path, text, *overrides):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return load_config(path, overrides)


def test_defaults_and_the_papers_values():
    config = Config(name="x")
    assert config.judge.model == config.propose.model == "policy", "self-rewarding is the default"
    assert (SftConfig().learning_rate, SftConfig().final_learning_rate) == (5.5e-6, 1.1e-6)
    assert (DpoConfig().learning_rate, DpoConfig().final_learning_rate, DpoConfig().beta) == (1e-6, 1e-7, 0.1)
    assert (SampleConfig().num_candidates, SampleConfig().temperature, SampleConfig().top_p) == (4, 0.7, 0.9)
    assert (JudgeConfig().num_votes, JudgeConfig().temperature, JudgeConfig().top_p) == (3, 0.7, 0.9)
    shots = ProposeConfig()
    assert (shots.num_seed_shots, shots.num_generated_shots, shots.temperature, shots.top_p) == (6, 2, 0.6, 0.9)
    assert (shots.max_rouge_l, shots.min_words, shots.max_words) == (0.7, 4, 150)
    assert config.replay.num_items == 0
    assert config.dpo.nll_weight == 0


def test_every_field_has_a_docstring():
    def walk(section):
        for name, field in section.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                walk(field.annotation)
            else:
                assert field.description, f"{section.__name__}.{name}"
                for item in get_args(field.annotation):
                    if isinstance(item, type) and issubclass(item, BaseModel):
                        walk(item)

    walk(Config)


def test_overrides_come_last_and_are_typed(tmp_path):
    text = "name: a\ndpo: {beta: 0.2}\n"
    config = load(tmp_path, text, "dpo.beta=0.5", "num_rounds=3", "seed.sources=[{}]", "seed.path=x")
    assert (config.dpo.beta, config.num_rounds, config.seed.path, config.eval.oracle) == (0.5, 3, "x", False)
    assert load(tmp_path, text, "propose.banned_words=[a,b]").propose.banned_words == ("a", "b")
    assert load(tmp_path, text, "dpo={beta: 0.3}").dpo.beta == 0.3


def test_seed_path_fills_in_where_a_source_has_none(tmp_path):
    sources = "seed.sources=[{path: a, format: alpaca}, {role: ranked}, {format: lab}]"
    located = located_sources(load(tmp_path, "name: a\n", sources, "seed.path=b").seed)
    assert [(source.path, source.format) for source in located] == [("a", "alpaca"), ("b", "auto"), ("", "lab")]
    assert located_sources(Config(name="x").seed)[0].format == "lab"


def test_settings_cannot_change_after_loading():
    with pytest.raises(ValidationError):
        Config(name="x").num_rounds = 3


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["dpo.bta=1"], ["unknown setting 'dpo.bta'", "did you mean 'beta'"]),
        (["rounds=1"], ["unknown setting 'rounds'", "did you mean 'num_rounds'"]),
        (["zzz=1"], ["unknown setting 'zzz'", "known here: name"]),
        (["dpo.beta=-1"], ["dpo.beta=-1", "must be above 0"]),
        (["dpo.beta=many"], ["dpo.beta='many'"]),
        (["sample.top_p=1.5"], ["sample.top_p=1.5 must be at most 1"]),
        (["mode=none"], ["mode='none' must be one of self-rewarding, no-eft"]),
        (["name=a/b"], ["name='a/b'"]),
        (["name=.."], ["name='..'"]),
        (["sft.batch_size=10", "sft.micro_batch_size=4"], ["sft.batch_size=10 is not a multiple of sft.micro_batch_size=4"]),
        (["dpo.final_learning_rate=1"], ["dpo.final_learning_rate=1.0 is above dpo.learning_rate"]),
        (["judge.num_votes=2", "judge.min_votes=3"], ["judge.min_votes=3 is above judge.num_votes=2"]),
        (["seed.sources=[{format: alpaca}]"], ["a source of format alpaca in seed.sources needs a path", "seed.path"]),
        (["seed.sources=[{path: x}, {}]"], ["a source of format auto in seed.sources needs a path"]),
        (["seed.path=x"], ["seed.path='x' belongs to no source", "seed.sources=[{format: auto}]"]),
        (["seed.sources=[]"], ["seed.sources must hold one source at least"]),
        (["seed.sources=[{format: csv}]"], ["seed.sources[0].format='csv'", "oasst-trees"]),
        (["seed.sources=[{},{roll: ift}]", "seed.path=x"], ["unknown setting 'seed.sources[1].roll'", "did you mean 'role'"]),
        (["seed.source=lab"], ["unknown setting 'seed.source'", "did you mean 'sources'"]),
        (["seed.max_overlap=1.1"], ["seed.max_overlap=1.1 must be at most 1"]),
        (["seed.sources=[{}]", "seed.path=x", "eval.oracle=true"], ["eval.oracle", "format lab", "got auto"]),
        (["seed.sources=[{path: x}]", "eval={oracle: true, head_to_head: oracle}"], ["eval.oracle", "format lab"]),
        (["engine.name=scripted"], ["engine.script"]),
        (["eval.head_to_head=oracle"], ["eval.head_to_head=oracle", "set eval.oracle=true"]),
        (["judge.min_votes=3", "eval.num_votes=2"], ["eval.num_votes=2", "judge.min_votes=3"]),
        (["propose.min_words=9", "propose.max_words=8"], ["propose.min_words=9 is above propose.max_words=8"]),
        (["propose.banned_words=[a,'']"], ["propose.banned_words holds an empty text"]),
        (["propose.banned_words=[' ']"], ["banned_words holds an empty text"]),
        (["dpo.beta=.inf"], ["dpo.beta=inf", "finite"]),
        (["pair.min_margin=.nan"], ["pair.min_margin=nan", "finite"]),
        (["mode=no-eft", "replay.num_items=3"], ["replay.num_items=0"]),
        (["dpo.beta=-1", "zzz=1"], ["dpo.beta=-1", "'zzz'"]),
        (["dpo=3"], ["dpo=3 must be a mapping of settings"]),
    ],
)
def test_wrong_settings_are_named(tmp_path, overrides, parts):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "name: a\n", *overrides)
    for part in parts:
        assert part in str(caught.value)
    assert str(caught.value).startswith("command line: ")
    assert "c.yaml" not in str(caught.value)


@pytest.mark.parametrize("source", ["{format: csv}", "{path: x, cap: 0}", "{path: x, roll: ift}"])
def test_a_wrong_source_is_said_once(tmp_path, source):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "name: a\n", f"seed.sources=[{source}]")
    assert str(caught.value).count("seed.sources") == 1
    assert "at least one" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "not valid YAML"),
        ("- a\n- b\n", "mapping of settings"),
        ("num_rounds: 1\n", "setting 'name' is required"),
        ("name: ${nowhere}\n", "nowhere"),
    ],
)
def test_wrong_files_are_named(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, text)


@pytest.mark.parametrize("override", ["dpo.beta", "=1", ""])
def test_overrides_that_are_none(tmp_path, override):
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        load(tmp_path, "name: a\n", override)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        load_config(tmp_path / "nowhere.yaml")


def test_a_plain_mapping_is_validated_as_well():
    assert parse_config({"name": "x"}) == Config(name="x")
    with pytest.raises(ConfigError, match="unknown setting"):
        parse_config({"name": "x", "nam": 1})


def test_a_config_survives_json():
    config = Config(name="x", propose=ProposeConfig(banned_words=("a",)))
    assert Config.model_validate(config.model_dump(mode="json")) == config


def test_sft_and_dpo_share_their_settings():
    assert issubclass(SftConfig, OptimConfig)
    assert issubclass(DpoConfig, OptimConfig)
