"""The state of a running training, stored after an optimizer step and found again when the training was cut off.

    parts/training-FINGERPRINT-NAME/
      step-00000012/      state-00000.safetensors ...   weights, moments of the optimizer, torch's random numbers
                          trainer_state.json            Trainer's own counters
                          checkpoint.json               everything else, and the SHA-256 of each file; written last
      model/  finished.json                             of a training whose result another one starts from

A folder appears whole or not at all, and the one before it goes when it is in place. What is read back is checked: the
identity (everything that decides the training) and every byte. Nothing is pickled. When a state is stored depends on the
clock; what the training gives does not.
"""

import dataclasses
import hashlib
import json
import logging
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from selfreward.config import CheckpointConfig
from selfreward.disk import refusal_of
from selfreward.errors import CorruptArtifactError, StorageError, TrainingError
from selfreward.stopping import Stop
from selfreward.storage import TEMPORARY_PREFIX, fingerprint, hash_file, to_plain, write_json
from selfreward.training._base import sync
from selfreward.training.common import TrainResult
from selfreward.types import Drop

_FORMAT = 1
_MANIFEST, _TRAINER_STATE, _FINISHED = "checkpoint.json", "trainer_state.json", "finished.json"
_ASIDE = "aside-"
_FILE_BYTES = 1 << 28
"""Tensors are stored in files of about this size, so that storing needs no second copy of the model in memory."""
_WEIGHTS, _MOMENTS, _RANDOM = "model/", "optimizer/", "random/"
_PARTS = frozenset({"weights", "optimizer", "random numbers"})


