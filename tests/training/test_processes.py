"""One run over two processes, on the CPU: the same rows, metrics and updates as in one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import DistributedType

from grpo_ao.processes import Processes, check_whole_model
from grpo_ao.training.config import TrainConfig
from grpo_ao.training.trl_args import check_divides
from tests.training.rigs import adapter_weights, make_oracle
from tests.training.together import GENERATIONS, QUESTIONS, grpo, warm_start

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """The folder in which two processes have run ``together.py``, and what they printed."""
    folder = tmp_path_factory.mktemp("together")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, "-m", "tests.training.together", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return folder, done.stderr


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
        # TRL averages the KL over tokens in each micro-batch, and then over micro-batches.
        assert found_row.pop("kl") == pytest.approx(row.pop("kl"), rel=0.2, abs=1e-6)
        assert found_row == pytest.approx(row, rel=1e-4, abs=1e-6)


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


def test_a_run_is_written_and_told_once(launched):
    folder, printed = launched[0] / "run", launched[1]
    assert printed.count("measuring before, greedy") == printed.count("held-out probes") == 1
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


@pytest.mark.parametrize("name", ["ddp", "deepspeed_zero2"])
def test_accelerate_reads_the_configurations_that_are_shipped(name):
    config = load_config_from_file(str(ROOT / "configs" / "accelerate" / f"{name}.yaml"))
    assert isinstance(config, ClusterConfig)
    assert (config.num_processes, config.mixed_precision, config.use_cpu) == (2, "bf16", False)
    stage = {"ddp": None, "deepspeed_zero2": 2}[name]
    assert (config.deepspeed_config or {}).get("zero_stage") == stage
    kind = DistributedType.DEEPSPEED if stage else DistributedType.MULTI_GPU
    assert config.distributed_type == kind


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("ACCELERATE_USE_FSDP", "true", "FSDP divides"),
        ("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3", "DeepSpeed ZeRO-3 divides"),
    ],
)
def test_weights_divided_over_processes_are_refused(monkeypatch, variable, value, named):
    check_whole_model()
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=named):
        check_whole_model()


def test_completions_that_do_not_divide_are_refused():
    config = TrainConfig(questions_per_step=3, num_generations=3)
    check_divides(config, 3)
    with pytest.raises(ValueError, match=r"3 questions x 3 completions a step are 9.*4 processes"):
        check_divides(config, 4)


def test_shares_cover_all_rows_in_order():
    for count in (1, 2, 3, 5):
        shares = []
        for index in range(count):
            processes = Processes()
            processes.index, processes.count = index, count
            shares.append(processes.share(range(7)))
        assert [row for share in shares for row in share] == list(range(7))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
