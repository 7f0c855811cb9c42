"""How a way of scoring is chosen: families that need care, noise that stays, experts that are not there, memory."""

import pytest
import torch
from training_reference import (
    LLAMA_LIKE,
    SMALL,
    VOCABULARY,
    Log,
    context,
    dpo_options,
    examples,
    make_rows,
    pairs,
    sft_options,
    token_logps,
)

from selfreward.errors import ConfigError, TrainingError
from selfreward.training._base import errors_told, load_base, set_dropout
from selfreward.training._scoring import Scorer, check_quiet, make_scorer, settle_repeats
from selfreward.training.common import Row
from selfreward.training.dpo import train_dpo
from selfreward.training.sft import train_sft


def make_llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**LLAMA_LIKE)).eval()


def odd_model(family):
    import transformers as t

    torch.manual_seed(0)
    linear = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
    mamba = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_n_groups": 1}
    gpt = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
    opt = {"word_embed_proj_dim": 32, "ffn_dim": 48, "max_position_embeddings": 256, "layerdrop": 0.1}
    configs = {
        "opt": lambda: t.OPTConfig(**{**SMALL, "init_std": 0.3, **opt}),
        "seed-oss": lambda: t.SeedOssConfig(**LLAMA_LIKE, head_dim=8, residual_dropout=0.1),
        "starcoder2": lambda: t.Starcoder2Config(**LLAMA_LIKE, residual_dropout=0.1, embedding_dropout=0.1),
        "gpt-bigcode": lambda: t.GPTBigCodeConfig(**gpt, initializer_range=0.3),
        "phimoe": lambda: t.PhimoeConfig(**LLAMA_LIKE, num_local_experts=4, router_jitter_noise=0.1, input_jitter_noise=0.1),
        "llama4": lambda: t.Llama4TextConfig(**LLAMA_LIKE, intermediate_size_mlp=48, num_local_experts=2, head_dim=8),
        "doge": lambda: t.DogeConfig(**LLAMA_LIKE),
        "qwen3-next": lambda: t.Qwen3NextConfig(
            **LLAMA_LIKE, **linear, head_dim=8, num_experts=0, layer_types=["linear_attention", "full_attention"]
        ),
        "lfm2": lambda: t.Lfm2Config(**LLAMA_LIKE, layer_types=["conv", "full_attention"]),
        "falcon-h1": lambda: t.FalconH1Config(**LLAMA_LIKE, **mamba),
        "recurrent-gemma": lambda: t.RecurrentGemmaConfig(
            **{**SMALL, "num_hidden_layers": 3}, lru_width=32, attention_window_size=16, logits_soft_cap=2.0
        ),
    }
    return t.AutoModelForCausalLM.from_config(configs[family]())


@pytest.mark.parametrize("family", ["opt", "seed-oss", "starcoder2", "gpt-bigcode", "phimoe"])
def test_dropout_that_is_no_module_is_switched_off(family):
    model, rows = odd_model(family), make_rows(2)
    set_dropout(model, 0.0)
    scorer = make_scorer(model, rows, "cpu", Log().logger)
    check_quiet(scorer, rows, "cpu")
    model.train()
    batch = scorer.pack(rows)
    assert torch.equal(scorer.score(batch)[0], scorer.score(batch)[0])


def test_a_rate_reaches_dropout_that_is_no_module():
    model = odd_model("seed-oss")
    set_dropout(model, 0.25)
    rates = [module.residual_dropout for module in model.modules() if hasattr(module, "residual_dropout")]
    assert set(rates) == {0.25}
    opt = odd_model("opt")
    set_dropout(opt, 0.25)
    assert opt.model.decoder.layerdrop == 0  # a layer left out is no dropout


