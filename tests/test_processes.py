"""One run over two processes, on the CPU: the same rows, metrics and updates as in one."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file

from grpo_ao.checks import check_processes, check_sharded
from grpo_ao.cli import main
from grpo_ao.config import TrainConfig
from grpo_ao.files import read_jsonl
from grpo_ao.processes import Processes, take_over_fsdp
from tests.rigs import adapter_weights, make_oracle
from tests.together import GENERATIONS, QUESTIONS, grpo, oracle_flags, warm_start

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = (sys.executable, "-m", "accelerate.commands.launch")


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """The folder in which two processes have run ``together.py``, and what they printed."""
    folder = tmp_path_factory.mktemp("together")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, "-m", "tests.together", "all", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,  # Processes that wait for each other wait for ever.
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return folder, done.stderr, done.stdout


@pytest.fixture(scope="module")
def results(launched):
    return [torch.load(launched[0] / f"process_{index}.pt") for index in (0, 1)]


def metrics(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds", "tokens_per_second")
    steps = [row for row in rows if "alert" not in row]
    return [{k: v for k, v in row.items() if not k.startswith(timed)} for row in steps]


def assert_equal_weights(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-4, msg=name)


def test_two_processes_make_the_update_and_the_metrics_of_one(launched, results, tmp_path):
    alone, _ = grpo(tmp_path, Processes())
    start = adapter_weights(make_oracle())
    assert max((alone[name] - start[name]).abs().max() for name in start) > 0.01
    for result in results:
        assert_equal_weights(result["adapter"], alone)
    together, expected = metrics(launched[0] / "together"), metrics(tmp_path)
    assert len(together) == len(expected) == 2
    for found_row, row in zip(together, expected, strict=True):
        # TRL averages these over tokens in each micro-batch, and then over micro-batches.
        assert found_row.pop("kl") == pytest.approx(row.pop("kl"), rel=0.2, abs=1e-6)
        assert found_row.pop("entropy") == pytest.approx(row.pop("entropy"), rel=1e-3)
        assert found_row == pytest.approx(row, rel=1e-4, abs=1e-6)


def test_what_the_main_process_refuses_is_one_sentence(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    flags = ["--preset", "mini", "--output_dir", str(tmp_path / "run")]
    flags += ["--oracle_lora_path", str(tmp_path)]
    done = subprocess.run(
        [*command, "train.py", *flags], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1
    # The launcher's own account of the failure is all that follows.
    assert "grpo_ao" not in done.stderr.partition("error: ")[2].partition("\n")[2]


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
def test_zero_2_makes_the_update_of_one_process(tmp_path):
    text = (ROOT / "configs" / "accelerate" / "deepspeed_zero2.yaml").read_text()
    config = tmp_path / "cpu.yaml"
    config.write_text(text.replace("use_cpu: false", "use_cpu: true").replace("bf16", "'no'"))
    together, alone = tmp_path / "together", tmp_path / "alone"
    done = subprocess.run(
        [*LAUNCH, "--config_file", config, "-m", "tests.together", "grpo", together],
        cwd=ROOT,
        env=os.environ | {"DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    expected, _ = grpo(alone, Processes())
    for index in (0, 1):
        assert_equal_weights(torch.load(together / f"process_{index}.pt"), expected)


def test_each_row_gets_its_own_vectors_in_each_process(results):
    # Every pass was compared with the planted vectors; here: each process had its own half.
    # A packed row holds one prompt's completions, of the three in a micro-batch.
    for result in results:
        assert {len(rows) for rows in result["rows"]} <= {1, 2, QUESTIONS * GENERATIONS // 4}
    first, second = ({row for rows in result["rows"] for row in rows} for result in results)
    # The second of three questions is spread over both.
    assert first != second and first & second


def test_the_warm_start_makes_the_update_of_one_process(results):
    adapter, losses = warm_start(Processes())
    for result in results:
        assert_equal_weights(result["warmed"], adapter)
        assert result["losses"] == pytest.approx(losses, rel=1e-5)


def test_an_oracle_is_made_as_by_one_process(launched, tmp_path):
    main(oracle_flags(tmp_path / "oracle"))
    found, expected = (
        load_file(folder / "oracle/adapter/adapter_model.safetensors")
        for folder in (launched[0], tmp_path)
    )
    assert max(weight.abs().max() for name, weight in expected.items() if "lora_B" in name) > 1e-3
    assert_equal_weights(found, expected)
    assert launched[2].count("oracle/adapter\n") == 1


def test_a_divided_base_makes_the_updates_of_a_whole_one(results):
    for result in results:
        assert_equal_weights(result["divided"], result["adapter"])
        assert_equal_weights(result["divided_warmed"], result["warmed"])


def test_a_run_with_a_divided_base_makes_what_one_with_a_whole_base_does(launched):
    whole, divided = (launched[0] / name for name in ("run", "divided_base/run"))
    names = {path.relative_to(whole) for path in whole.rglob("*") if path.suffix != ".png"}
    names.discard(Path("run.log"))  # of so short a run it holds alerts alone, if there were any
    assert names <= {path.relative_to(divided) for path in divided.rglob("*")}
    # A divided base is not merged into, so that probabilities are the same but for rounding.
    rows = [read_jsonl(folder / "heldout_before_greedy.jsonl") for folder in (whole, divided)]
    assert len(rows[0]) == len(rows[1])
    for one, other in zip(*rows, strict=True):
        assert other == {
            k: pytest.approx(v, rel=1e-4) if type(v) is float else v for k, v in one.items()
        }
    # The base's own weights stand behind it whole, wherever it is loaded.
    expected, found = (load_file(f / "adapter/adapter_model.safetensors") for f in (whole, divided))
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in expected.items()}


@pytest.mark.parametrize("name", ["run", "divided_base/run"])
def test_a_run_is_written_and_told_once(launched, name):
    folder, printed = launched[0] / name, launched[1]
    assert printed.count("measuring before, greedy") == 2
    # A long path may end the line anywhere.
    assert "".join(printed.split()).count("rows,metricsandadapter") == 2
    assert [row["step"] for row in metrics(folder)] == [1, 2]
    rollouts = (folder / "rollouts.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rollouts] == [2] * 6
    for when in ("before", "after"):
        for mode in ("sampled", "greedy"):
            rows = (folder / f"heldout_{when}_{mode}.jsonl").read_text().splitlines()
            assert len({json.loads(row)["probe_id"] for row in rows}) == 5
    checkpoint = folder / "checkpoints" / "checkpoint-2"
    assert {"complete.json", "rng_state_0.pth", "rng_state_1.pth"} <= {
        path.name for path in checkpoint.iterdir()
    }
    assert (folder / "adapter" / "ao_config.json").is_file()
    assert (folder / "summary.json").is_file()


@pytest.mark.parametrize("name", ["ddp", "deepspeed_zero2", "fsdp"])
def test_accelerate_reads_the_configurations_that_are_shipped(name):
    config = load_config_from_file(str(ROOT / "configs" / "accelerate" / f"{name}.yaml"))
    assert isinstance(config, ClusterConfig)
    assert (config.num_processes, config.mixed_precision, config.use_cpu) == (2, "bf16", False)
    stage, kind = {
        "ddp": (None, DistributedType.MULTI_GPU),
        "deepspeed_zero2": (2, DistributedType.DEEPSPEED),
        "fsdp": (None, DistributedType.FSDP),
    }[name]
    assert (config.deepspeed_config or {}).get("zero_stage") == stage
    assert config.distributed_type == kind


def launcher_environment(name: str) -> dict[str, str]:
    """What accelerate's launcher sets for a configuration that is shipped."""
    args = launch_command_parser().parse_args(
        ["--config_file", str(ROOT / "configs" / "accelerate" / f"{name}.yaml"), "train.py"]
    )
    args, _, _ = _validate_launch_command(args)
    return prepare_multi_gpu_env(args)


