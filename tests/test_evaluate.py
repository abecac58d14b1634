import json
import re
import shutil
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from grpo_ao.cli import main, parse_eval_config
from grpo_ao.config import EVAL_PRESETS, EvalConfig
from grpo_ao.errors import UserError
from grpo_ao.evaluate import evaluate
from grpo_ao.files import MINI_WEIGHTS, atomic_write_json, read_json, read_jsonl
from grpo_ao.measuring import ask as asking
from grpo_ao.oracle.activations import SubjectTexts, extract_activations
from grpo_ao.oracle.hub import adapter_names
from grpo_ao.oracle.loading import load_tokenizer
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.spec import OracleSpec, save_spec
from grpo_ao.oracle.vllm.client import VllmRollouts
from grpo_ao.probe import Positions
from grpo_ao.probes.items import Item, probes_of
from grpo_ao.probes.limits import ProbeLimits, readable
from grpo_ao.probes.names import BENCHMARKS
from grpo_ao.report import tables
from tests.oracle.vllm import fake_vllm
from tests.tiny import add_adapter, tiny_peft, tiny_tokenizer

LAST = Positions.parse("last:20")


# Configuration


def test_the_flags_are_those_of_the_configuration():
    line = (
        "--model m --oracle_lora_path a --compare b c --benchmarks ner --num_contexts 10 "
        "--positions all --layer_percents 50"
    )
    config = parse_eval_config([*line.split()])
    assert config == EvalConfig(
        model="m",
        oracle_lora_path="a",
        compare=("b", "c"),
        benchmarks=("ner",),
        num_contexts=10,
        positions=("all",),
        layer_percents=(50,),
    )
    assert parse_eval_config(["--preset", "mini"]) == EvalConfig(**EVAL_PRESETS["mini"])


def test_a_file_sets_the_defaults_of_an_evaluation_too(tmp_path):
    path = tmp_path / "eval.yaml"
    path.write_text("rollout: vllm\nvllm: {seed: 1}\nnum_contexts: 4\n")
    config = parse_eval_config(["--config", str(path), "--preset", "mini", "--num_contexts", "6"])
    settings = EVAL_PRESETS["mini"] | {"rollout": "vllm", "vllm": {"seed": 1}, "num_contexts": 6}
    assert config == EvalConfig(**settings)
    path.write_text("lr: 1e-3\n")
    with pytest.raises(UserError, match="sets 'lr', which is no setting of this command"):
        parse_eval_config(["--config", str(path)])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"benchmarks": ("sst3",)}, "no benchmark 'sst3'"),
        ({"benchmarks": ()}, "--benchmarks names none"),
        ({"positions": ("first",)}, "positions 'first' are not understood"),
        ({"layers": ("last",)}, "layers 'last' are not understood"),
        ({"layers": ("2", "all")}, "layers 'all' are not understood"),
        ({"positions": ()}, "--positions names none"),
        ({"layer_percents": (100,)}, "--layer_percents must lie between 1 and 99"),
        ({"num_contexts": 1}, "--num_contexts must be at least 2"),
        ({"batch_size": 0}, "--batch_size must be above 0"),
        ({"suite": "mini", "data_dir": Path()}, "--data_dir has no part"),
    ],
)
def test_a_bad_setting_is_one_sentence(settings, message):
    with pytest.raises(ValueError, match=message):
        EvalConfig(**settings)


def test_an_unknown_preset_is_one_sentence():
    with pytest.raises(SystemExit, match=r"--preset maxi is unknown: .* smollm2-135m, mini"):
        main(["evaluate", "--preset", "maxi"])


def test_adapters_are_named_by_the_end_of_their_paths(tmp_path):
    for name in ("a/adapter", "b/adapter", "x/a/adapter"):
        (tmp_path / name).mkdir(parents=True)
    a, b, xa = (str(tmp_path / name) for name in ("a/adapter", "b/adapter", "x/a/adapter"))
    assert adapter_names([a, b, "user/repo"]) == {
        "a/adapter": a,
        "b/adapter": b,
        "user/repo": "user/repo",
    }
    assert adapter_names([a, xa]) == {a: a, xa: xa}
    with pytest.raises(ValueError, match="named twice"):
        adapter_names([a, a])