def test_noise_that_cannot_be_switched_off_is_refused_by_its_place():
    class Noisy(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) + (0.1 * torch.randn((*x.shape[:-1], self.out_features)) if self.training else 0.0)

    model, rows = make_llama(), make_rows(2)
    model.model.layers[1].mlp.up_proj.__class__ = Noisy
    scorer = make_scorer(model, rows, "cpu", Log().logger)
    with pytest.raises(ConfigError, match=r"dropout=0, but Noisy 'model\.layers\.1\.mlp\.up_proj' of this LlamaForCausalLM"):
        check_quiet(scorer, rows, "cpu")
    assert not model.training


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_trainings_without_dropout_refuse_noise(kind, tiny_model_dir, make_config, tmp_path, monkeypatch):
    monkeypatch.setattr("selfreward.training._trl.load_base", with_noise)
    start, train = (sft_options(num_epochs=1), train_sft) if kind == "sft" else (dpo_options(num_epochs=1), train_dpo)
    with pytest.raises(ConfigError, match="dropout=0, but Dropout '"):
        train(tiny_model_dir, examples() if kind == "sft" else pairs(), tmp_path / "out", start, context(make_config()))


def with_noise(start, options, ctx):
    base = load_base(start, options, ctx)
    layer = base.model.model.layers[0]
    layer.mlp = torch.nn.Sequential(layer.mlp, torch.nn.Dropout(0.3))
    return base


@pytest.mark.parametrize(("family", "way"), [("llama4", "plain"), ("doge", "packed"), ("qwen3-next", "compacted")])
def test_a_config_that_balances_experts_which_a_model_has_not(family, way):
    model, rows, log = odd_model(family), make_rows(2), Log()
    model.config.output_router_logits = True
    scorer = make_scorer(model, rows, "cpu", log.logger)
    assert (scorer.way, scorer.router_weight) == (way, 0.0)
    assert log.messages[0].startswith("this model's config asks for a loss that balances experts (router_aux_loss_coef=0.001)")
    logps, balance = scorer.score(scorer.pack(rows))
    assert balance is None
    assert torch.isfinite(logps).all()


@pytest.mark.parametrize("family", ["lfm2", "falcon-h1", "recurrent-gemma", "qwen3-next"])
def test_layers_that_mix_sequences_are_not_scored_packed(family):
    model, rows, log = odd_model(family).eval(), make_rows(2), Log()
    scorer = make_scorer(model, rows, "cpu", log.logger)
    assert scorer.way == "compacted"
    assert any("passes on what stands in one sequence to the next" in message for message in log.messages)
    with torch.no_grad():
        answers = [(row, row.answers[side]) for side in range(2) for row in rows]
        by_hand = torch.cat([token_logps(model, row.prompt_ids, answer) for row, answer in answers])
        assert torch.allclose(scorer.score(scorer.pack(rows))[0], by_hand, rtol=0, atol=1e-4)


def test_a_convolution_that_no_setting_names_is_found():
    model = make_llama()
    model.model.layers[0].self_attn.short = torch.nn.Conv1d(1, 1, 3)
    log = Log()
    assert make_scorer(model, make_rows(1), "cpu", log.logger).way == "compacted"
    assert "the convolution layers.0.self_attn.short" in log.messages[0]


def test_a_way_that_is_wrong_by_little_is_not_taken(monkeypatch):
    from selfreward.training import _scoring

    right = _scoring._logits
    monkeypatch.setattr(_scoring, "_logits", lambda model, hidden: right(model, hidden) * 1.0002)
    log = Log()
    assert make_scorer(make_llama(), make_rows(2), "cpu", log.logger).way == "plain"
    assert ["differ by" in message for message in log.messages] == [True, True]


# --- memory --------------------------------------------------------------------------------------------------------


