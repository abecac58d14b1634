import asyncio
import copy
import json
import math
from string import Template

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from grpo_ao.errors import UserError
from grpo_ao.judges import rubric
from grpo_ao.judges.hostile import hostile_answers
from grpo_ao.judges.local import LocalJudge, letter_ids
from grpo_ao.judges.protocol import Grade, GradeRequest, JudgeError
from grpo_ao.judges.rubric import GRADES, judge_prompt
from grpo_ao.oracle.injection import Injection, InjectionHook
from grpo_ao.oracle.layers import decoder_layers, decoder_of
from grpo_ao.oracle.prompt import OraclePrompt
from grpo_ao.oracle.turn import render_user_turn
from tests.tiny import (
    ARCHITECTURES,
    LAYERS,
    SPECIAL_TOKENS,
    WIDTH,
    add_adapter,
    tiny_model,
    tiny_multimodal,
    tiny_peft,
    tiny_tokenizer,
    token_id,
)

REQUESTS = [
    GradeRequest("I move to Oslo in May.", "Where to?", "To Norway.", "open", None),
    GradeRequest("A much longer text, " * 20, "What is it about?", "Length.", "open", None),
    GradeRequest("Hi", "Is it a greeting?", "Yes", "closed", None),
    GradeRequest("Hi", "Is it a greeting?", "No, it is not a greeting at all.", "closed", None),
    GradeRequest("é ? ?", "What?", "", "open", None),
]
# What Llama 3, Gemma, Qwen3 (thinking off) and an older Mistral open an answer with.
TEMPLATES = {
    "chatml": "<|im_start|>{u}\n{c}<|im_end|>\n<|im_start|>assistant\n",
    "thinking": "<|im_start|>{u}\n{c}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    "llama": "<|start_header_id|>{u}<|end_header_id|>\n\n{c}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "gemma": "<bos><start_of_turn>{u}\n{c}<end_of_turn>\n<start_of_turn>model\n",
    "mistral": "<s>[INST] {c} [/INST]",
}


@pytest.fixture(autouse=True)
def _short_rubric(monkeypatch, request):
    """A rubric of a few bytes: in the tiny tokenizer the real one has 1,400 tokens."""
    if "full_rubric" not in request.fixturenames:
        monkeypatch.setattr(rubric, "_RUBRICS", {"closed": "Right or wrong?", "open": "How good?"})
        monkeypatch.setattr(rubric, "_PROMPT", Template("$rubric $text $question $answer $reply"))


@pytest.fixture
def full_rubric():
    """Ask for the real rubric."""


def with_template(template: str) -> PreTrainedTokenizerFast:
    tokenizer = copy.deepcopy(tiny_tokenizer())
    jinja = template.replace("{u}", "{{ messages[0].role }}")
    tokenizer.chat_template = jinja.replace("{c}", "{{ messages[0].content }}")
    return tokenizer


def local(model, tokenizer=None) -> LocalJudge:
    return LocalJudge(model, tokenizer or tiny_tokenizer(), "tiny")


def run(judge: LocalJudge, *requests: GradeRequest) -> list[Grade]:
    return asyncio.run(judge.grade(requests))


def scores(judge: LocalJudge, *requests: GradeRequest) -> list[float]:
    found = [grade.score for grade in run(judge, *requests)]
    return [score for score in found if score is not None]


def by_hand(model, request: GradeRequest) -> float:
    """The expected level from a plain forward pass of one unpadded prompt; closed: 1 or 0."""
    content = judge_prompt(request, "Reply with the letter of the grade alone.")
    prompt = render_user_turn(tiny_tokenizer(), content, answer_next=True)
    ids = torch.tensor([tiny_tokenizer().encode(prompt)])
    with torch.no_grad():
        logits_V = model(input_ids=ids).logits[0, -1]
    letters = [tiny_tokenizer().encode(letter)[0] for letter in GRADES[request.kind]]
    share = logits_V[letters].softmax(-1)
    expected = float(share @ torch.tensor(list(GRADES[request.kind].values())))
    return float(expected > 0.5) if request.kind == "closed" else expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_grade_is_the_expected_level_of_the_base_model(architecture):
    base = tiny_model(architecture)
    expected = [by_hand(base, request) for request in REQUESTS]
    found = scores(local(add_adapter(base)), *REQUESTS)
    assert found == pytest.approx(expected, abs=1e-4)
    assert len({s for s in found if 0 < s < 1}) == 3
    for score, request in zip(found, REQUESTS, strict=True):
        assert (0 < score < 1) is (request.kind == "open")


@pytest.mark.usefixtures("full_rubric")
def test_the_real_rubric_is_read():
    (found,) = run(local(tiny_model()), REQUESTS[0])
    assert found.score == pytest.approx(by_hand(tiny_model(), REQUESTS[0]), abs=1e-4)
    assert (found.input_tokens or 0) > 1_000


