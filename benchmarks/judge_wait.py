"""What a GRPO step waits for its judge: ``python -m benchmarks.judge_wait``.

The mini oracle, 8 questions x 8 completions a step, KL penalty 0.05, on the CPU. The judge is a
real HTTP server on 127.0.0.1 that takes 0.5 s for each request, all 64 at once. "after" grades when
TRL asks for the rewards, "ahead" from the end of generation on, as training does: the wait is
shorter by the time that the reference's log-probabilities take. Medians over the steps.
"""

import tempfile
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from grpo_ao.chat import ChatSettings
from grpo_ao.checks import trainer_config
from grpo_ao.config import TrainConfig, make_defaults
from grpo_ao.judges.api import ApiJudge
from grpo_ao.mini.probes import mini_probes
from grpo_ao.oracle.activations import SubjectTexts
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.store import ActivationStore, model_fingerprint
from grpo_ao.oracle.table import ProbeTable
from grpo_ao.probe import Positions
from grpo_ao.processes import Processes
from grpo_ao.reward import reward_rule
from grpo_ao.tracking import Reporter
from grpo_ao.training.monitor import Monitor
from grpo_ao.training.rewarding import CalibratedReward
from grpo_ao.training.trainer import OracleGRPOTrainer
from tests.judges.endpoint import grade, serving

LATENCY = 0.5
STEPS = 12


def measured(config: TrainConfig, base_url: str, ahead: bool) -> dict[str, float]:
    """Train for some steps; return the medians of what the monitor wrote."""
    folder = config.output_dir
    oracle = Oracle.from_pretrained(config.model, config.oracle_lora_path)
    for name, parameter in oracle.model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    probes = mini_probes("train", 8 * STEPS, [(4,)], Positions.parse(config.positions))
    fingerprint, texts = model_fingerprint(config.model), SubjectTexts(oracle.tokenizer)
    store = ActivationStore.build(
        folder / "activations", oracle.model, texts, probes, fingerprint, batch_size=64
    )
    chat = ChatSettings(model="a-model", base_url=base_url, api_key_env=None)
    monitor = Monitor(folder, Reporter(), plot_every=1000)
    OracleGRPOTrainer(
        oracle,
        ProbeTable.build(oracle, probes, store),
        CalibratedReward(ApiJudge(chat), reward_rule(config.calibration_lambda), ahead),
        oracle,
        trainer_config(config, Processes()),
        config.credit,
        config.scale_rewards,
        config.tag_outcome,
        monitor,
        config.max_unscored,
    ).train()
    names = ("seconds_judge", "seconds_generate", "seconds_score", "seconds_step")
    return {name: median(float(row[name] or 0) for row in monitor.history[1:]) for name in names}


def main() -> None:
    table = Table(title=f"Seconds of a step, {LATENCY} s a request")
    for name in ("grading", "wait for the judge", "generation", "scoring, wait included", "step"):
        table.add_column(name, justify="right")
    with serving(lambda _: grade("A", delay=LATENCY)) as endpoint:
        for ahead in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                defaults = make_defaults("mini", None)
                changes = {"output_dir": Path(folder), "max_steps": STEPS, "kl_penalty": 0.05}
                config = TrainConfig(**(vars(defaults) | changes))
                found = measured(config, endpoint.base_url, ahead)
            cells = [f"{seconds:.2f}" for seconds in found.values()]
            table.add_row("ahead" if ahead else "after", *cells)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
