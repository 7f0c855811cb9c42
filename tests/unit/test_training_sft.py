import gc
import math
import shutil
import tempfile

import pytest
import torch
from training_reference import (
    context,
    dpo_options,
    examples,
    learning_rate,
    pairs,
    sft_options,
    train_sft_plainly,
    user,
    weights,
)

from selfreward.config import DpoConfig, SftConfig
from selfreward.errors import ConfigError, ModelError, TrainingError, UsageError
from selfreward.progress import NullProgress
from selfreward.storage import hash_model
from selfreward.training import SftExample
from selfreward.training.common import encode_rows
from selfreward.training.dpo import train_dpo
from selfreward.training.sft import train_sft

SEED = 2**62 + 5


@pytest.fixture
def trl_side():
    from selfreward.training import _trl

    return _trl


@pytest.fixture
def edited_model(tiny_model_dir, tmp_path):
    """`edited_model(edit)`: a copy of the tiny model whose weights `edit(model)` has changed."""

    def make(edit):
        from transformers import AutoModelForCausalLM

        folder = tmp_path / "edited"
        shutil.copytree(tiny_model_dir, folder)
        model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
        with torch.no_grad():
            edit(model)
        model.save_pretrained(folder)
        return folder

    return make


@pytest.mark.parametrize("weight_decay", [0.0, 5.0])
def test_losses_equal_a_plain_loop_and_settings_reach_the_optimizer(weight_decay, tiny_model_dir, make_config, tmp_path):
    options = sft_options(warmup_ratio=0.2, max_grad_norm=0.5, num_epochs=3, weight_decay=weight_decay)
    config = make_config()
    losses, model = train_sft_plainly(tiny_model_dir, examples(7), options, config, SEED)
    result = train_sft(tiny_model_dir, examples(7), tmp_path / "out", options, context(config, SEED))
    assert result.num_steps == len(losses) == 6  # 3 epochs of ceil(7 / 4) steps
    assert [entry["loss"] for entry in result.history] == pytest.approx(losses, abs=1e-4)
    assert [entry["lr"] for entry in result.history] == pytest.approx([learning_rate(options, step, 6) for step in range(6)])
    assert (result.first_loss, result.final_loss) == (result.history[0]["loss"], result.history[-1]["loss"])
    trained = weights(tmp_path / "out")
    for name, weight in model.named_parameters():
        assert torch.allclose(trained[name], weight, rtol=0, atol=1e-5), name


def test_uniform_model_has_the_loss_computed_by_hand(edited_model, make_config, tmp_path, tiny_tokenizer):
    folder = edited_model(lambda model: model.lm_head.weight.zero_())
    result = train_sft(folder, examples(4), tmp_path / "out", sft_options(num_epochs=1), context(make_config()))
    assert result.first_loss == pytest.approx(math.log(len(tiny_tokenizer)), abs=1e-5)


def test_loss_mask_token_by_token(tiny_model_dir, make_config, tmp_path, trl_side, tiny_tokenizer):
    items = [SftExample("a", user("Name three towns."), "There are seven"), SftExample("b", user("Hi"), "1")]
    options, ctx = sft_options(), context(make_config())
    base = trl_side.load_base(tiny_model_dir, options, ctx)
    rows, _ = encode_rows(base.tokenizer, items, lambda item: (item.answer,), base.limit)
    columns = {
        "input_ids": [row.prompt_ids + row.answers[0] for row in rows],
        "labels": [[-100] * len(row.prompt_ids) + row.answers[0] for row in rows],
    }
    trainer = trl_side.sft_trainer(base, columns, options, SEED, tmp_path)
    batch = trainer.scorer.pack(rows)
    collated = trainer.data_collator([trainer.train_dataset[index] for index in range(2)])
    assert all(
        torch.equal(value, collated[name]) for name, value in batch.as_inputs().items() if isinstance(value, torch.Tensor)
    )
    assert batch.input_ids[0].tolist() == [token for row in rows for token in row.prompt_ids] + batch.targets.tolist()
    assert batch.targets.tolist() == [token for row in rows for token in row.answers[0]]
    assert tiny_tokenizer.decode(batch.targets).count("<|im_end|>") == len(rows)
    before = [row.prompt_ids[-1:] + row.answers[0][:-1] for row in rows]  # each answer token is predicted by the one before it
    assert batch.input_ids[0, batch.readers].tolist() == [token for tokens in before for token in tokens]


