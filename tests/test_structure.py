"""Imports point one way: whoever reads an arrow of the data's way needs nothing behind it."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "grpo_ao"
FILES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
GROUND_FLOOR = {
    *("probe", "answer", "epistemic", "reward", "credit", "calibration"),
    *("discrimination", "intervals", "errors", "extensions", "interruption", "numbers"),
    *(
        "bounded",
        "files",
        "tracking",
        "processes",
        "chat",
        "chat_completion",
        "terminal",
        "wording",
    ),
}
# Each floor may use its own and those below it. The package itself hands on the public names.
FLOORS = (
    GROUND_FLOOR,
    {"oracle", "judges", "probes", "mini"},
    {"measuring"},
    {"report"},
    {"training"},
    {"config"},
    {"checks"},
    {"run", "prepare", "evaluate", "budget", "query", "inspect_task"},
    {"cli"},
    {"__main__"},
)
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}


def imports(path: Path, inside_functions: bool = True) -> set[str]:
    """The names that a file imports: module and imported name, with dots."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if inside_functions else iter(tree.body)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def importers_of(prefix: str) -> set[str]:
    return {
        module
        for module, path in FILES.items()
        if any(f"{name}.".startswith(prefix + ".") for name in imports(path))
    }


def test_every_module_has_a_floor():
    assert {module.split(".")[1] for module in FILES if "." in module} <= FLOOR_OF.keys()


def test_imports_go_down_the_floors_only():
    upward = {
        f"{module} imports {name}"
        for module, path in FILES.items()
        for name in imports(path)
        if "." in module and name.startswith("grpo_ao.")
        if name.split(".")[1] in FLOOR_OF
        if FLOOR_OF[name.split(".")[1]] > FLOOR_OF[module.split(".")[1]]
    }
    assert not upward


def test_only_runs_and_evaluations_write_reports():
    for part in ("page", "card", "tables"):
        importers = {m.split(".")[1] for m in importers_of(f"grpo_ao.report.{part}")}
        assert importers <= {"report", "run", "prepare", "evaluate", "cli"}


def test_the_oracle_knows_nothing_of_rewards_and_judges():
    for part in ("reward", "judges", "calibration", "mini"):
        assert not {m for m in importers_of(f"grpo_ao.{part}") if m.startswith("grpo_ao.oracle")}


def test_calibration_knows_nothing_of_models():
    names = imports(FILES["grpo_ao.calibration"])
    assert not {n for n in names if n.split(".")[0] in ("torch", "transformers", "grpo_ao")}


def test_only_the_trainer_builds_on_the_inside_of_trl():
    assert importers_of("trl.trainer.grpo_trainer") == {"grpo_ao.training.trainer"}
    names = {name for path in FILES.values() for name in imports(path) if name.startswith("trl")}
    assert names == {
        "trl.trainer.grpo_config.GRPOConfig",
        "trl.trainer.grpo_trainer.GRPOTrainer",
    }


def test_modules_can_be_put_in_an_order_in_which_each_needs_only_those_before():
    graph = {
        module: {
            name if name in FILES else name.rpartition(".")[0]
            for name in imports(path, inside_functions=False)
            if name.startswith("grpo_ao.")
        }
        - {module}
        for module, path in FILES.items()
    }
    # Raises CycleError, with the modules of the circle, if there is none.
    assert len(list(TopologicalSorter(graph).static_order())) >= len(FILES)


def test_no_code_of_a_models_repository_is_ever_run():
    """transformers asks on the terminal whether it may, and "y" on stdin is an answer."""
    loads = [
        ast.unparse(call)
        for path in FILES.values()
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        if ast.unparse(call.func).startswith("Auto")
        if ast.unparse(call.func).endswith(".from_pretrained")
    ]
    assert len(loads) > 3
    assert not [load for load in loads if "trust_remote_code=False" not in load]
