"""The models that are measured: the micro-world's own, and Llamas of random weights in two sizes.

A model's speed depends on its shape alone, so random weights serve, and no download is needed. All are fp32. The random ones
come with a tokenizer of whole words that nothing was trained for; the demo's has whole words too, so that a prompt of n words
has n tokens in every model.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import selfreward.lab
from speed.names import DEMO

CONTEXT_LENGTH = 1024
"""The judge workload needs 448 positions; the demo's model is made for 320. Its copy may go further: what it says there does
not matter here, and rotary positions cost the same."""
VOCABULARY = 8000
PAD, UNK, EOS = "<pad>", "<unk>", "<|end|>"
VERDICT = ("Score", ":")
SCORES = tuple("012345")
SEED = 1


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama's shape; as many key-value heads as heads, input and output embeddings are one."""

    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    vocabulary: int

    @property
    def layer_weights(self) -> int:
        """Weights in the matrices of one layer: four of attention, three of the feed-forward part."""
        return 4 * self.hidden_size**2 + 3 * self.hidden_size * self.intermediate_size

    @property
    def num_weights(self) -> int:
        """Weights in all matrices; those of the embeddings count once, for the output. (Norms are left out: under 0.1 %.)"""
        return self.num_layers * self.layer_weights + self.hidden_size * self.vocabulary


RANDOM = {
    "15M": Shape(384, 7, 6, 1024, VOCABULARY),
    "90M": Shape(768, 12, 12, 2048, VOCABULARY),
    "tiny": Shape(32, 2, 2, 64, VOCABULARY),
}
"""Models of random weights by name."""


def write_model(name: str, folder: Path) -> Path:
    """The model's folder under `folder`, written where it is not there yet. KeyError for a name that is not in MODELS."""
    path = folder / name
    if not path.exists():
        model, tokenizer = _demo() if name == DEMO else _random(RANDOM[name])
        model.generation_config.max_length = None
        partial = folder / f"{name}.partial"
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.rename(path)
    return path


def load_model(path: Path) -> Any:
    """A copy of its own: contestants change their model's attention."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, use_safetensors=True)
    return model.eval()


def load_tokenizer(path: Path) -> Any:
    """The folder's tokenizer."""
    return AutoTokenizer.from_pretrained(path)


def shape_of(model: Any) -> Shape:
    """Read from a loaded Llama. AssertionError for one whose FLOPs `roofline` would count wrongly."""
    config = model.config
    assert config.num_key_value_heads == config.num_attention_heads, "grouped heads are not counted"
    assert config.tie_word_embeddings, "two embeddings are not counted"
    return Shape(
        config.hidden_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.intermediate_size,
        config.vocab_size,
    )


def plain_words(tokenizer: Any) -> list[str]:
    """Words that are one token each and mean nothing to the tokenizer."""
    special = set(tokenizer.all_special_tokens) | {token.content for token in tokenizer.added_tokens_decoder.values()}
    return sorted(set(tokenizer.get_vocab()) - special)


def _demo() -> tuple[Any, Any]:
    folder = Path(selfreward.lab.__file__).parent / "m0"
    model = load_model(folder)
    model.config.max_position_embeddings = CONTEXT_LENGTH
    tokenizer = load_tokenizer(folder)
    tokenizer.model_max_length = CONTEXT_LENGTH
    return model, tokenizer


def _random(shape: Shape) -> tuple[Any, Any]:
    tokenizer = _word_tokenizer(shape.vocabulary)
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_heads,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config), tokenizer


def _word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """`vocabulary` tokens: the special ones, what a verdict is said with, and words that are numbered."""
    words = [PAD, UNK, EOS, *VERDICT, *SCORES]
    words += [f"w{number}" for number in range(vocabulary - len(words))]
    model = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token=UNK))
    model.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
    )
