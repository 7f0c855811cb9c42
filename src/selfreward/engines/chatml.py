"""The chat template of a base model that has none: ChatML, as most fine-tunes of base models use it.

Both markers become control tokens, so that a turn ends with one token that no data can bring. The vocabulary grows only
by the markers that the tokenizer lacks, and the matrices only where the vocabulary outgrew them (many are padded).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from selfreward.chat import encode_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

START, END = "<|im_start|>", "<|im_end|>"
DEFAULT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_ROWS_AT_A_TIME = 4096
BOS_PART = "{{ bos_token }}"
"""Goes before the template where the tokenizer begins every text with a BOS: the model knows no other start."""


@dataclass(frozen=True, slots=True)
class Added:
    """What giving a base model its template changed: tokens new to the vocabulary, rows of the embedding before and after."""

    tokens: tuple[str, ...]
    rows_before: int
    rows_after: int


def add_default_template(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> Added:
    """Give a tokenizer without a chat template the default one, and the model what the markers need; in place.

    Rows of new tokens are the mean of the known ones' in both matrices, whether the matrix grew or had rows to spare: the same
    model and tokenizer give the same result. Tied matrices stay tied. The model's generation config gets the end marker, so
    that other programs stop there too.
    """
    assert not tokenizer.chat_template, "the tokenizer has a template of its own"
    from transformers import AddedToken

    starts_with_bos = encode_prompt(tokenizer, "") != []
    known = tokenizer.get_vocab()
    markers = [AddedToken(name, special=True, normalized=False) for name in (START, END)]
    tokenizer.add_tokens(markers, special_tokens=True)
    tokenizer.chat_template = BOS_PART * starts_with_bos + DEFAULT_TEMPLATE
    new = tuple(name for name in (START, END) if name not in known)
    rows, needed = model.get_input_embeddings().num_embeddings, max(tokenizer.get_vocab().values()) + 1
    if needed > rows:
        model.resize_token_embeddings(needed, mean_resizing=False)  # its own mean draws random numbers
    if new:
        _fill_with_mean(model, tokenizer.convert_tokens_to_ids(list(new)), min(max(known.values()) + 1, rows))
    _stop_at(model, tokenizer)
    return Added(new, rows, model.get_input_embeddings().num_embeddings)


def _fill_with_mean(model: Any, new: list[int], num_known: int) -> None:
    """Set the rows of new tokens to the mean of the known ones, in the input embedding and the output layer."""
    import torch

    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            for weight in (getattr(layer, "weight", None), getattr(layer, "bias", None)):
                if weight is not None:
                    # In float64, so that the order of the sum does not show; in pieces, because a copy may not fit.
                    total = sum(piece.double().sum(dim=0) for piece in weight[:num_known].split(_ROWS_AT_A_TIME))
                    weight[new] = (total / num_known).to(weight.dtype)


def _stop_at(model: Any, tokenizer: Any) -> None:
    """Add the end marker to the tokens at which other programs stop this model."""
    settings = model.generation_config
    if settings is None:
        return
    known = settings.eos_token_id
    stops = list(known) if isinstance(known, list | tuple) else [] if known is None else [known]
    end = tokenizer.convert_tokens_to_ids(END)
    if end not in stops:
        settings.eos_token_id = [*stops, end] if stops else end
