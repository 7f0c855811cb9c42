"""What tests of resumed trainings share: trainings that are cut off, and the ones that are not."""

from contextlib import contextmanager

from steps_bench import Calling
from training_reference import Log, dpo_options, examples, pairs, sft_options

from selfreward.stopping import Stop
from selfreward.storage import hash_model
from selfreward.training import TrainContext
from selfreward.training.dpo import train_dpo
from selfreward.training.sft import train_sft

SEED = 2**62 + 5
NUM_STEPS = 6
"""Two epochs of ceil(9 / 4) steps; the last step of an epoch holds a single row."""
EVERY_STEP = {"every_seconds": 0, "max_share": 1.0}
NEVER = {"every_seconds": None}


class Steps:
    """Progress that keeps what was said, and calls `then` once `after` items of a task that is `of` these are done."""

    def __init__(self, after=0, then=None, of=("fine-tuning", "preference training")):
        self.tasks, self.said = [], []
        self.after, self.then, self._of = after, then, of

    @contextmanager
    def task(self, description, total):
        calls = []
        self.tasks.append((description, calls))

        def advance(count):
            calls.append(count)
            if self.then and sum(calls) == self.after and any(name in description for name in self._of):
                self.then()

        yield Calling(advance)

    def say(self, text):
        self.said.append(text)


class Bench:
    """Trainings of one kind from one start. The rows, dropout and small batches make every state matter."""

    def __init__(self, kind, start, folder, make_config):
        self.kind, self.start, self.folder, self._make_config = kind, start, folder, make_config
        self.keep = folder / "keep"
        self.log = Log()
        self.changes = {"dropout": 0.3, "micro_batch_size": 2, "weight_decay": 0.1, "warmup_ratio": 0.2}

    def train(self, name="out", checkpoints=NEVER, progress=None, stop=None, keep=True, seed=SEED, **changes):
        """Train into the folder `name`; returns the result."""
        context = TrainContext(
            self._make_config(checkpoints=checkpoints),
            seed,
            progress or Steps(),
            stop or Stop(),
            self.keep if keep else None,
            self.log.logger,
        )
        options = (sft_options if self.kind == "sft" else dpo_options)(**(self.changes | changes))
        if self.kind == "sft":
            return train_sft(self.start, examples(9), self.folder / name, options, context)
        return train_dpo(self.start, pairs(9), self.folder / name, options, context)

    def stop_after(self, step, **settings):
        """A training that somebody stops after `step` steps."""
        stop = Stop()
        return self.train(stop=stop, progress=Steps(step, lambda: stop.ask("a test")), **settings)

    def outcome(self, result, name="out"):
        """What must be the same, bit for bit."""
        return hash_model(self.folder / name), result.history, result.num_tokens, result.dropped

    def kept(self):
        """Names of the folders that hold a state."""
        return sorted(folder.name for folder in self.keep.glob("*")) if self.keep.is_dir() else []
