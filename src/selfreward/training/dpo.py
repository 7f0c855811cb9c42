"""Direct preference optimisation of one round (paper section 2.4).

Start model + preference pairs -> a model folder. The reference is the start model itself, frozen: its log-probabilities
are taken once, from the very weights that training starts with, before the first step. So the sigmoid part of the first
loss must be ln 2; this is checked while training. With `nll_weight` above 0 the loss is the sigmoid part plus
`nll_weight` times the mean negative log-likelihood of the chosen answers' tokens. That mean is over all these tokens of an
optimizer step, so a long chosen answer weighs more than a short one; Iterative RPO (arXiv 2404.19733) takes it over each
answer first.
"""

from collections.abc import Sequence
from pathlib import Path

from selfreward.config import DpoConfig
from selfreward.training.common import (
    TrainContext,
    TrainResult,
    check_output,
    describe_rows,
    encode_rows,
    make_result,
    require_rows,
)
from selfreward.types import PreferencePair


def train_dpo(
    start: Path, pairs: Sequence[PreferencePair], output: Path, options: DpoConfig, context: TrainContext
) -> TrainResult:
    """Train the model in `start` on the pairs and store it, with its tokenizer, in `output`.

    Pairs longer than `options.max_length` or the model's context are dropped as `too_long`, pairs whose sides are the same
    tokens as `identical`. The same arguments with as many threads on the same CPU give the same weights, bit for bit, also
    when an earlier attempt was cut off and `context.keep` holds its checkpoint; a GPU is told to repeat its results, and the
    log says where it cannot. Raises TrainingError when no pair is left, when the first loss is not ln 2, when a loss or
    gradient is not finite, or when memory is full (then no model is stored); ConfigError when a model is random without
    dropout, ModelError when `start` cannot be used, UsageError when `output` is taken, StoppedError as `context.stop` does.
    """
    check_output(start, output)
    from selfreward.training import _trl  # torch and TRL take seconds to import

    base = _trl.load_base(start, options, context)
    rows, dropped = encode_rows(base.tokenizer, pairs, lambda pair: (pair.chosen, pair.rejected), base.limit)
    require_rows(rows, dropped, base.limit)
    chat = describe_rows(base.tokenizer, pairs, base.added)
    columns = {
        "prompt_ids": [row.prompt_ids for row in rows],
        "chosen_ids": [row.answers[0] for row in rows],
        "rejected_ids": [row.answers[1] for row in rows],
    }
    checkpoints = _trl.open_checkpoints("dpo", base, columns, options, context)
    if checkpoints and (done := checkpoints.finished(output)):
        return done
    with _trl.errors_told("dpo", options), _trl.workspace(base) as scratch:
        trainer = _trl.dpo_trainer(base, columns, options, scratch, context)
        history = _trl.fit(trainer, [row.length for row in rows], options, context, checkpoints)
    _trl.save(base, output)
    del trainer, base
    _trl.release()
    result = make_result(rows, dropped, history, options, chat)
    return checkpoints.finish(output, result) if checkpoints else result