def test_prompt_tokens_carry_no_loss(edited_model, make_config, tmp_path, tiny_tokenizer):
    """Tokens that occur in prompts only get no gradient through the output layer as targets: the model does not learn them."""
    start = edited_model(lambda model: model.lm_head.weight.zero_())
    items = [SftExample("e", user("Q" * 12), "a")]
    options = sft_options(num_epochs=30, batch_size=1, micro_batch_size=1, learning_rate=1e-2)
    train_sft(start, items, tmp_path / "out", options, context(make_config()))
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    (row,), _ = encode_rows(tiny_tokenizer, items, lambda item: (item.answer,), 100)
    with torch.no_grad():
        probabilities = model(torch.tensor([row.prompt_ids + row.answers[0]])).logits[0].softmax(-1)
    size = len(tiny_tokenizer)
    question = tiny_tokenizer.convert_tokens_to_ids("Q")
    assert probabilities[len(row.prompt_ids) - 1, row.answers[0][0]] > 0.5
    assert probabilities[4:8, question].max() < 1 / size  # between two Qs: not learnt


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(tiny_model_dir, make_config, tmp_path):
    config, options = make_config(), sft_options(dropout=0.1)
    for name, seed in (("a", SEED), ("b", SEED), ("c", SEED + 1)):
        train_sft(tiny_model_dir, examples(), tmp_path / name, options, context(config, seed))
    assert hash_model(tmp_path / "a") == hash_model(tmp_path / "b")
    assert (tmp_path / "a/model.safetensors").read_bytes() != (tmp_path / "c/model.safetensors").read_bytes()


def test_checkpointing_and_micro_batches_change_memory_not_results(tiny_model_dir, make_config, tmp_path):
    config = make_config()
    plain = train_sft(tiny_model_dir, examples(), tmp_path / "a", sft_options(), context(config))
    other = sft_options(gradient_checkpointing=True, micro_batch_size=1)
    frugal = train_sft(tiny_model_dir, examples(), tmp_path / "b", other, context(config))
    assert [e["loss"] for e in frugal.history] == pytest.approx([e["loss"] for e in plain.history], abs=1e-4)


def test_dropout_is_off_unless_asked_for(tiny_model_dir, make_config, tmp_path):
    config = make_config()
    plain, noisy = (
        train_sft(tiny_model_dir, examples(), tmp_path / str(rate), sft_options(dropout=rate), context(config))
        for rate in (0.0, 0.3)
    )
    assert abs(plain.first_loss - noisy.first_loss) > 1e-3
    losses, _ = train_sft_plainly(tiny_model_dir, examples(), sft_options(), config, SEED)
    assert plain.first_loss == pytest.approx(losses[0], abs=1e-4)


def test_dropout_reaches_modules_or_is_refused(trl_side):
    block = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5))
    trl_side.set_dropout(block, 0.0)
    assert block[1].p == 0
    with pytest.raises(ConfigError, match=r"dropout=0.1, but Linear has no dropout"):
        trl_side.set_dropout(torch.nn.Linear(2, 2), 0.1)
    trl_side.set_dropout(torch.nn.Linear(2, 2), 0.0)


def test_long_examples_are_dropped_and_counted_never_cut(tiny_model_dir, make_config, tmp_path):
    long = SftExample("long", user("Name three towns."), "north " * 60)
    options = sft_options(max_length=60, num_epochs=1)
    result = train_sft(tiny_model_dir, [*examples(4), long], tmp_path / "out", options, context(make_config()))
    assert result.num_examples == 4
    assert [(drop.id, drop.reason) for drop in result.dropped] == [("long", "too_long")]
    with pytest.raises(TrainingError, match="nothing to train on"):
        train_sft(tiny_model_dir, [long], tmp_path / "none", options, context(make_config()))
    assert not (tmp_path / "none").exists()


