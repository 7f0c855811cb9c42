"""How weights change: SFT, DPO, and judge training inside the rounds."""

from typing import Literal

from pydantic import Field

from selfreward.config.section import Section


class OptimConfig(Section):
    """What SFT and DPO training share."""

    learning_rate: float = Field(default=5.5e-6, gt=0)
    """Peak learning rate."""
    final_learning_rate: float = Field(default=1.1e-6, ge=0)
    """Learning rate at the end of the cosine."""
    warmup_ratio: float = Field(default=0.0, ge=0, lt=1)
    """Share of the steps spent warming up (not reported in the paper)."""
    num_epochs: int = Field(default=1, ge=1)
    """Passes over the data (not reported in the paper)."""
    batch_size: int = Field(default=16, ge=1)
    """Examples (or pairs) an optimizer step."""
    micro_batch_size: int = Field(default=16, ge=1)
    """Examples (or pairs) in one forward pass; `batch_size` must be a multiple of it. It decides memory and speed only."""
    max_length: int = Field(default=2048, ge=8)
    """Longest prompt + answer in tokens; longer ones are dropped and counted, never cut."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradient clipping."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Attention dropout while training (the paper says dropout 0.1; Llama-like models have no other kind)."""
    gradient_checkpointing: bool = False
    """Trade compute for memory."""
    bf16: bool = False
    """bfloat16 autocast while training; weights and updates stay float32. Pays on a GPU, or a CPU with avx512_bf16 or AMX."""


class SftConfig(OptimConfig):
    """Supervised fine-tuning of the SFT baseline (IFT) and of M1 (IFT + EFT)."""


class DpoConfig(OptimConfig):
    """Preference training of one round."""

    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate (paper section 3.1: 1e-6)."""
    final_learning_rate: float = Field(default=1e-7, ge=0)
    """Learning rate at the end of the cosine (paper section 3.1: 1e-7)."""
    method: Literal["dpo", "positives-only"] = "dpo"
    """`positives-only` trains SFT on the chosen answers instead: the paper's control."""
    beta: float = Field(default=0.1, gt=0)
    """DPO temperature (paper section 3.1: 0.1)."""
    nll_weight: float = Field(default=0.0, ge=0)
    """Weight of the per-token NLL of the chosen answer (Iterative RPO, arXiv 2404.19733); 0 is plain DPO."""


class ReplayConfig(Section):
    """Judge training inside the rounds, from the EFT seed targets; an option that the paper does not have."""

    num_items: int = Field(default=0, ge=0)
    """EFT training items used again each round; 0 switches replay off (the paper's recipe)."""
    method: Literal["sft", "pairs"] = "sft"
    """`sft`: after DPO, fine-tune on the items' targets and the round's chosen answers. `pairs`: M_t judges the items again,
    and its right votes over its wrong ones join the round's preference pairs."""
    learning_rate: float = Field(default=5.5e-6, gt=0)
    """For `sft`: peak learning rate; the other optimizer settings are those of `sft.*`, with one epoch."""
    num_votes: int = Field(default=3, ge=1)
    """For `pairs`: votes sampled for each item; a vote whose score differs from the target's becomes the rejected one."""
    max_pairs_per_item: int = Field(default=1, ge=1)
    """For `pairs`: most judgement pairs made of one item."""
    min_score_gap: float = Field(default=1.0, gt=0)
    """For `pairs`: a vote must differ from the target's score by at least this to be rejected."""
    chosen: Literal["target", "vote"] = "vote"
    """For `pairs`: what is chosen over a wrong vote, the seed target, or the model's own vote with the target's score (the
    target where there is none)."""


class CheckpointConfig(Section):
    """How often a training stores its state, to go on from after a kill. Decides no result."""

    every_seconds: float | None = Field(default=30.0, ge=0)
    """Least time between two stored states; 0 stores after every step. Unset (null): only when the run is asked to stop."""
    max_share: float = Field(default=0.01, gt=0, le=1)
    """Most of the time that storing may take: after a slow one the next waits longer. 1.0 sets no limit."""