@dataclass(frozen=True)
class Stored:
    """A checkpoint that was read back and checked."""

    folder: Path
    step: int
    history: tuple[dict[str, float], ...]
    seconds: float
    state: Mapping[str, Any]

    def tensors(self, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
        """Name without the prefix, and tensor, one at a time."""
        for file in (name for name in self.state["files"] if name.endswith(".safetensors")):
            with safetensors.safe_open(self.folder / file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a dict
                    if name.startswith(prefix):
                        yield name.removeprefix(prefix), opened.get_tensor(name)


class Checkpoints:
    """The checkpoints of one training. `identity`: everything that decides its result, as plain JSON values."""

    def __init__(self, folder: Path, identity: Mapping[str, Any], config: CheckpointConfig, logger: logging.Logger) -> None:
        self._folder, self._identity, self._config, self._logger = folder, _plain(identity), config, logger
        self._started = self._last = time.monotonic()
        self._cost = 0.0
        self._stored: int | None = None
        self._is_failing = False
        self.earlier_seconds = 0.0
        self.num_aside = 0

    # --- finding ----------------------------------------------------------------------------------------------------

    def load(self) -> Stored | None:
        """The newest good checkpoint; None when there is none. A bad one is set aside, with a warning that names it."""
        if not self._folder.is_dir():
            return None
        for leftover in self._folder.glob(f"{TEMPORARY_PREFIX}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        for folder in sorted(self._folder.glob("step-*"), reverse=True):
            try:
                stored = self._read(folder)
            except CorruptArtifactError as error:
                self._set_aside(folder, error)
            else:
                self._stored, self.earlier_seconds = stored.step, stored.seconds
                return stored
        if self.num_aside:
            self._logger.warning("no good checkpoint is left: training starts from the beginning")
        return None

    def _read(self, folder: Path) -> Stored:
        """Check a checkpoint. Raises CorruptArtifactError when a byte of it changed or it belongs to another training."""
        state = self._read_own(folder / _MANIFEST)
        _check_files(folder, state["files"])
        return Stored(folder, state["step"], tuple(state["history"]), state["seconds"], state)

    def _read_own(self, path: Path) -> dict[str, Any]:
        state = _read_sealed(path)
        then, now = state["identity"], self._identity
        if changed := sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key)):
            differences = "; ".join(f"{key} was {then.get(key)!r}, is {now.get(key)!r}" for key in changed)
            raise CorruptArtifactError(f"{path} belongs to another training: {differences}")
        return state

    def _set_aside(self, folder: Path, error: Exception) -> None:
        aside = folder.with_name(f"{_ASIDE}{folder.name}")
        if aside.exists():
            shutil.rmtree(aside)
        folder.rename(aside)
        self.num_aside += 1
        self._logger.warning("a checkpoint cannot be used: %s; it is kept as %s", error, aside)

    # --- storing ----------------------------------------------------------------------------------------------------

    def is_due(self) -> bool:
        """Whether it is time to store the state: not sooner than wanted, and not more often than the cost allows."""
        every, share = self._config.every_seconds, self._config.max_share
        if every is None:
            return False
        rest = 0.0 if share == 1.0 else self._cost / share
        return time.monotonic() - self._last >= max(every, rest)

    def store(self, trainer: Any, history: Sequence[dict[str, float]], stop: Stop, say: Callable[[str], None]) -> bool:
        """Store the state after a whole step in place of the one before; returns whether it is stored.

        When it cannot be, the one before stays; with no stop wanted that is a warning (`say` hears the first of several in a
        row), else StorageError (the disk refuses) or TrainingError. Raises TrainingError when a weight is not finite.
        """
        step = trainer.state.global_step
        if step == self._stored:
            return True
        clock = time.monotonic()
        check_finite(trainer)
        try:
            self._put_in_place(trainer, history, f"step-{step:08d}")
            self._stored, self._is_failing = step, False
        except OSError as error:
            if stop.is_wanted:
                raise self._failure(error, step) from error
            self._logger.warning(text := f"{self._failure(error, step)}. The training goes on, and tries again later")
            if not self._is_failing:
                say(text)
            self._is_failing = True
        self._last = time.monotonic()
        self._cost = self._last - clock
        return not self._is_failing

    def _put_in_place(self, trainer: Any, history: Sequence[dict[str, float]], name: str) -> None:
        final, temporary = self._folder / name, self._folder / f"{TEMPORARY_PREFIX}{name}"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            self._write(temporary, trainer, history)
            sync(temporary)
            temporary.rename(final)
            sync(self._folder)
            for older in set(self._folder.glob("step-*")) - {final}:
                shutil.rmtree(older)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _failure(self, error: OSError, step: int) -> StorageError | TrainingError:
        """Why the state after a step cannot be stored, and what to do."""
        refusal = error if isinstance(error, StorageError) else refusal_of(error, self._folder)
        text = f"the training's state after step {step} cannot be stored in {self._folder}: {refusal or error}. {self.kept()}"
        return StorageError(text) if refusal else TrainingError(text)

    def _write(self, folder: Path, trainer: Any, history: Sequence[dict[str, float]]) -> None:
        moments = trainer.optimizer.state_dict()
        files = {}
        for index, tensors in enumerate(_in_files(_all_tensors(trainer, moments["state"]))):
            name = f"state-{index:05d}.safetensors"
            files[name] = _write_synced(folder / name, safetensors.torch.save(tensors))
        fields = {field.name for field in dataclasses.fields(trainer.state)} - {"log_history", "stateful_callbacks"}
        counters = {name: getattr(trainer.state, name) for name in sorted(fields)}
        files[_TRAINER_STATE] = _write_synced(folder / _TRAINER_STATE, json.dumps(counters).encode())
        kind, words, *others = np.random.get_state()
        state = {
            "identity": self._identity,
            "step": trainer.state.global_step,
            "history": list(history),
            "seconds": self.seconds(),
            "groups": [{key: value for key, value in group.items() if key != "params"} for group in moments["param_groups"]],
            "scheduler": trainer.lr_scheduler.state_dict(),
            "random": {"python": random.getstate(), "numpy": [kind, np.asarray(words).tolist(), *others]},
            "files": files,
        }
        _write_sealed(folder / _MANIFEST, state)

    def seconds(self) -> float:
        """Time spent on this training, earlier attempts included."""
        return self.earlier_seconds + time.monotonic() - self._started

    def kept(self) -> str:
        """For messages: which state is there to go on from."""
        if self._stored is None:
            return "No earlier state is kept"
        return f"The state after step {self._stored} is kept in {self._folder}"

    # --- a result that another training starts from -----------------------------------------------------------------

    def finished(self, output: Path) -> TrainResult | None:
        """What an earlier attempt's training into `output` gave, if its model lies there unharmed."""
        path = self._folder / _FINISHED
        if not path.exists():
            return None
        try:
            state = self._read_own(path)
            _check_files(output, state["files"])
        except CorruptArtifactError as error:
            self._logger.warning("a finished training cannot be used and is done again: %s", error)
            path.unlink()
            return None
        result = state["result"]
        dropped = tuple(Drop(**drop) for drop in result["dropped"])
        return TrainResult(**{**result, "dropped": dropped, "history": tuple(result["history"])})

    def finish(self, output: Path, result: TrainResult) -> TrainResult:
        """The result, with the time of earlier attempts. When its model lies in our folder the result is kept too, and takes
        the place of the checkpoints."""
        result = dataclasses.replace(result, earlier_seconds=self.earlier_seconds)
        if not output.is_relative_to(self._folder):
            return result
        files = {file.relative_to(output).as_posix(): hash_file(file) for file in sorted(output.rglob("*")) if file.is_file()}
        whole = dataclasses.replace(result, earlier_seconds=self.seconds())
        _write_sealed(self._folder / _FINISHED, {"identity": self._identity, "result": whole, "files": files})
        for folder in self._folder.glob("step-*"):
            shutil.rmtree(folder)
        return result


# --- what is in a checkpoint ----------------------------------------------------------------------------------------


def _weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and stored buffers by name, each once; a tied weight comes under its first name."""
    stored = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in stored}
    return {**dict(model.named_parameters()), **buffers}


def _all_tensors(trainer: Any, moments: Mapping[int, Mapping[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in _weights(trainer.model).items():
        yield f"{_WEIGHTS}{name}", tensor
    for index, values in moments.items():
        for key, tensor in values.items():
            assert isinstance(tensor, torch.Tensor), f"the optimizer keeps {key}={tensor!r}, which is no tensor"
            yield f"{_MOMENTS}{index}/{key}", tensor
    yield f"{_RANDOM}cpu", torch.random.get_rng_state()
    if trainer.args.device.type == "cuda":
        for index, state in enumerate(torch.cuda.get_rng_state_all()):
            yield f"{_RANDOM}cuda/{index}", state


def _in_files(tensors: Iterator[tuple[str, torch.Tensor]]) -> Iterator[dict[str, torch.Tensor]]:
    """Groups of tensors in main memory, of about `_FILE_BYTES` each."""
    group: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors:
        group[name] = tensor.detach().to("cpu").contiguous()
        size += tensor.nbytes
        if size >= _FILE_BYTES:
            yield group
            group, size = {}, 0
    if group:
        yield group


def check_finite(trainer: Any) -> None:
    """A gradient may be finite and its step still overflow: such a state is no good one. Raises TrainingError then."""
    for name, weight in trainer.model.named_parameters():
        if not torch.isfinite(weight).all():
            kept = f". {trainer.checkpoints.kept()}" if trainer.checkpoints else ""
            raise TrainingError(
                f"weight {name} is not finite after step {trainer.state.global_step} of {trainer.state.max_steps}; lower "
                f"learning_rate (now {trainer.args.learning_rate}){kept}"
            )


class ResumingMixin:
    """A Trainer that takes its state from a `Stored` where it would read its own, partly pickled files.

    `Trainer.train(resume_from_checkpoint=...)` reads trainer_state.json, finds its place in the order of the rows, and
    calls these three. Should another version of it call them no more, `check_restored` stops before the first step.
    """

    model: Any
    state: Any
    optimizer: Any
    lr_scheduler: Any
    checkpoints: Checkpoints | None = None
    resumed: Stored | None = None

    def resume(self, stored: Stored) -> None:
        """Go on from this state when `train` is called."""
        self.resumed = stored
        self._restored: set[str] = set()

    def check_restored(self) -> None:
        """Raise TrainingError unless everything was restored that had to be: after the last step nothing random follows."""
        if self.resumed is None:
            return
        is_over = self.resumed.step == self.state.max_steps
        if missing := ", ".join(sorted(_PARTS - self._restored - ({"random numbers"} if is_over else set()))):
            raise TrainingError(
                f"the trainer did not restore its {missing} from a checkpoint; use the versions in constraints.txt"
            )

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        assert self.resumed is not None, "only `fit` resumes"
        weights = _weights(self.model)
        with torch.no_grad():
            for name, tensor in self.resumed.tensors(_WEIGHTS):
                weights.pop(name).copy_(tensor)  # in place: tied weights stay tied
        assert not weights, f"the checkpoint lacks {sorted(weights)}"
        self._restored.add("weights")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        assert self.resumed is not None, "only `fit` resumes"
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in self.resumed.tensors(_MOMENTS):
            index, _, key = name.partition("/")
            state.setdefault(int(index), {})[key] = tensor
        groups = [
            {**now, **{key: tuple(value) if isinstance(value, list) else value for key, value in then.items()}}
            for now, then in zip(self.optimizer.state_dict()["param_groups"], self.resumed.state["groups"], strict=True)
        ]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.lr_scheduler.load_state_dict(dict(self.resumed.state["scheduler"]))
        self._restored.add("optimizer")

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if self.resumed is None:
            return
        version, words, gauss = self.resumed.state["random"]["python"]
        random.setstate((version, tuple(words), gauss))
        kind, numbers, *others = self.resumed.state["random"]["numpy"]
        np.random.set_state((kind, np.array(numbers, dtype=np.uint32), *others))
        for name, tensor in self.resumed.tensors(_RANDOM):
            device, _, index = name.partition("/")
            if device == "cpu":
                torch.random.set_rng_state(tensor)
            else:
                torch.cuda.set_rng_state(tensor, int(index))
        self._restored.add("random numbers")


# --- files ----------------------------------------------------------------------------------------------------------


def _write_synced(path: Path, data: bytes) -> str:
    """Write a new file through to the disk; returns its SHA-256."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(data).hexdigest()


def _write_sealed(path: Path, state: Mapping[str, Any]) -> None:
    plain = _plain({"format": _FORMAT, **state})
    write_json(path, {"seal": fingerprint(plain), "state": plain})


def _read_sealed(path: Path) -> dict[str, Any]:
    """Raises CorruptArtifactError when the file is missing, changed, or of another format."""
    try:
        sealed = json.loads(path.read_bytes())
        is_whole = isinstance(sealed, dict) and fingerprint(sealed.get("state")) == sealed.get("seal")
    except (OSError, ValueError) as error:
        raise CorruptArtifactError(f"{path} cannot be read: {error}") from error
    if not is_whole:
        raise CorruptArtifactError(f"{path} has changed since it was written")
    state: dict[str, Any] = sealed["state"]
    if state.get("format") != _FORMAT:
        raise CorruptArtifactError(f"{path} has format {state.get('format')!r}, expected {_FORMAT}")
    return state


def _check_files(folder: Path, known: Mapping[str, str]) -> None:
    for name, digest in known.items():
        if hash_file(folder / name) != digest:
            raise CorruptArtifactError(f"{folder / name} has changed since it was written")


def _plain(value: Any) -> Any:
    """The value as JSON would read it back."""
    return json.loads(json.dumps(value, default=to_plain, allow_nan=False))