def test_a_multimodal_model_judges_with_its_text_part():
    base = tiny_multimodal()
    expected = [by_hand(base, request) for request in REQUESTS[:2]]
    assert scores(local(add_adapter(base)), *REQUESTS[:2]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_adapter_does_not_change_a_grade(architecture):
    bare = scores(local(tiny_model(architecture)), *REQUESTS)
    assert scores(local(tiny_peft(architecture)), *REQUESTS) == pytest.approx(bare, abs=1e-6)


def test_all_adapters_of_a_model_are_off():
    model = tiny_peft()
    model.add_adapter("ref", model.peft_config["default"])
    bare = scores(local(tiny_model()), *REQUESTS)
    for name in ("ref", "default"):
        model.set_adapter(name)
        assert scores(local(model), *REQUESTS) == pytest.approx(bare, abs=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_batch_size_and_order_do_not_change_a_grade(architecture, monkeypatch):
    judge = local(tiny_peft(architecture))
    together = scores(judge, *REQUESTS)
    backwards = scores(judge, *reversed(REQUESTS))[::-1]
    alone = [scores(judge, request)[0] for request in REQUESTS]
    monkeypatch.setattr("grpo_ao.judges.local._BATCH_TOKENS", 300)
    in_small_batches = scores(judge, *REQUESTS)
    for other in (backwards, alone, in_small_batches):
        assert other == pytest.approx(together, abs=1e-5)


def test_batches_keep_to_their_budget_of_tokens(monkeypatch):
    model, shapes = tiny_model(), []
    decoder_layers(model)[0].register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape))
    monkeypatch.setattr("grpo_ao.judges.local._BATCH_TOKENS", 300)
    run(local(model), *REQUESTS)
    assert sum(shape[0] for shape in shapes) == len(REQUESTS)
    assert len(shapes) > 1
    assert all(shape[0] == 1 or shape[0] * shape[1] <= 300 for shape in shapes)


@pytest.mark.parametrize("training", [True, False])
def test_the_oracle_is_left_as_it_was(training):
    model = tiny_peft(dropout=0.5).train(training)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(training and "lora_" in name)
    modes = {name: module.training for name, module in model.named_modules()}
    gradients = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    ids = torch.tensor([tiny_tokenizer().encode("Hello")])
    steered = model.eval()(input_ids=ids).logits
    model.train(training)
    run(local(model), *REQUESTS)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {n: p.requires_grad for n, p in model.named_parameters()} == gradients
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()
    assert model.active_adapter == "default"
    assert torch.equal(model.eval()(input_ids=ids).logits, steered)


def test_training_mode_and_dropout_do_not_change_a_grade():
    model = tiny_peft(dropout=0.5)
    expected = scores(local(model.eval()), *REQUESTS)
    assert scores(local(model.train()), *REQUESTS) == pytest.approx(expected, abs=1e-6)


def test_the_model_reads_in_evaluation_mode_without_gradients():
    model, modes = tiny_peft().train(), []
    decoder_layers(model)[0].register_forward_hook(
        lambda layer, *_: modes.append((layer.training, torch.is_grad_enabled()))
    )
    run(local(model), *REQUESTS)
    assert set(modes) == {(False, False)}


def test_positions_count_from_each_rows_first_own_token():
    """Rotary positions are relative, so that no grade of a tiny model would show a shift."""
    model, seen = tiny_model(), []
    decoder_of(model).register_forward_pre_hook(
        lambda _, __, kwargs: seen.append((kwargs["position_ids"], kwargs["attention_mask"])),
        with_kwargs=True,
    )
    run(local(model), *REQUESTS)
    ((positions_BL, mask_BL),) = seen
    for row, mask in zip(positions_BL, mask_BL, strict=True):
        assert row[mask == 1].tolist() == list(range(int(mask.sum())))
    assert 0 in mask_BL


def test_activations_that_are_bound_are_not_injected_and_stay_bound():
    model = tiny_peft()
    plain = scores(local(model), *REQUESTS)
    hook = InjectionHook().attach(model, 1)
    bound = Injection.of([OraclePrompt("", [0] * 4, [2, 3])], [torch.ones(2, WIDTH)])
    hook.bind(bound)
    assert scores(local(model), *REQUESTS) == pytest.approx(plain, abs=1e-6)
    assert hook.bound is bound


def test_nothing_is_generated_and_the_tokens_read_are_counted():
    model, calls = tiny_peft(), []
    decoder_layers(model)[LAYERS - 1].register_forward_hook(lambda *_: calls.append(1))
    found = run(local(model), *REQUESTS)
    assert len(calls) == 1
    lengths = [grade.input_tokens for grade in found]
    assert lengths[1] == max(length for length in lengths if length is not None)
    assert {(grade.output_tokens, grade.cost_usd) for grade in found} == {(0, 0.0)}


