import math
from contextlib import contextmanager

import pytest
import torch
from training_reference import context, dpo_options, examples, pairs, sft_options, token_logps, train_dpo_plainly, user, weights

from selfreward.errors import TrainingError
from selfreward.progress import NullProgress
from selfreward.storage import hash_model
from selfreward.training import TrainContext
from selfreward.training._packing import Packed
from selfreward.training.common import encode_rows
from selfreward.training.dpo import train_dpo
from selfreward.training.sft import train_sft
from selfreward.types import PreferencePair

SEED = 2**62 + 5
LN2 = math.log(2)


@pytest.fixture
def make_trainer(tiny_model_dir, make_config, tmp_path):
    """`make_trainer(options)`: (module, base, rows, trainer) for six pairs on the tiny model."""
    from selfreward.training import _trl

    def make(options, folder=tiny_model_dir):
        base = _trl.load_base(folder, options, context(make_config()))
        rows, _ = encode_rows(base.tokenizer, pairs(), lambda pair: (pair.chosen, pair.rejected), base.limit)
        columns = {
            "prompt_ids": [row.prompt_ids for row in rows],
            "chosen_ids": [row.answers[0] for row in rows],
            "rejected_ids": [row.answers[1] for row in rows],
        }
        with _trl.workspace(base):
            return _trl, base, rows, _trl.dpo_trainer(base, columns, options, tmp_path, context(make_config(), SEED))

    return make


@pytest.mark.parametrize(("beta", "nll_weight", "weight_decay"), [(0.1, 0.0, 0.0), (0.5, 1.0, 0.0), (0.1, 0.0, 5.0)])
def test_losses_equal_a_plain_loop(beta, nll_weight, weight_decay, tiny_model_dir, make_config, tmp_path):
    options = dpo_options(beta=beta, nll_weight=nll_weight, weight_decay=weight_decay)
    config = make_config()
    losses, model = train_dpo_plainly(tiny_model_dir, pairs(), options, config, SEED)
    result = train_dpo(tiny_model_dir, pairs(), tmp_path / "out", options, context(config, SEED))
    assert result.num_steps == len(losses) == 4  # 2 epochs of ceil(6 / 4) steps
    assert [entry["loss"] for entry in result.history] == pytest.approx(losses, abs=1e-4)
    for entry in result.history:
        assert entry["loss"] == pytest.approx(entry["dpo_loss"] + nll_weight * entry["nll"], abs=1e-6)
    trained = weights(tmp_path / "out")
    for name, weight in model.named_parameters():
        assert torch.allclose(trained[name], weight, rtol=0, atol=1e-5), name


def test_micro_batches_give_the_same_dpo_losses(tiny_model_dir, make_config, tmp_path):
    config = make_config()
    losses, _ = train_dpo_plainly(tiny_model_dir, pairs(), dpo_options(), config, SEED)
    options = dpo_options(micro_batch_size=2)
    result = train_dpo(tiny_model_dir, pairs(), tmp_path / "out", options, context(config, SEED))
    assert [entry["loss"] for entry in result.history] == pytest.approx(losses, abs=1e-4)


def test_loss_computed_by_hand(make_trainer):
    """A uniform model gives n tokens the log-probability -n ln V; the rest is arithmetic."""
    _, base, _, trainer = make_trainer(dpo_options(beta=0.3, nll_weight=0.7))
    with torch.no_grad():
        base.model.lm_head.weight.zero_()
    rows = [
        {"prompt_ids": [1, 9], "chosen_ids": [5, 6, 2], "rejected_ids": [7, 8, 9, 10, 2], "ref_chosen_logps": -10.0,
         "ref_rejected_logps": -12.0},
    ]  # fmt: skip
    trainer._checked = True
    trainer.model.train()
    (inputs,), _ = trainer.get_batch_samples(iter([trainer.data_collator(rows)]), 1, "cpu")
    loss = trainer.compute_loss(trainer.model, inputs).item()
    ln_v = math.log(base.model.config.vocab_size)
    margin = (-3 * ln_v + 10) - (-5 * ln_v + 12)  # summed over tokens, end token included, not averaged
    by_hand = math.log(1 + math.exp(-0.3 * margin))
    assert loss == pytest.approx(by_hand + 0.7 * ln_v, abs=1e-4)
    logs = {}
    trainer.log(logs)
    assert logs["dpo_loss"] == pytest.approx(by_hand, abs=1e-4)
    assert logs["nll"] == pytest.approx(ln_v, abs=1e-4)
    assert logs["rewards/margins"] == pytest.approx(0.3 * margin, abs=1e-4)
    assert logs["rewards/accuracies"] == 1.0