def test_a_probe_computes_few_logits_at_a_time(monkeypatch):
    """The longest sequence is tried in full, but no more logits are there than for the tokens that are probed."""
    monkeypatch.setattr("selfreward.training._scoring._PROBED", 8)
    sizes, lengths = [], []
    model, rows = make_llama(), make_rows(2, longest=50)
    model.lm_head.register_forward_hook(lambda module, args, output: sizes.append(output.numel() // VOCABULARY))
    model.model.register_forward_hook(
        lambda module, args, kwargs, output: lengths.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    assert make_scorer(model, rows, "cpu", Log().logger).way == "packed"
    assert max(sizes) <= 4 * 8  # of two rows' two answers, eight tokens of each
    assert (1, rows[-1].length) in lengths


def test_without_a_choice_of_logits_rows_are_cut():
    from selfreward.training._scoring import _PROBED, _probes

    row = Row([5] * 900, ([6] * 800, [7] * 3))
    model = make_llama()
    cut, full = _probes(model, [row])
    assert [len(ids) for ids in (cut[0].prompt_ids, *cut[0].answers)] == [_PROBED, _PROBED, 3]
    assert (full[0].prompt_ids + full[0].answers[0], len(full[0].answers[0])) == (row.prompt_ids + row.answers[0], _PROBED)
    model.forward = lambda input_ids: None
    assert _probes(model, [row]) == [cut]


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_a_full_memory_names_the_settings_that_need_less(kind, tiny_model_dir, make_config, tmp_path, monkeypatch):
    from selfreward.training._trainers import OursMixin

    def full(self, *args, **kwargs):
        return torch.empty(1 << 60)

    monkeypatch.setattr(OursMixin, "training_step", full)
    start, train = (sft_options(), train_sft) if kind == "sft" else (dpo_options(), train_dpo)
    what = rf"no memory to train on {start.micro_batch_size} rows .*{kind}.micro_batch_size.*{kind}.gradient_checkpointing"
    with pytest.raises(TrainingError, match=what):
        train(tiny_model_dir, examples() if kind == "sft" else pairs(), tmp_path / "out", start, context(make_config()))
    assert not (tmp_path / "out").exists()


def test_a_full_memory_in_a_probe_is_no_reason_for_a_slower_way(monkeypatch):
    monkeypatch.setattr(Scorer, "score", lambda self, batch: torch.empty(1 << 60))
    with pytest.raises(RuntimeError, match=r"allocate memory|not enough memory"):
        make_scorer(make_llama(), make_rows(2), "cpu", Log().logger)


# --- results that repeat -------------------------------------------------------------------------------------------


class Unrepeatable(torch.nn.Linear):
    """A layer with an operation that PyTorch refuses where results must repeat, on any device."""

    def forward(self, x):
        found = super().forward(x)
        torch.zeros(2).put_(torch.tensor([0]), torch.tensor([1.0]))
        return found


@pytest.fixture
def strict():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_an_operation_that_cannot_repeat_is_told_and_allowed(strict):
    model, log = make_llama(), Log()
    settle_repeats(model, make_rows(2), "cpu", log.logger)
    assert (log.messages, torch.is_deterministic_algorithms_warn_only_enabled()) == ([], False)
    model.model.layers[1].mlp.up_proj.__class__ = Unrepeatable
    settle_repeats(model, make_rows(2), "cpu", log.logger)
    assert log.messages[0].startswith("training of this model may not repeat bit for bit on this device: put_")
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert all(weight.grad is None for weight in model.parameters())


def test_an_operation_that_is_met_too_late_stops_the_training(strict):
    layer = Unrepeatable(2, 2)
    with (
        pytest.raises(TrainingError, match=r"does not repeat its results on a GPU: put_.*engine\.device"),
        errors_told("sft", sft_options()),
    ):
        layer(torch.ones(1, 2))


def test_a_checkpoint_belongs_to_a_number_of_threads(tiny_model_dir, make_config, tmp_path, monkeypatch):
    from dataclasses import replace

    from selfreward.training import _trl

    ctx = replace(context(make_config()), keep=tmp_path / "keep")
    base = load_base(tiny_model_dir, sft_options(), ctx)
    columns = {"input_ids": [[1, 5]], "labels": [[-100, 5]]}
    one = _trl.open_checkpoints("sft", base, columns, sft_options(), ctx)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    other = _trl.open_checkpoints("sft", base, columns, sft_options(), ctx)
    assert one._identity["threads"] != other._identity["threads"] == 7