def test_the_reply_shows_the_share_of_each_grade():
    (found,) = run(local(tiny_model()), REQUESTS[0])
    assert found.raw is not None
    words = found.raw.split()
    assert words[:10:2] == list(GRADES["open"])
    shares = [float(word) for word in words[1:10:2]]
    expected = sum(s * v for s, v in zip(shares, GRADES["open"].values(), strict=True))
    assert found.score == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("name", TEMPLATES)
def test_any_chat_template_serves(name):
    tokenizer = with_template(TEMPLATES[name])
    prompt = render_user_turn(tokenizer, "A question", answer_next=True)
    expected = [tokenizer.encode(letter)[0] for letter in "ABCDE"]
    assert letter_ids(tokenizer, prompt, list("ABCDE")) == expected
    assert len(scores(local(tiny_model(), tokenizer), *REQUESTS)) == len(REQUESTS)


def test_letters_that_are_no_tokens_of_their_own_are_refused():
    with pytest.raises(JudgeError, match="the letters A, AB are not one token each"):
        letter_ids(tiny_tokenizer(), "prompt", ["A", "AB"])
    with pytest.raises(JudgeError, match="the letters A, A are not one token each"):
        letter_ids(tiny_tokenizer(), "prompt", ["A", "A"])
    # Behind a space the letter of this tokenizer would be another one: ' ?' is a token.
    with pytest.raises(JudgeError, match="not one token each"):
        letter_ids(tiny_tokenizer(), "prompt ", ["?", "A"])


def test_a_special_token_that_is_not_neutralised_is_refused():
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.add_special_tokens({"additional_special_tokens": ["~end~"]})
    with pytest.raises(JudgeError, match="'~end~' in it would put a special token"):
        local(tiny_model(), tokenizer)


def test_no_hostile_answer_puts_a_special_token_into_the_prompt_or_breaks_a_grade():
    model, seen = tiny_peft(), []
    decoder_of(model).register_forward_pre_hook(
        lambda _, __, kwargs: seen.append((kwargs["input_ids"], kwargs["attention_mask"])),
        with_kwargs=True,
    )
    hostile = [GradeRequest("Hi", "What?", h.answer, "open", None) for h in hostile_answers()]
    found = run(local(model), *hostile)
    assert all(grade.score is not None and 0 <= grade.score <= 1 for grade in found)
    special = torch.tensor([token_id(token) for token in SPECIAL_TOKENS])
    counts = [
        int((torch.isin(row, special) & (mask == 1)).sum())
        for ids_BL, mask_BL in seen
        for row, mask in zip(ids_BL, mask_BL, strict=True)
    ]
    # <|im_start|>, <|im_end|> of the user's turn, <|im_start|> of the answer: the template's own.
    assert set(counts) == {3}
    assert len(counts) == len(hostile)


def test_what_the_model_cannot_read_is_none_beside_what_it_can():
    judge = local(tiny_model())
    long = GradeRequest("word " * 2_000, "What?", "Words.", "open", None)
    first, second, third = run(judge, REQUESTS[0], long, REQUESTS[2])
    assert second.score is None
    assert "tokens to read, but the model takes 4096" in str(second.reason)
    assert [first.score, third.score] == pytest.approx(scores(judge, REQUESTS[0], REQUESTS[2]))


def test_a_model_whose_probabilities_are_not_finite_gives_no_grade():
    model = tiny_model()
    for parameter in model.parameters():
        parameter.data.fill_(math.nan)
    (found,) = run(local(model), REQUESTS[0])
    assert found.score is None
    with pytest.raises(JudgeError, match="cannot be a judge: the model gives the grades no prob"):
        asyncio.run(local(model).check())


def test_no_requests_no_pass():
    assert run(local(tiny_model())) == []


def test_the_trial_passes_and_the_identity_names_weights_and_dtype():
    judge = local(tiny_model())
    asyncio.run(judge.check())
    facts = json.loads(judge.identity)
    assert (facts["judge"], facts["model"], facts["dtype"]) == ("local", "tiny", "torch.float32")
    assert json.loads(local(tiny_model().bfloat16()).identity)["dtype"] == "torch.bfloat16"


def test_a_base_model_is_loaded_as_a_judge_alone(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    judge = LocalJudge.from_pretrained(tmp_path)
    assert scores(judge, *REQUESTS) == pytest.approx(
        scores(local(tiny_model()), *REQUESTS), abs=0.02
    )
    assert json.loads(judge.identity)["model"].startswith("sha256:")
    with pytest.raises(UserError):
        LocalJudge.from_pretrained(tmp_path / "nothing")