@pytest.mark.parametrize(("name", "divided"), [("ddp", False), ("fsdp", True)])
def test_fsdp_is_taken_over_from_the_launcher(monkeypatch, name, divided):
    for variable, value in launcher_environment(name).items():
        monkeypatch.setenv(variable, value)
    assert take_over_fsdp() is divided
    assert "ACCELERATE_USE_FSDP" not in os.environ


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("FSDP_VERSION", "1", "fsdp_version to 1, but only 2"),
        ("FSDP_RESHARD_AFTER_FORWARD", "false", "fsdp_reshard_after_forward to false"),
        ("FSDP_OFFLOAD_PARAMS", "true", "fsdp_offload_params to true, but only false"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "use --gradient_checkpointing"),
        ("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3", "ZeRO-3 divides the adapter too"),
    ],
)
def test_what_dividing_the_base_does_not_do_is_refused(monkeypatch, variable, value, named):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=named):
        take_over_fsdp()


@pytest.mark.parametrize(
    ("settings", "processes", "named"),
    [
        ({}, 1, "there is one alone"),
        ({"load_in_4bit": True}, 2, "leave out --load_in_4bit"),
        ({"judge": "local"}, 2, "use --judge api"),
        ({"rollout": "vllm"}, 2, "name --vllm_servers"),
    ],
)
def test_runs_that_need_a_whole_base_are_refused(settings, processes, named):
    check_sharded(TrainConfig(), 2)
    check_sharded(TrainConfig(rollout="vllm", vllm_servers=("http://a", "http://b")), 2)
    with pytest.raises(ValueError, match=named):
        check_sharded(TrainConfig(**settings), processes)


def test_completions_that_do_not_divide_are_refused():
    config = TrainConfig(questions_per_step=3, num_generations=3)
    check_processes(config, 3)
    with pytest.raises(ValueError, match=r"3 questions x 3 completions a step are 9.*4 processes"):
        check_processes(config, 4)


def test_shares_cover_all_rows_in_order():
    for count in (1, 2, 3, 5):
        shares = []
        for index in range(count):
            processes = Processes()
            processes.index, processes.count = index, count
            shares.append(processes.share(range(7)))
        assert [row for share in shares for row in share] == list(range(7))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