def test_the_collator_keeps_our_tokens(make_trainer):
    _, _, rows, trainer = make_trainer(dpo_options())
    batch = Packed.of(trainer.data_collator([trainer.train_dataset[index] for index in range(len(rows))]))
    prompts = [token for row in rows for token in row.prompt_ids]
    answers = [token for side in (0, 1) for row in rows for token in row.answers[side]]
    assert batch.input_ids.tolist() == [prompts + answers]  # no padding, no prompt twice
    assert batch.targets.tolist() == answers
    assert batch.owners.tolist() == [
        side * len(rows) + index for side in (0, 1) for index, row in enumerate(rows) for _ in row.answers[side]
    ]


def test_the_reference_is_the_start_and_stays_it(make_trainer, make_config, tiny_model_dir, tmp_path):
    from transformers import AutoModelForCausalLM

    options = dpo_options()
    module, base, rows, trainer = make_trainer(options)
    start = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    with torch.no_grad():
        expected = [[token_logps(start, row.prompt_ids, answer).sum().item() for answer in row.answers] for row in rows]
    for _ in range(2):  # before and after training
        stored = trainer.train_dataset
        assert stored["ref_chosen_logps"][:] == pytest.approx([chosen for chosen, _ in expected], abs=1e-3)
        assert stored["ref_rejected_logps"][:] == pytest.approx([rejected for _, rejected in expected], abs=1e-3)
        if trainer.state.global_step == 0:
            with module.workspace(base):
                module.fit(trainer, [row.length for row in rows], options, context(make_config()))
    assert trainer.state.global_step == 4
    assert trainer.ref_model is None


def test_progress_is_seen_for_the_reference_and_for_the_steps(tiny_model_dir, make_config, tmp_path):
    tasks = []

    class Counting(NullProgress):
        @contextmanager
        def task(self, description, total):
            tasks.append((description, total, []))
            yield tasks[-1][2].append

    options = dpo_options(num_epochs=1, micro_batch_size=2)
    train_dpo(tiny_model_dir, pairs(5), tmp_path / "out", options, TrainContext(make_config(), SEED, Counting()))
    assert tasks == [("reference log-probabilities", 5, [2, 2, 1]), ("preference training", 2, [1, 1])]


@pytest.mark.parametrize(
    "changes", [{}, {"nll_weight": 1.0}, {"dropout": 0.3}, {"dropout": 0.3, "nll_weight": 1.0}, {"beta": 2.0}]
)
def test_first_loss_is_ln_2(changes, make_trainer, make_config):
    options = dpo_options(num_epochs=1, **changes)
    module, base, rows, trainer = make_trainer(options)
    with module.workspace(base):
        history = module.fit(trainer, [row.length for row in rows], options, context(make_config()))
    first = history[0]["dpo_loss"]
    if options.dropout:
        assert abs(first - LN2) > 1e-4  # noise; what was checked is the loss without it:
        assert trainer.start_loss == pytest.approx(LN2, abs=1e-4)
    else:
        assert first == pytest.approx(LN2, abs=1e-4)


def test_a_wrong_reference_stops_the_training(make_trainer, make_config):
    options = dpo_options(nll_weight=1.0)
    module, base, rows, trainer = make_trainer(options)
    with torch.no_grad():
        base.model.lm_head.weight.mul_(1.01)  # no longer the model that the reference came from
    with pytest.raises(TrainingError, match=r"first DPO loss is .* not ln 2"), module.workspace(base):
        module.fit(trainer, [row.length for row in rows], options, context(make_config()))


def test_each_round_starts_from_and_is_referenced_to_the_last_one(tiny_model_dir, make_config, tmp_path):
    """M1 by SFT, M2 from M1, M3 from M2, all in one process: every first loss is ln 2, every model another one."""
    ctx = context(make_config())
    train_sft(tiny_model_dir, examples(), tmp_path / "m1", sft_options(), ctx)
    folders = [tmp_path / "m1"]
    for name in ("m2", "m3"):
        result = train_dpo(folders[-1], pairs(), tmp_path / name, dpo_options(num_epochs=1), ctx)
        assert result.first_loss == pytest.approx(LN2, abs=1e-4)
        folders.append(tmp_path / name)
    assert len({hash_model(folder) for folder in [tiny_model_dir, *folders]}) == 4


