"""Supervised fine-tuning (paper section 2.1 for IFT and EFT, section 3.3 for the positives-only control).

Start model + conversations with answers -> a model folder. The loss is the mean negative log-likelihood of the answers'
tokens, end-of-turn token included, over an optimizer step's batch; prompt tokens carry no loss.
"""

from collections.abc import Sequence
from pathlib import Path

from selfreward.config import OptimConfig
from selfreward.training.common import (
    SftExample,
    TrainContext,
    TrainResult,
    check_output,
    describe_rows,
    encode_rows,
    make_result,
    require_rows,
)

_NO_LOSS = -100
"""The label that PyTorch's cross-entropy, and TRL with it, leaves out."""


def train_sft(
    start: Path, examples: Sequence[SftExample], output: Path, options: OptimConfig, context: TrainContext
) -> TrainResult:
    """Fine-tune the model in `start` on the answers and store it, with its tokenizer, in `output`.

    Examples longer than `options.max_length` or the model's context are dropped as `too_long`. The same arguments with
    as many threads on the same CPU give the same weights, bit for bit, also when an earlier attempt was cut off and
    `context.keep` holds its checkpoint; a GPU is told to repeat its results, and the log says where it cannot. Raises
    TrainingError when no example is left, a loss or gradient is not finite, or memory is full (then no model is stored),
    ConfigError when a model is random without dropout, ModelError when `start` cannot be used, UsageError when `output` is
    taken, StoppedError as `context.stop` does.
    """
    check_output(start, output)
    from selfreward.training import _trl  # torch and TRL take seconds to import

    base = _trl.load_base(start, options, context)
    rows, dropped = encode_rows(base.tokenizer, examples, lambda example: (example.answer,), base.limit)
    require_rows(rows, dropped, base.limit)
    chat = describe_rows(base.tokenizer, examples, base.added)
    columns = {
        "input_ids": [row.prompt_ids + row.answers[0] for row in rows],
        "labels": [[_NO_LOSS] * len(row.prompt_ids) + row.answers[0] for row in rows],
    }
    checkpoints = _trl.open_checkpoints("sft", base, columns, options, context)
    if checkpoints and (done := checkpoints.finished(output)):
        return done
    with _trl.errors_told("sft", options), _trl.workspace(base) as scratch:
        trainer = _trl.sft_trainer(base, columns, options, context.seed, scratch)
        history = _trl.fit(trainer, [row.length for row in rows], options, context, checkpoints)
    _trl.save(base, output)
    del trainer, base
    _trl.release()
    result = make_result(rows, dropped, history, options, chat)
    return checkpoints.finish(output, result) if checkpoints else result
