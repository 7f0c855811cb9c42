"""How weights change: thin adapters over TRL's SFTTrainer and DPOTrainer.

Everything that decides what is learnt from lies outside TRL: token ids and loss mask (`chat.encode_example`), what is
dropped and why, and the order of the examples. torch and TRL are imported when a training starts, not before.
"""

from selfreward.training.common import SftExample, TrainContext, TrainResult

__all__ = ["SftExample", "TrainContext", "TrainResult"]