def test_training_prefers_the_chosen_answers(tiny_model_dir, make_config, tmp_path):
    result = train_dpo(tiny_model_dir, pairs(), tmp_path / "out", dpo_options(num_epochs=10), context(make_config()))
    last = result.history[-1]
    assert last["rewards/accuracies"] == 1.0
    assert last["rewards/margins"] > 0.5
    assert result.final_loss < LN2 / 2


def test_beta_scales_the_rewards(tiny_model_dir, make_config, tmp_path):
    """Adam's first step hardly depends on beta, so the margin after it is beta times the same difference."""
    ctx = context(make_config())
    margins = []
    for beta in (0.1, 0.5):
        result = train_dpo(tiny_model_dir, pairs(), tmp_path / str(beta), dpo_options(num_epochs=1, beta=beta), ctx)
        margins.append(result.history[1]["rewards/margins"])
    assert margins[1] == pytest.approx(5 * margins[0], rel=0.05)


def test_the_same_seed_gives_the_same_bytes(tiny_model_dir, make_config, tmp_path):
    options = dpo_options(dropout=0.1, nll_weight=1.0, micro_batch_size=2)
    for name in ("a", "b"):
        train_dpo(tiny_model_dir, pairs(), tmp_path / name, options, context(make_config()))
    assert hash_model(tmp_path / "a") == hash_model(tmp_path / "b")


def test_unusable_pairs_leave_with_a_reason(tiny_model_dir, make_config, tmp_path):
    same = PreferencePair("same", user("Hi"), "equal", "equal", 5, 1, "c", "r")
    long = PreferencePair("long", user("Hi"), "short", "north " * 60, 5, 1, "c", "r")
    options = dpo_options(max_length=60, num_epochs=1)
    result = train_dpo(tiny_model_dir, [same, *pairs(), long], tmp_path / "out", options, context(make_config()))
    assert result.num_examples == 6
    assert [(drop.id, drop.reason) for drop in result.dropped] == [("same", "identical"), ("long", "too_long")]
    with pytest.raises(TrainingError, match=r"nothing to train on.*'identical': 1"):
        train_dpo(tiny_model_dir, [same], tmp_path / "none", options, context(make_config()))


def test_nan_weights_leave_no_checkpoint(tiny_model_dir, make_config, tmp_path):
    import shutil

    from transformers import AutoModelForCausalLM

    folder = tmp_path / "broken"
    shutil.copytree(tiny_model_dir, folder)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    model.save_pretrained(folder)
    with pytest.raises(TrainingError, match="loss is nan at step 1"):
        train_dpo(folder, pairs(), tmp_path / "out", dpo_options(), context(make_config()))
    assert not (tmp_path / "out").exists()


def test_bf16_and_float32_trainings_live_in_one_process(tiny_model_dir, make_config, tmp_path):
    ctx = context(make_config())
    for name, bf16 in (("half", True), ("full", False)):
        result = train_dpo(tiny_model_dir, pairs(), tmp_path / name, dpo_options(bf16=bf16, num_epochs=1), ctx)
        assert result.history[0]["dpo_loss"] == pytest.approx(LN2, abs=2e-2 if bf16 else 1e-4)
        assert {weight.dtype for weight in weights(tmp_path / name).values()} == {torch.float32}


def test_a_model_with_dropout_of_its_own_trains_without_it(tiny_tokenizer, make_config, tmp_path):
    """GPT-2 drops a tenth of everything by default; the plain recipe must not."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path / "gpt2"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 256, "initializer_range": 0.3}
        GPT2LMHeadModel(GPT2Config(vocab_size=len(tiny_tokenizer), bos_token_id=1, eos_token_id=2, **shape)).save_pretrained(
            folder
        )
    tiny_tokenizer.save_pretrained(folder)
    config, options = make_config(), dpo_options(num_epochs=1)
    losses, _ = train_dpo_plainly(folder, pairs(), options, config, SEED)
    result = train_dpo(folder, pairs(), tmp_path / "out", options, context(config, SEED))
    assert [entry["loss"] for entry in result.history] == pytest.approx(losses, abs=1e-4)
    saved = GPT2Config.from_pretrained(tmp_path / "out")
    assert saved.attn_pdrop == 0.1  # the model's own settings are stored as they were
