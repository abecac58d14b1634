"""The method on a real oracle and real text: ``python -m benchmarks.real --help``.

Trains the oracle by ``train.py`` on the questions that its supervised stage did not teach, once for
each arm and seed, several beside each other, and asks the oracle before, after its warm start and
as shipped the nine benchmarks' held-out questions: greedily, at one layer, on their own activations
and on wrong ones. Prints one table, means over the seeds with the 95 % interval of Student's t,
accuracy beside that of the oracle before and the number beside the answers' probability, what
GRPO adds to each warm start, there and on the validation texts that decide what ships, and each
arm less the recipe. A call that was killed goes on where it was.

Arms that differ in GRPO alone share a seed's warm start. What no flag changes (the anchor, the
targets, where KL counts) is changed in the training process (``benchmarks.arms``).
"""

import json
import os
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from benchmarks.method import (
    mean_cell,
    paired_cell,
    run_side_by_side,
    take_warm_start,
    visible_gpus,
)
from grpo_ao.answer import Answer, read_answer_rows
from grpo_ao.calibration import auroc, bootstrap_interval, brier, ece
from grpo_ao.config import make_defaults
from grpo_ao.discrimination import within_family_auroc
from grpo_ao.files import atomic_write_text
from grpo_ao.judges.reference import ReferenceJudge
from grpo_ao.measuring.ask import Asking, ask
from grpo_ao.measuring.confidences import METHODS
from grpo_ao.measuring.controls import control_table
from grpo_ao.measuring.metrics import STATED, Columns, Confidence
from grpo_ao.measuring.reading import CONTROLS, Control
from grpo_ao.oracle.activations import SubjectTexts
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.store import ActivationStore, model_fingerprint
from grpo_ao.oracle.table import ProbeTable
from grpo_ao.probe import Positions
from grpo_ao.probes.benchmarks import load_items
from grpo_ao.probes.items import probes_of
from grpo_ao.probes.names import BENCHMARKS, OUT_OF_DISTRIBUTION
from grpo_ao.processes import Processes
from grpo_ao.report.plots import Panel, reliability_diagram, save
from grpo_ao.reward import reward_rule, rewarded

POSITIONS = "window:50@-1"
# What every run is told; a seed's own flags and an arm's come behind.
TRAIN = (
    "--preset smollm2-135m --no_initial_eval --eval_probes 500 "
    f"--validation_probes 1000 --positions {POSITIONS} --num_generations 8"
)


@dataclass(frozen=True)
class Arm:
    """Flags of ``train.py``; ``warm`` names the arms that share a warm start.

    Without flags an arm is the recipe, or one of ``benchmarks.arms``.
    """

    flags: str = ""
    warm: str = "recipe"


ARMS = {
    "recipe": Arm(),
    "tag outcome group": Arm("--tag_outcome group"),
    "lr 2e-5": Arm("--lr 2e-5"),
    "lr 1e-4": Arm("--lr 1e-4"),
    "kl 0.02": Arm("--kl_penalty 0.02"),
    "kl 0.5": Arm("--kl_penalty 0.5"),
    "kl 0.2 on tags, too": Arm(),
    "groups of 4": Arm("--num_generations 4 --questions_per_step 64"),
    "groups of 16": Arm("--num_generations 16 --questions_per_step 16"),
    "answer probability in the reward": Arm(),
    "more wrong activations": Arm("--wrong_activations 0.2", "more wrong activations"),
    "fewer wrong activations": Arm("--wrong_activations 0.05", "fewer wrong activations"),
    "no wrong activations": Arm("--wrong_activations 0", "no wrong activations"),
    "answer probability alone": Arm(warm="answer probability alone"),
    "no anchor": Arm(warm="no anchor"),
    "anchor 2": Arm(warm="anchor 2"),
    "targets of the family": Arm(warm="targets of the family"),
}