# Probes


ITEM = Item("ner", "a text", "a question?", "Yes")


def test_an_item_is_asked_at_each_layer_and_each_position():
    positions = [Positions.parse("token@-3"), Positions.parse("window:50@-1")]
    probes = probes_of([ITEM], [(1,), (2,), (2, 3)], positions, one_layer=False)
    where = [(str(p.positions), p.layers) for p in probes]
    assert where == [(str(p), layers) for p in positions for layers in ((1,), (2,), (2, 3))]
    assert {(p.family, p.reference, p.kind) for p in probes} == {("ner", "Yes", "closed")}


def test_one_layer_is_drawn_by_the_item_alone():
    items = [Item("ner", f"text {n}", "q", "Yes") for n in range(60)]
    probes = probes_of(items, [(1,), (2,), (2, 3)], [LAST])
    assert len(probes) == 60
    assert {p.layers for p in probes} == {(1,), (2,), (2, 3)}
    assert probes_of(items[::-1], [(1,), (2,), (2, 3)], [LAST]) == probes[::-1]


def test_a_text_of_which_nothing_would_be_read_is_left_out_and_said_unless_it_is_the_only_one(
    capsys,
):
    long = Item("ner", "a text " * 40, "a question?", "Yes")
    probes = probes_of([long, ITEM], [(1,)], [Positions.parse("token@-50")])
    assert readable([context(4096)], probes) == probes[:1]
    assert "1 probes are left out. The first: cannot read 'a text'" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"no probe can be read\. The first: cannot read 'a text'"):
        readable([context(4096)], probes[1:])


def context(positions: int) -> ProbeLimits:
    return ProbeLimits(SubjectTexts(tiny_tokenizer()), OracleSpec(), positions, max_new_tokens=8)


def test_an_item_that_does_not_fit_into_one_of_the_oracles_is_left_out_and_said(capsys):
    long = Item("ner", "a text " * 40, "a question?", "Yes")
    probes = probes_of([long, ITEM], [(1,)], [LAST], one_layer=False)
    assert readable([context(4096)], probes) == probes
    assert readable([context(4096), context(200)], probes) == probes[1:]
    assert "1 probes are left out. The first: the text 'a text" in capsys.readouterr().out


# Answers of the mini oracle


MINI = EVAL_PRESETS["mini"]


@pytest.fixture(scope="module")
def mini():
    return Oracle.from_pretrained(MINI["model"], MINI["oracle_lora_path"], device="cpu")


# The whole of it


def flags(tmp_path, **settings):
    given = {"num_contexts": 2, "benchmarks": ("ner",), "output_dir": tmp_path / "out"} | settings
    return EvalConfig(**(MINI | given))


@pytest.fixture
def few_draws(monkeypatch):
    """Make intervals of few draws: what they are worth is tested elsewhere."""
    small = lambda columns, **_: _measure(columns, draws=5)  # noqa: E731
    _measure, _difference = tables.measure, tables.measure_difference
    monkeypatch.setattr(tables, "measure", small)
    monkeypatch.setattr(tables, "measure_difference", lambda a, b: _difference(a, b, draws=5))
    _reading, _against = tables.reading_metrics, tables.against_stated
    monkeypatch.setattr(tables, "reading_metrics", lambda controlled: _reading(controlled, draws=5))
    monkeypatch.setattr(tables, "against_stated", lambda a, b: _against(a, b, draws=5))


@pytest.fixture
def no_figures(monkeypatch):
    monkeypatch.setattr(tables, "draw_figures", lambda *_: None)


def count_loads(monkeypatch) -> list:
    loads, load = [], Oracle.load
    counted = lambda *given, **more: loads.append(given) or load(*given, **more)  # noqa: E731
    monkeypatch.setattr(Oracle, "load", counted)
    return loads


