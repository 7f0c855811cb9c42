"""A base model without a chat template: what it is given, what that changes, and that it learns to end its turns."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from template_tokenizers import IM, byte_level, sentencepiece
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from selfreward.artifacts import Run, read_json
from selfreward.chat import encode_prompt, special_ids, stop_token_ids
from selfreward.engines import open_engine
from selfreward.engines.chatml import END, START
from selfreward.engines.loading import load_chat_model, load_model, load_tokenizer
from selfreward.errors import ModelError
from selfreward.stages import m0, seed, sft
from selfreward.types import Message, Request, Sampling

MakeConfig = Callable[..., Any]
ASK = (Message("user", "Name a river."),)


@pytest.fixture
def make_base(tmp_path: Path) -> Callable[..., Path]:
    """`make_base(tokenizer, rows, tied)`: a random tiny Llama folder without a chat template."""

    def make(tokenizer: Any, rows: int | None = None, tied: bool = False) -> Path:
        assert not tokenizer.chat_template
        config = LlamaConfig(
            vocab_size=rows or len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=1024, tie_word_embeddings=tied,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = LlamaForCausalLM(config)
        folder = tmp_path / "base"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def gpt_like() -> Any:
    return byte_level((), None, eos="<eos>")


def llama_like() -> Any:
    return sentencepiece((), None, bos="<s>", eos="</s>", adds_bos=True)


def loaded(folder: Path, make_config: MakeConfig, **model: Any) -> tuple[Any, Any, Any]:
    return load_chat_model(folder, make_config(model={"path": str(folder), **model}), "cpu")


@pytest.mark.parametrize("tied", [False, True])
def test_new_tokens_get_rows_of_the_others_mean(make_base: Callable[..., Path], make_config: MakeConfig, tied: bool) -> None:
    folder = make_base(gpt_like(), tied=tied)
    before = load_model(folder, make_config(), "cpu")
    model, tokenizer, added = loaded(folder, make_config)
    size = before.config.vocab_size
    assert (added.tokens, added.rows_before, added.rows_after) == ((START, END), size, size + 2)
    assert model.config.vocab_size == size + 2
    for old, new in (
        (before.get_input_embeddings().weight, model.get_input_embeddings().weight),
        (before.get_output_embeddings().weight, model.get_output_embeddings().weight),
    ):
        assert torch.equal(new[:size], old), "what the model knows is not touched"
        for row in new[size:]:
            assert torch.allclose(row, old.mean(dim=0), atol=1e-7)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    again, _, _ = loaded(folder, make_config)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(END)} == stop_token_ids(tokenizer)
    assert set(model.generation_config.eos_token_id) == stop_token_ids(tokenizer)


def test_a_padded_vocabulary_needs_no_resize(make_base: Callable[..., Path], make_config: MakeConfig) -> None:
    tokenizer = gpt_like()
    folder = make_base(tokenizer, rows=len(tokenizer) + 30)
    before = load_model(folder, make_config(), "cpu").get_input_embeddings().weight
    model, given, added = loaded(folder, make_config)
    assert added.rows_before == added.rows_after == len(tokenizer) + 30
    assert added.tokens == (START, END)
    weight = model.get_input_embeddings().weight
    new = given.convert_tokens_to_ids([START, END])
    assert torch.allclose(weight[new], before[: len(tokenizer)].mean(dim=0).expand(2, -1), atol=1e-7)
    others = [row for row in range(len(weight)) if row not in new]
    assert torch.equal(weight[others], before[others])


def test_markers_that_are_there_are_used(make_base: Callable[..., Path], make_config: MakeConfig) -> None:
    folder = make_base(byte_level(IM, None, eos="<|endoftext|>"))
    before = load_model(folder, make_config(), "cpu")
    model, tokenizer, added = loaded(folder, make_config)
    assert (added.tokens, added.rows_before) == ((), added.rows_after)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))
    assert tokenizer.convert_tokens_to_ids(END) in stop_token_ids(tokenizer)
    assert set(tokenizer.convert_tokens_to_ids([START, END])) <= special_ids(tokenizer)


def test_only_the_missing_marker_is_added(make_base: Callable[..., Path], make_config: MakeConfig) -> None:
    _, _, added = loaded(make_base(byte_level((START,), None, eos="<eos>")), make_config)
    assert added.tokens == (END,)


@pytest.mark.parametrize(("build", "bos"), [(gpt_like, 0), (llama_like, 1)])
def test_the_default_template_begins_as_the_tokenizer_begins_texts(
    make_base: Callable[..., Path], make_config: MakeConfig, build: Callable[[], Any], bos: int
) -> None:
    _, tokenizer, _ = loaded(make_base(build()), make_config)
    ids = encode_prompt(tokenizer, (Message("system", "Be brief."), *ASK))
    text = f"{START}system\nBe brief.{END}\n{START}user\nName a river.{END}\n{START}assistant\n"
    assert ids == tokenizer(("<s>" if bos else "") + text, add_special_tokens=False)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == bos


def test_own_means_no_default_and_a_file_replaces(
    make_base: Callable[..., Path], make_config: MakeConfig, tmp_path: Path
) -> None:
    folder = make_base(gpt_like())
    model, tokenizer, added = loaded(folder, make_config, chat_template="own")
    assert (added, tokenizer.chat_template) == (None, None)
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
    with pytest.raises(ModelError, match=r"no chat template; set model\.chat_template"):
        encode_prompt(tokenizer, ASK)
    (tmp_path / "own.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    _, tokenizer, added = loaded(folder, make_config, chat_template=str(tmp_path / "own.jinja"))
    assert (added, encode_prompt(tokenizer, ASK)) == (None, encode_prompt(tokenizer, "Name a river."))


def test_only_m0_gets_the_default(make_base: Callable[..., Path], make_config: MakeConfig, tiny_model_dir: Path) -> None:
    folder = make_base(gpt_like())
    _, tokenizer, added = load_chat_model(folder, make_config(), "cpu")  # model.path is another folder
    assert (added, tokenizer.chat_template) == (None, None)
    _, tokenizer, added = load_chat_model(tiny_model_dir, make_config(), "cpu")
    assert added is None
    assert tokenizer.chat_template == load_tokenizer(tiny_model_dir, make_config()).chat_template


@pytest.mark.parametrize("template", [None, "own"])
def test_a_base_model_continues_plain_text(
    make_base: Callable[..., Path], make_config: MakeConfig, template: str | None
) -> None:
    """Demonstrations in plain text, as completion templates of the proposer give them."""
    folder = make_base(llama_like())
    config = make_config(model={"path": str(folder), "chat_template": template})
    with open_engine(str(folder), config) as engine:
        (reply,) = engine.generate([Request("a", "Task: hello\nTask:", Sampling(8, temperature=0.0), 0)])
    assert reply.finish_reason in ("stop", "length")
    assert reply.num_tokens > 0


# --- the stage ----------------------------------------------------------------------------------------------------


@pytest.fixture
def seeds(tmp_path: Path) -> dict[str, Any]:
    folder = tmp_path / "seeds"
    folder.mkdir()
    rivers = ("Rhine", "Elbe", "Danube", "Po")
    ift = [{"prompt": f"Name a river ({number}).", "response": f"The {rivers[number % 4]}."} for number in range(16)]
    for name, rows in (("ift", ift), ("heldout_prompts", [{"prompt": "Name another river of the south."}])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"sources": [{"format": "seed-folder"}], "path": str(folder)}


@pytest.mark.parametrize("build", [gpt_like, llama_like])
def test_the_sft_stage_teaches_a_base_model_to_chat(
    make_base: Callable[..., Path], make_config: MakeConfig, seeds: dict[str, Any], build: Callable[[], Any]
) -> None:
    folder = make_base(build(), tied=True)
    training = {"learning_rate": 1e-2, "final_learning_rate": 1e-3, "num_epochs": 40, "batch_size": 8, "micro_batch_size": 8}
    config = make_config(model={"path": str(folder)}, mode="no-eft", seed=seeds, sft=training)
    with Run.open(config) as run:
        base = m0.run(run)
        trained = sft.run(run, "sft", base, seed.run(run), None)
        log = [json.loads(line) for line in run.dir.log.read_text().splitlines()]
    notes = read_json(trained.path / "record.json")["notes"]["chat"]
    size = LlamaConfig.from_pretrained(folder).vocab_size
    assert notes == {
        "template": "default", "turn_end": END, "system": "shown by the template", "system_merged": 0,
        "tokens": [START, END], "rows_before": size, "rows_after": size + 2,
    }  # fmt: skip
    assert read_json(base.path / "record.json")["notes"] == {"chat_template": "default"}
    said = [line for line in log if "chat template" in line["message"]]
    assert [line["message"] for line in said] == [
        "M0 has no chat template: it gets the default one",
        "the start model has no chat template: the default one was added",
    ]
    assert said[1]["data"] == notes

    # The checkpoint is a chat model like any other: nothing is added to it again, whatever model.path says.
    elsewhere = make_config()
    model, tokenizer, added = load_chat_model(trained.checkpoint, elsewhere, "cpu")
    assert added is None
    assert AutoTokenizer.from_pretrained(trained.checkpoint).chat_template == tokenizer.chat_template is not None
    assert model.config.vocab_size == size + 2
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tokenizer.convert_tokens_to_ids(END) in model.generation_config.eos_token_id
    start, start_tokenizer, _ = load_chat_model(folder, config, "cpu")
    assert end_loss(model, tokenizer) < 0.2 * end_loss(start, start_tokenizer)
    with open_engine(str(trained.checkpoint), elsewhere) as engine:
        asks = [Request(f"{n}", (Message("user", f"Name a river ({n})."),), Sampling(40, 0.0), 0) for n in range(4)]
        replies = list(engine.generate(asks))
    assert {reply.finish_reason for reply in replies} == {"stop"}, replies
    assert all(reply.text.startswith("The ") and reply.text.endswith(".") for reply in replies)


def end_loss(model: Any, tokenizer: Any) -> float:
    """Negative log-likelihood of the end marker behind an answer."""
    prompt = (Message("user", "Name a river (1)."),)
    ids = encode_prompt(tokenizer, prompt) + tokenizer("The Elbe.", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1]
    return -float(torch.log_softmax(logits, -1)[tokenizer.convert_tokens_to_ids(END)])