@dataclass(frozen=True)
class Settings:
    """Which oracle, which data, and how many runs at a time."""

    oracle: str
    """Adapter of the oracle, as the supervised stage made it."""
    model: str
    """Its base model."""
    data_dir: Path
    """Folder with the benchmarks' data."""
    questions: Path
    """What the supervised stage did not teach: `questions.jsonl` in the folder of its run."""
    output_dir: Path = Path("runs/real")
    """Folder of all runs and of the rows that are measured."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of each arm."""
    arms: tuple[str, ...] = ("recipe",)
    """Arms to train: any of those in this file."""
    jobs: int = 3
    """Runs beside each other, on a GPU each where there are several."""
    contexts: int = 250
    """Held-out contexts of each benchmark."""
    controls: int = 500
    """Benchmark questions that are also asked on wrong activations."""
    train: str = ""
    """Further flags of train.py for every run, in one string."""


# Training


def folder_of(settings: Settings, arm: str, seed: int) -> Path:
    """Return the folder of one run."""
    return settings.output_dir / f"{arm.replace(' ', '-')}-{seed}"


def commands(settings: Settings, first: bool) -> dict[Path, list[str]]:
    """Return the commands of the runs that make a warm start, or of those that take one."""
    found = {}
    for name in settings.arms:
        arm = ARMS[name]
        if (arm.warm == name) != first:
            continue
        for seed in settings.seeds:
            folder = folder_of(settings, name, seed)
            if (folder / "summary.json").exists():
                continue
            source = folder_of(settings, arm.warm, seed)
            if (source / "warm_start").exists():
                take_warm_start(source, folder)
            words = [*shlex.split(f"{TRAIN} {settings.train} {arm.flags}"), "--seed", str(seed)]
            words += ["--model", settings.model, "--oracle_lora_path", settings.oracle]
            words += ["--questions", str(settings.questions)]
            words += ["--output_dir", str(folder)]
            words += ["--resume"] if (folder / "run.json").exists() else []
            share = -(-settings.jobs // max(1, len(visible_gpus())))
            change = "" if arm.flags or name == "recipe" else name
            call = f"train_arm({change!r}, {share}, {words!r})"
            code = f"from benchmarks.arms import train_arm; {call}"
            found[folder] = [sys.executable, "-c", code]
    return found


# Measuring

Measured = dict[tuple[str, str], list[Answer]]
"""Answers by the adapter's name and the activations that were asked about: own or a control."""


def measure(settings: Settings) -> Measured:
    """Ask every adapter the benchmarks; return the answers by adapter and by activations."""
    adapters = {"before": Path(settings.oracle)}
    for arm in settings.arms:
        for seed in settings.seeds:
            folder = folder_of(settings, arm, seed)
            adapters[f"{ARMS[arm].warm}, warm start/{seed}"] = folder / "warm_start"
            adapters[f"{arm}, shipped/{seed}"] = folder / "adapter"
    oracle = Oracle.from_pretrained(settings.model, settings.oracle)
    items = load_items("paper", BENCHMARKS, settings.contexts, settings.data_dir)
    probes = probes_of(
        items, oracle.spec.act_layer_combinations, [Positions.parse(POSITIONS)], one_layer=True
    )
    store = ActivationStore.build(
        settings.output_dir / "activations",
        oracle.model,
        SubjectTexts(oracle.tokenizer),
        probes,
        model_fingerprint(settings.model),
    )
    rows = settings.output_dir / "rows"
    rows.mkdir(exist_ok=True)
    answers = {}
    for name, adapter in adapters.items():
        oracle = oracle.with_adapter(adapter)
        table = ProbeTable.build(oracle, probes, store)
        some = range(0, len(table), max(1, len(table) // settings.controls))
        tables = {"own": table}
        tables |= {str(control): control_table(table, control, some)[1] for control in CONTROLS}
        for activations, asked in tables.items():
            answers[name, activations] = ask(
                oracle,
                asked,
                ReferenceJudge(),
                Asking(16, probabilities=activations == "own"),
                Processes(),
                rows / f"{name.replace('/', ' ')}.jsonl",
                {"oracle": name, "activations": activations},
            )
    return answers


# The table

COLUMNS = (
    *("accuracy", "parse rate", "ECE10", "Brier", "AUROC within", "Brier less P(answer)'s"),
    *("P(answer) ECE10", "P(answer) AUROC within", "ECE10 out", "Brier out"),
    *(f"confidence less accuracy, {name}" for name in CONTROLS.values()),
)


def values_of(own: Sequence[Answer], wrong: Mapping[Control, Sequence[Answer]]) -> dict[str, float]:
    """Return one oracle's row: ``own`` are its answers on their own activations."""
    inside = [a for a in own if a.probe.family not in OUT_OF_DISTRIBUTION]
    outside = [a for a in own if a.probe.family in OUT_OF_DISTRIBUTION]
    of_stated, of_answer = scores(inside, STATED), scores(inside, METHODS["answer probability"])
    return {
        "accuracy": float(np.mean([a.informativeness or 0.0 for a in own])),
        "parse rate": float(np.mean([a.parsed for a in own])),
        "ECE10": of_stated["ece10"],
        "Brier": of_stated["brier"],
        "AUROC within": of_stated["within"],
        "Brier less P(answer)'s": of_stated["brier"] - of_answer["brier"],
        "P(answer) ECE10": of_answer["ece10"],
        "P(answer) AUROC within": of_answer["within"],
        "ECE10 out": scores(outside, STATED)["ece10"],
        "Brier out": scores(outside, STATED)["brier"],
    } | {
        f"confidence less accuracy, {CONTROLS[name]}": scores(answers, STATED)["surplus"]
        for name, answers in wrong.items()
    }


def scores(answers: Sequence[Answer], confidence: Confidence) -> dict[str, float]:
    """Return the metrics of one confidence in some answers, NaN where it is known of none."""
    known = [(c, a) for a in answers if (c := confidence(a)) is not None]
    if not known:
        return dict.fromkeys(("ece10", "brier", "auroc", "within", "surplus"), float("nan"))
    sure_N = np.array([c for c, _ in known])
    right_N = np.array([a.informativeness for _, a in known], dtype=float)
    family_N = np.array([a.probe.family for _, a in known])
    return {
        "ece10": ece(sure_N, right_N),
        "brier": brier(sure_N, right_N),
        "auroc": auroc(sure_N, right_N >= 0.5),
        "within": within_family_auroc(sure_N, right_N >= 0.5, family_N).auroc,
        "surplus": float(sure_N.mean() - right_N.mean()),
    }


def table_of(answers: Measured) -> str:
    """Return the table in Markdown, and below it what GRPO adds to each warm start, by seed."""
    found: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    for name, activations in answers:
        if activations == "own":
            label, _, seed = name.partition("/")
            wrong: dict[Control, Sequence[Answer]] = {
                control: answers[name, control] for control in CONTROLS
            }
            found[label][seed] = values_of(answers[name, "own"], wrong)
    lines = [_line("oracle", COLUMNS), "|---" * (len(COLUMNS) + 1) + "|"]
    for label, seeds in found.items():
        cells = [mean_cell([row[column] for row in seeds.values()]) for column in COLUMNS]
        lines.append(_line(label, cells))
    for label, seeds in found.items():
        arm = label.removesuffix(", shipped")
        if arm != label:
            start = found[f"{ARMS[arm].warm}, warm start"]
            pairs = [[seeds[s][c] - start[s][c] for s in seeds] for c in COLUMNS]
            lines.append(_line(f"{label} less warm start", map(paired_cell, pairs)))
    return "\n".join(lines)


_GAINS = ("questions", "Brier", "accuracy", "reward", "Brier of P(answer)")
Pair = tuple[Sequence[Answer], Sequence[Answer]]
"""The answers of a seed and those that they are compared with, to the same questions."""


def gains_of(answers: Measured) -> str:
    """Return what is shipped less its warm start on the same questions, in Markdown.

    A question's difference is its mean over the seeds; intervals are by bootstrap over texts.
    """
    arms: dict[str, list[Pair]] = defaultdict(list)
    for name, activations in answers:
        arm, shipped, seed = name.partition(", shipped/")
        if shipped and activations == "own":
            start = answers[f"{ARMS[arm].warm}, warm start/{seed}", "own"]
            arms[arm].append((answers[name, "own"], start))
    return _gains("shipped less warm start", arms)


def against_recipe(answers: Measured) -> str:
    """Return each arm less the recipe likewise, its warm starts and what it ships."""
    arms: dict[str, list[Pair]] = defaultdict(list)
    for name, activations in answers:
        label, _, seed = name.partition("/")
        arm, _, state = label.rpartition(", ")
        recipe = answers.get((f"recipe, {state}/{seed}", "own"))
        if recipe and arm != "recipe" and activations == "own":
            arms[label].append((answers[name, "own"], recipe))
    return _gains("less the recipe", arms)


def _gains(title: str, arms: Mapping[str, Sequence[Pair]]) -> str:
    lines = [_line(title, _GAINS), "|---" * (len(_GAINS) + 1) + "|"]
    for label, pairs in arms.items():
        for part, chosen_N in _parts(pairs[0][0]).items():
            lines.append(_gain(f"{label}, {part}", pairs, chosen_N))
    return "\n".join(lines)


def bars_of(answers: Measured) -> str:
    """Return what each oracle is measured by, with the intervals of ``gains_of``, in Markdown.

    Its accuracy less that of the oracle before, and the Brier score of what it states less that of
    its answers' probability.
    """
    columns = ("questions", "accuracy less before", "Brier less P(answer)'s")
    lines = [_line("oracle", columns), "|---" * (len(columns) + 1) + "|"]
    before = answers["before", "own"]
    oracles: dict[str, list[Sequence[Answer]]] = defaultdict(list)
    for name, activations in answers:
        label, _, seed = name.partition("/")
        if seed and activations == "own":
            oracles[label].append(answers[name, "own"])
    for label, seeds in oracles.items():
        kept_N = np.mean([_grades(own) - _grades(before) for own in seeds], axis=0)
        lost_N = np.mean([_squared_errors(own) - _errors_of_p(own) for own in seeds], axis=0)
        texts_N = np.array([answer.probe.text for answer in before])
        for part, chosen_N in _parts(before).items():
            pair = (kept_N[chosen_N], lost_N[chosen_N]) if chosen_N.any() else ()
            cells = [_with_interval(values_N, texts_N[chosen_N]) for values_N in pair]
            lines.append(_line(f"{label}, {part}", (str(chosen_N.sum()), *cells)))
    return "\n".join(lines)


def _parts(own: Sequence[Answer]) -> dict[str, np.ndarray]:
    """Return which of the answers are all, those in distribution, and those out of it."""
    outside_N = np.array([a.probe.family in OUT_OF_DISTRIBUTION for a in own])
    return {"all": outside_N | True, "in": ~outside_N, "out": outside_N}


def steps_of(settings: Settings) -> str:
    """Return the same for GRPO's steps on validation texts, by which it was decided what ships.

    The last step's gain is divided by whether the warm start's answers to a family's questions were
    right less often than a guess between two.
    """
    lines = [_line("GRPO's steps, validation texts", _GAINS), "|---" * (len(_GAINS) + 1) + "|"]
    for arm in settings.arms:
        runs = [folder_of(settings, arm, seed) / "validation" for seed in settings.seeds]
        known = [{path.name for path in run.glob("step_*.jsonl")} for run in runs]
        steps = sorted(set.intersection(*known))
        if len(steps) < 2:
            continue
        starts = [_answers_in(run / steps[0]) for run in runs]
        pairs: list[Pair] = []
        for step in steps[1:]:
            pairs = list(zip((_answers_in(run / step) for run in runs), starts, strict=True))
            everything_N = np.full(len(starts[0]), True)
            lines.append(_gain(f"{arm}, {step.removesuffix('.jsonl')}", pairs, everything_N))
        low_N = _below_a_guess(starts)
        lines.append(_gain(f"{arm}, of it families below a guess", pairs, low_N))
        lines.append(_gain(f"{arm}, of it the others", pairs, ~low_N))
    return "\n".join(lines)


def _below_a_guess(starts: Sequence[Sequence[Answer]]) -> np.ndarray:
    family_N = np.array([answer.probe.family for answer in starts[0]])
    right_N = np.mean([_grades(start) for start in starts], axis=0)
    return np.array([right_N[family_N == family].mean() < 0.5 for family in family_N])


def _answers_in(path: Path) -> list[Answer]:
    return [answer for _, answer in read_answer_rows(path)]


def _gain(label: str, pairs: Sequence[Pair], chosen_N: np.ndarray) -> str:
    if not chosen_N.any():
        return _line(label, ("0", *["" for _ in _GAINS[1:]]))
    texts_N = np.array([answer.probe.text for answer in pairs[0][0]])[chosen_N]
    cells = [
        _with_interval(np.mean([of(a) - of(b) for a, b in pairs], axis=0)[chosen_N], texts_N)
        for of in (_squared_errors, _grades, _rewards, _errors_of_p)
    ]
    return _line(label, (str(len(texts_N)), *cells))


def _grades(answers: Sequence[Answer]) -> np.ndarray:
    return np.array([answer.informativeness or 0.0 for answer in answers])


def _squared_errors(answers: Sequence[Answer]) -> np.ndarray:
    """Return each answer's squared error; one that states no confidence counts as 50 %."""
    sure = (0.5 if answer.confidence is None else answer.confidence for answer in answers)
    return (np.array(list(sure)) - _grades(answers)) ** 2


def _errors_of_p(answers: Sequence[Answer]) -> np.ndarray:
    """Return the squared error of each answer's own probability."""
    return (np.array([a.answer_probability for a in answers], dtype=float) - _grades(answers)) ** 2


def _rewards(answers: Sequence[Answer]) -> np.ndarray:
    """Return each answer's reward at the default lambda; one without a tag has the floor."""
    rule = reward_rule(make_defaults(None).calibration_lambda)
    return np.array([rewarded(answer, rule).reward or 0.0 for answer in answers])


def _with_interval(difference_N: np.ndarray, texts_N: np.ndarray) -> str:
    low, high = bootstrap_interval(lambda drawn: float(difference_N[drawn].mean()), texts_N)
    return f"{difference_N.mean():+.4f} [{low:+.4f}, {high:+.4f}]"


def _line(name: str, cells: Iterable[str]) -> str:
    return f"| {name} | " + " | ".join(cells) + " |"


def draw(answers: Measured, path: Path) -> None:
    """Draw the reliability of what ships, the seeds together, of what was taught.

    The stated confidence of each arm, and the probability of its answers.
    """
    parts: dict[str, list[Answer]] = defaultdict(list)
    for (name, activations), own in answers.items():
        arm, shipped, _ = name.partition(", shipped/")
        if shipped and activations == "own":
            parts[arm] += [a for a in own if a.probe.family not in OUT_OF_DISTRIBUTION]
    panels = []
    for arm, part in parts.items():
        for what, of, tone in (
            ("stated confidence", STATED, "after"),
            ("the answer's probability", METHODS["answer probability"], "before"),
        ):
            columns = Columns.of(part, of).only_known()
            panels.append(Panel(f"{arm}: {what}", *columns.known, columns.context_N, tone))
    save(reliability_diagram(panels, outcome="share of right answers"), path)


def main() -> None:
    """Make the questions, train, measure, draw, print the table."""
    settings = tyro.cli(Settings, description=__doc__)
    unknown = [arm for arm in settings.arms if arm not in ARMS]
    if unknown or any(ARMS[arm].warm not in settings.arms for arm in settings.arms):
        raise SystemExit(f"error: --arms takes {', '.join(ARMS)}, and each arm's warm start too.")
    settings.output_dir.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // settings.jobs)))
    for first in (True, False):
        run_side_by_side(commands(settings, first), settings.jobs)
    answers = measure(settings)
    tables = table_of, bars_of, gains_of, against_recipe
    table = "\n\n".join([*(of(answers) for of in tables), steps_of(settings)])
    atomic_write_text(settings.output_dir / "table.md", table + "\n")
    draw(answers, settings.output_dir / "reliability.png")
    for path in settings.output_dir.glob("*/summary.json"):
        print(f"{path.parent.name} ships {json.loads(path.read_text())['ships']}")
    print(table)


if __name__ == "__main__":
    main()