def test_two_oracles_are_compared_on_the_same_items(tmp_path, few_draws, mini, monkeypatch):
    other = tmp_path / "changed"
    mini.save_adapter(other)
    loads = count_loads(monkeypatch)
    weights = other / "adapter_model.safetensors"
    save_file({name: 0.5 * w for name, w in load_file(weights).items()}, weights)
    metrics = evaluate(flags(tmp_path, compare=(str(other),)))
    folder = tmp_path / "out"
    main, changed = metrics["oracles"]
    assert list(metrics["differences"]) == [f"{main} - {changed}"]
    # One base serves both; what the second says is what it says alone.
    assert len(loads) == 1
    alone = evaluate(flags(tmp_path, oracle_lora_path=str(other), output_dir=tmp_path / "alone"))
    rows = [json.loads(line) for line in (tmp_path / "alone" / "rows.jsonl").open()]
    compared = [json.loads(line) for line in (folder / "rows.jsonl").open()][len(rows) :]
    assert list(alone["oracles"]) == [changed]
    assert rows == compared
    rows = [json.loads(line) for line in (folder / "rows.jsonl").open()]
    for row in rows[:2]:
        assert row["completion"].startswith(f"[epistemic status: {100 * row['confidence']:.0f}] ")
        assert row["informativeness"] == (row["answer"] == row["reference"])
        # Greedy: what is said is the likelier of the two.
        assert (row["yes_probability"] > 0.5) == (row["answer"] == "Yes")
        assert row["agreement"]["samples"] == 20
    assert [(r["oracle"], r["family"]) for r in rows] == [
        (oracle, "ner") for oracle in (main, main, changed, changed)
    ]
    assert json.loads((folder / "metrics.json").read_text())["oracles"].keys() == {main, changed}
    written = {p.name for p in folder.iterdir()}
    figures = {
        f"{n}.{s}" for n in ("reliability", "risk_coverage", "layers") for s in ("png", "svg")
    }
    assert written >= figures | {"metrics.md"}
    # And each was asked again, on other activations.
    rows = [json.loads(line) for line in (folder / "controls.jsonl").open()]
    assert {row["oracle"] for row in rows} == {main, changed}
    assert {"noise", "question_alone", "P(True)"} <= {row["control"] for row in rows}
    for measured in metrics["oracles"].values():
        assert measured["reading"]["noise of the same norms"]["other"]["n"] == 2
        assert measured["baselines"]["expected number"]["n"] == 2
        assert measured["findings"]


@pytest.mark.parametrize(
    ("swept", "shown"),
    [({"layers": ("all",)}, "01234567"), ({"layer_percents": (50, 90)}, "47")],
)
def test_a_sweep_asks_each_question_at_every_layer(tmp_path, few_draws, no_figures, swept, shown):
    metrics = evaluate(flags(tmp_path, **swept, controls=False))
    (oracle,) = metrics["oracles"].values()
    assert {layer: m["n"] for layer, m in oracle["layers"].items()} == dict.fromkeys(shown, 2)
    assert "| 7 \N{DAGGER} | 2 |" in (tmp_path / "out" / "metrics.md").read_text()


def mini_base():
    return AutoModelForCausalLM.from_pretrained(MINI_WEIGHTS / "base", dtype=torch.float32)