def test_the_models_context_limits_too(tiny_model_dir, make_config, tmp_path, trl_side):
    base = trl_side.load_base(tiny_model_dir, sft_options(max_length=4096), context(make_config()))
    assert base.limit == 1024  # max_position_embeddings of the tiny model
    assert trl_side.load_base(tiny_model_dir, sft_options(max_length=100), context(make_config())).limit == 100


def test_nan_weights_stop_before_the_first_step(edited_model, make_config, tmp_path):
    folder = edited_model(lambda model: model.model.layers[0].mlp.up_proj.weight.fill_(math.nan))
    with pytest.raises(TrainingError, match=r"loss is nan at step 1 of 4.*learning_rate"):
        train_sft(folder, examples(), tmp_path / "stage/checkpoint", sft_options(), context(make_config()))
    assert not (tmp_path / "stage").exists()


def test_an_infinite_gradient_stops_before_the_step(tiny_model_dir, make_config, tmp_path, trl_side):
    options, ctx = sft_options(), context(make_config())
    base = trl_side.load_base(tiny_model_dir, options, ctx)
    before = {name: weight.clone() for name, weight in base.model.named_parameters()}
    base.model.model.norm.weight.register_hook(lambda gradient: gradient * math.inf)
    columns = {"input_ids": [[1, 5, 6, 2]] * 4, "labels": [[-100, 5, 6, 2]] * 4}
    trainer = trl_side.sft_trainer(base, columns, options, SEED, tmp_path)
    with pytest.raises(TrainingError, match="gradient norm is inf at step 1"):
        trl_side.fit(trainer, [4] * 4, options, ctx)
    assert all(torch.equal(weight, before[name]) for name, weight in base.model.named_parameters())


def test_the_checkpoint_is_a_clean_model_folder(tiny_model_dir, make_config, tmp_path, capfd):
    output = tmp_path / "stage" / "checkpoint"
    before = hash_model(tiny_model_dir)
    train_sft(tiny_model_dir, examples(), output, sft_options(num_epochs=1), context(make_config()))
    names = sorted(file.name for file in output.iterdir())
    assert names == sorted(file.name for file in tiny_model_dir.iterdir())
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (output / name).read_bytes() == (tiny_model_dir / name).read_bytes(), name
    assert [file.name for file in output.parent.iterdir()] == ["checkpoint"]
    assert hash_model(tiny_model_dir) == before  # the start is only read
    assert capfd.readouterr() == ("", "")  # bars and prints are the progress's business


def test_an_earlier_model_is_replaced_and_other_folders_are_not(tiny_model_dir, make_config, tmp_path):
    output, options = tmp_path / "checkpoint", sft_options(num_epochs=1)
    shutil.copytree(tiny_model_dir, output)
    (output / "training_args.bin").touch()
    train_sft(tiny_model_dir, examples(), output, options, context(make_config()))
    assert not (output / "training_args.bin").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(UsageError, match="mine"):
        train_sft(tiny_model_dir, examples(), tmp_path / "mine", options, context(make_config()))


def test_a_vocabulary_that_does_not_fit_is_a_model_error(tiny_model_dir, make_config, tmp_path, trl_side):
    ctx = context(make_config())
    base = trl_side.load_base(tiny_model_dir, sft_options(), ctx)
    columns = {"input_ids": [[1, 9999]], "labels": [[-100, 9999]]}
    with pytest.raises(ModelError, match="token 9999"):
        trl_side.sft_trainer(base, columns, sft_options(), SEED, tmp_path)


