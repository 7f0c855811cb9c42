"""Every file in configs/ loads, and what it names in the package exists."""

import pytest
from source_tree import ROOT

from selfreward.config import ProposeConfig, load_config
from selfreward.rubrics import load_rubric

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def test_there_are_configs():
    assert {"demo", "oasst-smoke", "paper"} <= {path.stem for path in CONFIGS}
    assert not [path for path in (ROOT / "configs").iterdir() if path not in CONFIGS], "only .yaml files are tested"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_loads(path):
    config = load_config(path)
    assert config.name == path.stem
    load_rubric(config.judge.rubric, "pointwise")
    load_rubric(config.eval.pairwise_rubric, "pairwise")
    load_rubric(config.propose.template, "propose")


def test_paper_config_is_the_papers_recipe():
    config = load_config(ROOT / "configs" / "paper.yaml")
    assert (config.mode, config.num_rounds) == ("self-rewarding", 2)
    assert (config.seed.num_ift, config.seed.num_eft, config.seed.num_heldout_prompts) == (3200, 1630, 256)
    for training, high, low in ((config.sft, 5.5e-6, 1.1e-6), (config.dpo, 1e-6, 1e-7)):
        assert (training.learning_rate, training.final_learning_rate) == (high, low)
        assert (training.batch_size, training.dropout) == (16, 0.1)
    assert (config.dpo.method, config.dpo.beta, config.dpo.nll_weight) == ("dpo", 0.1, 0)
    assert (config.sample.num_candidates, config.sample.temperature, config.sample.top_p) == (4, 0.7, 0.9)
    assert (config.judge.model, config.judge.rubric, config.judge.num_votes) == ("policy", "additive", 3)
    assert (config.judge.temperature, config.judge.top_p) == (0.7, 0.9)
    propose = config.propose
    assert (propose.num_seed_shots, propose.num_generated_shots, propose.temperature, propose.top_p) == (6, 2, 0.6, 0.9)
    assert (propose.max_rouge_l, propose.min_words, propose.max_words) == (0.7, 4, 150)
    assert propose.banned_words == ProposeConfig().banned_words
    assert "banned_words" in propose.model_fields_set, "a value of the recipe stands in the file, not in a default"
    assert config.pair.min_margin == 0
    assert config.replay.num_items == 0, "judge training inside rounds is not the paper's"