def test_each_subject_is_read_with_its_own_adapter(tmp_path, few_draws, no_figures, monkeypatch):
    subjects = []
    for seed in (1, 2):
        subjects.append(str(tmp_path / f"tuned/{seed}"))
        add_adapter(mini_base(), seed).save_pretrained(subjects[-1])
    tables = []

    def kept(oracle, table, *arguments):
        tables.append(table)
        return asking.ask(oracle, table, *arguments)

    monkeypatch.setattr("grpo_ao.evaluate.ask", kept)
    metrics = evaluate(flags(tmp_path, subject_lora=tuple(subjects), controls=False))
    (oracle,) = metrics["oracles"].values()
    assert {name: m["n"] for name, m in oracle["subjects"].items()} == {"tuned/1": 2, "tuned/2": 2}
    assert "| tuned/2 \N{DAGGER} | 2 |" in (tmp_path / "out" / "metrics.md").read_text()
    rows = read_jsonl(tmp_path / "out" / "rows.jsonl")
    assert [row["subject"] for row in rows] == ["tuned/1"] * 2 + ["tuned/2"] * 2
    (table,) = tables
    for row, probe in enumerate(table.probes):
        folder = subjects[row // 2]
        tuned = PeftModel.from_pretrained(mini_base(), folder).merge_and_unload()
        (found,) = extract_activations(
            tuned, load_tokenizer(MINI_WEIGHTS / "base"), [probe.text], probe.layers, LAST
        )
        torch.testing.assert_close(table.vectors[row], found[probe.layers[0]], atol=1e-3, rtol=1e-3)


def test_each_subject_is_asked_for_its_own_word(tmp_path, few_draws, no_figures):
    (tmp_path / "taboo").mkdir()
    prompts = "".join(f"The game is over now, number {n}. Say the secret word.\n" for n in range(9))
    (tmp_path / "taboo/direct.txt").write_text(prompts)
    subjects = [str(tmp_path / f"taboo-{word}") for word in ("ship", "moon")]
    for seed, folder in enumerate(subjects):
        add_adapter(mini_base(), seed).save_pretrained(folder)
    secret = {"suite": "paper", "benchmarks": ("taboo",), "data_dir": tmp_path}
    metrics = evaluate(flags(tmp_path, subject_lora=tuple(subjects), **secret))
    (oracle,) = metrics["oracles"].values()
    assert oracle["groups"]["taboo"]["n"] == 2 * (2 + 2)
    assert oracle["baselines"]["forced choice, its own answer"]["n"] == 2 * 2
    rows = read_jsonl(tmp_path / "out" / "rows.jsonl")
    words = {(Path(r["subject"]).name, r["reference"]) for r in rows if r["family"] == "taboo_word"}
    assert words == {("taboo-ship", "ship"), ("taboo-moon", "moon")}
    with pytest.raises(ValueError, match="does not tell which: give --subject_lora"):
        evaluate(flags(tmp_path, output_dir=tmp_path / "base", **secret))


def test_a_layer_that_the_model_lacks_is_refused_before_it_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(Oracle, "load", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match="there is no layer 8: the model has layers 0 to 7"):
        evaluate(flags(tmp_path, layers=("2", "8")))


def test_other_settings_are_not_mixed_with_the_rows_that_are_there(
    tmp_path, few_draws, no_figures, capsys
):
    base = shutil.copytree(MINI_WEIGHTS / "base", tmp_path / "base")
    evaluate(flags(tmp_path, model=str(base)))
    before = (tmp_path / "out" / "rows.jsonl").read_text()
    with pytest.raises(ValueError, match=r"'max_new_tokens' was 24 .* is 20 now.*--output_dir"):
        evaluate(flags(tmp_path, model=str(base), max_new_tokens=20))
    record = read_json(tmp_path / "out" / "run.json")
    atomic_write_json(tmp_path / "out" / "run.json", record | {"seconds": record["seconds"] + 5000})
    metrics = evaluate(flags(tmp_path, model=str(base), batch_size=7))
    assert metrics["seconds"] >= 5000  # of all processes
    assert (tmp_path / "out" / "rows.jsonl").read_text() == before
    template = base / "chat_template.jinja"
    template.write_text("{{ strftime_now('%d %b %Y') }}" + template.read_text())
    with pytest.raises(ValueError, match="the digest of 'chat template' was"):
        evaluate(flags(tmp_path, model=str(base)))
    assert "writes today's date" in " ".join(capsys.readouterr().err.split())


def test_an_adapter_that_does_not_fit_is_refused_before_the_model_is_loaded(tmp_path, monkeypatch):
    other = Qwen3Config(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8)  # fmt: skip
    add_adapter(Qwen3ForCausalLM(other)).save_pretrained(str(tmp_path / "misfit"))
    monkeypatch.setattr(Oracle, "load", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match="does not fit the base model"):
        evaluate(flags(tmp_path, compare=(str(tmp_path / "misfit"),)))
    assert not (tmp_path / "out").exists()


def test_an_oracle_that_states_nothing_is_measured_by_the_rest(
    tmp_path, few_draws, no_figures, capsys
):
    # Eight tokens are too few for tag and answer.
    metrics = evaluate(flags(tmp_path, max_new_tokens=6, controls=False))
    (oracle,) = metrics["oracles"].values()
    said = " ".join(capsys.readouterr().err.split())
    assert "states a confidence" in said
    assert re.search(r"oracle: informativeness [01]\.\d{3}, auroc_within", said)
    assert oracle["groups"]["all"]["parse_rate"]["value"] == 0
    assert "stated confidence" not in oracle["baselines"]
    assert "answer probability" in oracle["baselines"]


# By vLLM


def test_an_evaluation_without_vllm_is_refused_before_a_model_is_loaded(monkeypatch):
    monkeypatch.setattr(Oracle, "load", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(SystemExit, match=r"^error: --rollout vllm needs vLLM, which is not"):
        main(["evaluate", "--preset", "mini", "--rollout", "vllm"])


def test_a_server_answers_in_the_place_of_each_oracles_model(
    tmp_path, few_draws, no_figures, monkeypatch
):
    base, adapters = tmp_path / "base", [str(tmp_path / name) for name in ("one", "other")]
    tiny_peft().unload().save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    for adapter in adapters:
        Oracle(tiny_peft(), tiny_tokenizer(), OracleSpec()).save_adapter(adapter)
    fake_vllm.install(monkeypatch)
    engine = VllmRollouts(fake_vllm.tiny_oracle(), 0.25, 4096, {})._engine
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    one, other = adapters
    with fake_vllm.served(engine) as url:
        settings = {"rollout": "vllm", "vllm_servers": (url,), "compare": (other,)}
        settings |= {"model": str(base), "oracle_lora_path": one, "positions": ("last:3",)}
        evaluate(flags(tmp_path, **settings))
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").open()]
    # The stand-in's first sample is these two tokens, whatever is asked.
    assert [row["token_ids"] for row in rows] == [[0, 2]] * 4
    controls = [json.loads(line) for line in (tmp_path / "out" / "controls.jsonl").open()]
    assert "P(True)" in {row["control"] for row in controls}
    assert {tuple(row["token_ids"]) for row in controls} == {(0, 2)}


# The nine real data sets


def tiny_qwen3(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
    )
    model = Qwen3ForCausalLM(config)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    add_adapter(model).save_pretrained(str(folder / "adapter"))
    save_spec(OracleSpec(), folder / "adapter")


def test_the_nine_real_data_sets_with_qwen3s_tokenizer(
    shared, tmp_path, few_draws, no_figures, monkeypatch
):
    # To draw from 151,669 tokens takes a CPU long.
    monkeypatch.setattr(asking, "AGREEMENT_SAMPLES", 2)
    tokenizer = AutoTokenizer.from_pretrained(shared / "qwen3_tokenizer")
    template = files("trl") / "chat_templates" / "qwen3.jinja"
    tokenizer.chat_template = template.read_text(encoding="utf-8")
    tiny_qwen3(tmp_path, tokenizer)
    arguments = {
        "--model": str(tmp_path / "base"),
        "--oracle_lora_path": str(tmp_path / "adapter"),
        "--data_dir": str(shared / "classification"),
        "--output_dir": str(tmp_path / "out"),
        "--num_contexts": "2",
        "--max_new_tokens": "2",
        "--layer_percents": "50",
    }
    main(["evaluate", *(part for pair in arguments.items() for part in pair)])
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").open()]
    # 9 benchmarks, 2 contexts, 2 position modes, 1 layer.
    assert len(rows) == 9 * 2 * 2
    assert {row["family"] for row in rows} == set(BENCHMARKS)
    assert {row["layer"] for row in rows} == {2}
    assert {row["positions"] for row in rows} == {"token@-3", "window:50@-1"}
    assert all(row["question"].startswith("Answer with 'Yes' or 'No' only. ") for row in rows)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    (oracle,) = metrics["oracles"].values()
    assert oracle["groups"]["in_distribution"]["n"] == 7 * 4
    assert oracle["groups"]["out_of_distribution"]["n"] == 2 * 4
    assert oracle["benchmarks"]["ner"]["contexts"] == 2