def test_weights_stay_float32_whatever_generation_uses(tiny_model_dir, make_config, tmp_path):
    config = make_config(model={"dtype": "bfloat16"})
    train_sft(tiny_model_dir, examples(), tmp_path / "out", sft_options(num_epochs=1), context(config))
    assert {weight.dtype for weight in weights(tmp_path / "out").values()} == {torch.float32}


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_settings_reach_the_trainer(kind, tiny_model_dir, make_config, tmp_path, trl_side):
    settings = {
        "learning_rate": 3e-4, "final_learning_rate": 2e-5, "warmup_ratio": 0.1, "num_epochs": 5, "batch_size": 6,
        "micro_batch_size": 3, "weight_decay": 0.02, "max_grad_norm": 0.7, "gradient_checkpointing": True, "bf16": True,
    }  # fmt: skip
    options = (DpoConfig if kind == "dpo" else SftConfig)(**settings)
    base = trl_side.load_base(tiny_model_dir, options, context(make_config()))
    with trl_side.workspace(base) as scratch:
        if kind == "dpo":
            columns = {"prompt_ids": [[1]], "chosen_ids": [[5]], "rejected_ids": [[6]]}
            args = trl_side.dpo_trainer(base, columns, options, scratch, context(make_config(), 77)).args
        else:
            args = trl_side.sft_trainer(base, {"input_ids": [[1, 5]], "labels": [[-100, 5]]}, options, 77, scratch).args
    assert (args.learning_rate, args.lr_scheduler_kwargs["min_lr"], args.warmup_steps) == (3e-4, 2e-5, 0.1)
    assert (args.lr_scheduler_type, args.seed) == ("cosine_with_min_lr", 77)
    assert (args.num_train_epochs, args.per_device_train_batch_size, args.gradient_accumulation_steps) == (5, 3, 2)
    assert (args.weight_decay, args.max_grad_norm) == (0.02, 0.7)
    assert args.gradient_checkpointing is True
    assert args.bf16 is True


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_a_training_leaves_nothing_in_the_temporary_folder(kind, tiny_model_dir, make_config, tmp_path, monkeypatch):
    from datasets import fingerprint

    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(fingerprint, "_TEMP_DIR_FOR_TEMP_CACHE_FILES", None)  # one for the process, made when first needed
    if kind == "dpo":
        train_dpo(tiny_model_dir, pairs(), tmp_path / "out", dpo_options(num_epochs=1), context(make_config()))
    else:
        train_sft(tiny_model_dir, examples(), tmp_path / "out", sft_options(num_epochs=1), context(make_config()))
    assert list(temporary.rglob("*")) == []


def test_progress_advances_once_a_step(tiny_model_dir, make_config, tmp_path):
    from contextlib import contextmanager

    from selfreward.training import TrainContext

    class Counting(NullProgress):
        calls: tuple = ()

        @contextmanager
        def task(self, description, total):
            self.calls = (description, total, [])
            yield self.calls[2].append

    progress = Counting()
    train_sft(tiny_model_dir, examples(), tmp_path / "out", sft_options(), TrainContext(make_config(), SEED, progress))
    assert progress.calls == ("fine-tuning", 4, [1, 1, 1, 1])


def test_a_finished_training_holds_no_model(tiny_model_dir, make_config, tmp_path):
    from transformers import LlamaForCausalLM

    def count():
        return sum(issubclass(type(thing), LlamaForCausalLM) for thing in gc.get_objects())

    gc.collect()
    before = count()
    train_sft(tiny_model_dir, examples(), tmp_path / "out", sft_options(num_epochs=1), context(make_config()))
    assert count() == before


def test_a_launcher_is_refused(tiny_model_dir, make_config, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="WORLD_SIZE=2"):
        train_sft(tiny_model_dir, examples(), tmp_path / "out", sft_options(), context(make_config()))


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_a_machine_with_several_gpus_trains_on_one(kind, tiny_model_dir, make_config, tmp_path, monkeypatch):
    from transformers import TrainingArguments

    # As where two GPUs are visible: the count is two until someone sets another one.
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda args: args.__dict__.get("_n_gpu") or 2))
    if kind == "dpo":
        result = train_dpo(tiny_model_dir, pairs(), tmp_path / "out", dpo_options(num_epochs=1), context(make_config()))
    else:
        result = train_sft(tiny_model_dir, examples(), tmp_path / "out", sft_options(num_epochs=1), context(make_config()))
    assert result.num_steps == 2  # 6 rows in batches of 4, not in twice as large ones
