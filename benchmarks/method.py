"""What is credited, scaled and warm-started how: ``python -m benchmarks.method --help``.

Trains the mini oracle once for each variant and seed, several at a time, and prints two tables:
metrics of 2000 held-out probes, sampled as in training, as mean and spread over the seeds, and each
variant less its warm start alone, paired by seed, with the 95 % interval of Student's t. A seed's
warm start is made once and shared by its variants, each trained at two learning rates: what suits
one variant may ruin another. What changes the warm start itself is trained no further. A call that
was killed goes on where it was.
"""

import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import tyro
import yaml
from scipy.stats import t as student_t

from grpo_ao.files import remove_unfinished, unfinished_name

ROOT = Path(__file__).resolve().parents[1]
METRICS = (
    "informativeness",
    "ece10",
    "auroc_within",
    "auroc",
    "brier",
    "brier_isotonic",
    "confidence_std",
    "parse_rate",
)


@dataclasses.dataclass(frozen=True)
class Variant:
    """Flags of ``train.py`` beside the preset; ``trl`` fields go through a YAML file.

    What is ``apart`` makes a warm start of its own; without flags of its own it is one of
    ``benchmarks.arms``.
    """

    name: str
    flags: tuple[str, ...]
    warm_start: str = "measured"
    seeds: int = 3
    trl: dict = dataclasses.field(default_factory=dict)
    apart: bool = False


def _grid() -> list[Variant]:
    return [
        Variant(f"{credit}, {scale}", ("--credit", credit, "--scale_rewards", scale))
        for credit in ("joint", "split")
        for scale in ("group", "none")
    ]


def _at_each_rate(variants: list[Variant]) -> list[Variant]:
    return [
        dataclasses.replace(v, name=f"{v.name}, lr {lr}", flags=(*v.flags, "--lr", lr))
        for v in variants
        for lr in LEARNING_RATES
    ]


LEARNING_RATES = ("1e-4", "3e-4")
ALONE = {"measured": "warm start alone", "random": "random start alone"}
"""What a variant is compared with, by its warm start."""
_SMALL_GROUPS = ("--questions_per_step", "16", "--num_generations", "4")
_NO_GRPO = ("--max_steps", "0")
VARIANTS = [
    *(Variant(name, _NO_GRPO, start) for start, name in ALONE.items()),
    *(
        Variant(name, _NO_GRPO, apart=True)
        for name in (
            *("no anchor", "anchor 2", "open answers anchored"),
            *("answer probability alone", "targets of the family"),
        )
    ),
    Variant("no wrong activations", (*_NO_GRPO, "--wrong_activations", "0"), apart=True),
    *_at_each_rate(_grid()),
    *_at_each_rate(
        [
            Variant("tag outcome group", ("--tag_outcome", "group")),
            Variant("random start", (), "random"),
            Variant("random start, entropy bonus .02", (), "random", 1, {"entropy_coef": 0.02}),
            Variant("random start, 16 questions x 4", _SMALL_GROUPS, "random", 1),
            Variant("random start, KL .05", ("--kl_penalty", "0.05"), "random", 1),
        ]
    ),
]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Where, which, and how many at a time."""

    output_dir: Path = Path("runs/method")
    """Folder of all runs."""
    only: tuple[str, ...] = ()
    """Names of variants (all of them without it)."""
    jobs: int = 1
    """Runs at a time."""
    seeds: int = 3
    """Seeds of a variant at most."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One run, and the run whose warm start it takes or the arm that it is."""

    folder: Path
    flags: tuple[str, ...]
    warm_start_from: Path | None = None
    arm: str = ""


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text)


def jobs_of(settings: Settings) -> tuple[list[Job], list[Job]]:
    """Return the runs that make a warm start, and then those that take it from one of them."""
    first: dict[Path, Job] = {}
    second = []
    for variant in chosen(settings):
        given = dict(zip(variant.flags[::2], variant.flags[1::2], strict=True))
        for seed in range(min(variant.seeds, settings.seeds)):
            flags = given | {"--seed": str(seed), "--warm_start": variant.warm_start}
            words = (*_words(flags), *_trl_flags(settings, variant))
            folder = _folder(settings, variant, seed)
            if variant.apart:
                arm = variant.name if variant.flags == _NO_GRPO else ""
                second.append(Job(folder, words, arm=arm))
                continue
            source = settings.output_dir / _slug(f"warm start {variant.warm_start} {seed}")
            shared = {name: flags[name] for name in ("--seed", "--warm_start")}
            first.setdefault(source, Job(source, _words(shared | {"--max_steps": "0"})))
            second.append(Job(folder, words, source))
    return list(first.values()), second


def _words(flags: dict[str, str]) -> tuple[str, ...]:
    return ("--no_initial_eval", *(word for pair in flags.items() for word in pair))


def chosen(settings: Settings) -> list[Variant]:
    """Return the variants asked for."""
    unknown = set(settings.only) - {variant.name for variant in VARIANTS}
    if unknown:
        names = ", ".join(variant.name for variant in VARIANTS)
        raise SystemExit(f"error: no variant is called {sorted(unknown)}; there are: {names}.")
    return [v for v in VARIANTS if not settings.only or v.name in settings.only]


def _folder(settings: Settings, variant: Variant, seed: int) -> Path:
    return settings.output_dir / _slug(f"{variant.name} {seed}")


def _trl_flags(settings: Settings, variant: Variant) -> tuple[str, ...]:
    if not variant.trl:
        return ()
    path = settings.output_dir / f"{_slug(variant.name)}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"trl": variant.trl}))
    return ("--config", str(path))


def command_of(job: Job) -> list[str] | None:
    """Return the command that starts a run, or goes on with it; None if it is finished."""
    if (job.folder / "summary.json").exists():
        return None
    if job.warm_start_from is not None:
        take_warm_start(job.warm_start_from, job.folder)
    resume = ("--resume",) if (job.folder / "run.json").exists() else ()
    words = ["--preset", "mini", "--output_dir", str(job.folder), *job.flags, *resume]
    code = f"from benchmarks.arms import train_arm; train_arm({job.arm!r}, 1, {words!r})"
    return [sys.executable, "-c", code]


def take_warm_start(source: Path, folder: Path) -> None:
    """Copy one run's warm start for another, unless it has one; a half copy has another name."""
    target = folder / "warm_start"
    if target.exists():
        return
    remove_unfinished(target)
    unfinished = unfinished_name(target)
    shutil.copytree(source / "warm_start", unfinished, dirs_exist_ok=True)
    unfinished.rename(target)


def run_all(jobs: list[Job], at_once: int) -> None:
    """Run jobs, ``at_once`` at a time."""
    commands = {job.folder: command_of(job) for job in jobs}
    run_side_by_side({f: command for f, command in commands.items() if command}, at_once)


def run_side_by_side(commands: dict[Path, list[str]], at_once: int) -> None:
    """Run a command for each folder, its words kept there; a failed one ends the call with them.

    The others are then told to stop, and waited for. Where several GPUs are visible, each of those
    that run at once sees one of them.
    """
    waiting, running = list(commands), {}
    free = list(range(at_once))
    try:
        while waiting or running:
            while waiting and free:
                folder, place = waiting.pop(0), free.pop(0)
                running[folder] = place, _started(commands[folder], folder, place)
            for folder, (place, process) in list(running.items()):
                if process.poll() is not None:
                    del running[folder]
                    free.append(place)
                    print(f"{folder.name}: exit {process.returncode}", file=sys.stderr, flush=True)
                    if process.returncode:
                        raise SystemExit((folder / "console.txt").read_text()[-800:])
            time.sleep(0.2)
    finally:
        left = [process for _, process in running.values()]
        for process in left:
            process.terminate()
        for process in left:
            process.wait()


def _started(command: list[str], folder: Path, place: int) -> subprocess.Popen:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "console.txt").open("ab") as console:
        return subprocess.Popen(
            command, cwd=ROOT, env=_environment(place), stdout=console, stderr=console
        )


def _environment(place: int) -> dict[str, str]:
    gpus = visible_gpus()
    chosen = {"CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]} if len(gpus) > 1 else {}
    return os.environ | chosen


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else list(map(str, range(count)))


Measured = dict[int, dict[str, float]]
"""The metrics of each seed that is finished."""


def measured(settings: Settings, variant: Variant) -> Measured:
    """Read what the finished runs of a variant measured."""
    found: Measured = {}
    for seed in range(min(variant.seeds, settings.seeds)):
        path = _folder(settings, variant, seed) / "summary.json"
        if path.exists():
            found[seed] = json.loads(path.read_text())["after"]["sampled"]
    return found


def tables(settings: Settings) -> str:
    """Return both tables in Markdown; differences of what has a seed in common with its start."""
    found = {variant.name: measured(settings, variant) for variant in chosen(settings)}
    absolute, paired = _head("variant"), _head("less its warm start alone")
    for variant in chosen(settings):
        seeds, base = found[variant.name], found.get(ALONE[variant.warm_start], {})
        if seeds:
            cells = [mean_cell([seeds[seed][metric] for seed in seeds]) for metric in METRICS]
            absolute.append(_line(variant.name, len(seeds), cells))
        both = sorted(seeds.keys() & base.keys())
        if both and variant.name != ALONE[variant.warm_start]:
            differences = [[seeds[s][m] - base[s][m] for s in both] for m in METRICS]
            paired.append(_line(variant.name, len(both), map(paired_cell, differences)))
    return "\n".join([*absolute, "", *paired])


def _head(first: str) -> list[str]:
    return [_line(first, "seeds", METRICS), "|---" * (len(METRICS) + 2) + "|"]


def _line(name: str, seeds: int | str, cells: Iterable[str]) -> str:
    return f"| {name} | {seeds} | " + " | ".join(cells) + " |"


def paired_cell(differences: list[float]) -> str:
    """Return the mean difference, with the interval of Student's t where there are seeds for it."""
    mean, n = statistics.mean(differences), len(differences)
    if n == 1:
        return f"{mean:+.3f}"
    half = float(student_t.ppf(0.975, n - 1)) * float(np.std(differences, ddof=1)) / n**0.5
    return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"


def mean_cell(values: list[float]) -> str:
    """Return the mean and, where there are several seeds, their spread."""
    mean = statistics.mean(values)
    if len(values) == 1:
        return f"{mean:.3f}"
    return f"{mean:.3f} ± {np.std(values, ddof=1):.3f}"


def main() -> None:
    """Run the variants and print the table."""
    settings = tyro.cli(Settings, description=__doc__)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // settings.jobs)))
    first, second = jobs_of(settings)
    run_all(first, settings.jobs)
    run_all(second, settings.jobs)
    print(tables(settings))


if __name__ == "__main__":
    main()
