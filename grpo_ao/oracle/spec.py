"""What an oracle adapter was trained with: ``ao_config.json``, read and written."""

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from grpo_ao.errors import UserError
from grpo_ao.files import atomic_write_text, read_faults
from grpo_ao.oracle.hub import resolve_files
from grpo_ao.oracle.layers import check_layer, layer_index
from grpo_ao.probe import Layers, format_layers, parse_layers, rising

SPEC_FILE = "ao_config.json"
PLACEHOLDER_RUN = "{special_token} * {num_positions}"
DEPTHS = (25, 50, 75)


@dataclass(frozen=True)
class OracleSpec:
    r"""How an oracle is prompted and injected into.

    The fields are those of ``ao_config.json`` that lies beside the public adapters; their defaults
    are the literature's. ``prefix_template`` is written as there: ``{layer}``, the run of
    placeholders as ``{special_token} * {num_positions}``, and a new line as a new line or as
    backslash-n. ``act_layer_combinations`` are the *indices* of the layers read in training (9,
    18, 27 for Qwen3-8B), each entry those of one question; empty where unknown. ``calibrated``
    says whether the confidence was trained, ``calibrated_by`` how. ``other`` keeps the keys that
    are not ours.
    """

    hook_onto_layer: int = 1
    special_token: str = " ?"
    prefix_template: str = "Layer: {layer}\\n" + PLACEHOLDER_RUN + " \\n"
    steering_coefficient: int | float = 1.0
    act_layer_combinations: tuple[Layers, ...] = ()
    calibrated: bool = False
    calibrated_by: str = ""
    other: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.hook_onto_layer < 0:
            raise UserError(f"hook_onto_layer is {self.hook_onto_layer}, but counts from 0.")
        if not self.special_token:
            raise UserError("special_token is empty: the oracle needs a placeholder token.")
        if self._template.count(PLACEHOLDER_RUN) != 1:
            raise UserError(
                f"prefix_template {self.prefix_template!r} must hold {PLACEHOLDER_RUN!r} once."
            )

    @property
    def _template(self) -> str:
        # Other readers of the file write the run of placeholders as one name.
        return self.prefix_template.replace("\\n", "\n").replace(
            "{special_tokens}", PLACEHOLDER_RUN
        )

    def prefix(self, layer: int, num_positions: int) -> tuple[str, str, str]:
        """Return a layer's prefix in three: before the run of placeholders, the run, after."""
        before, after = self._template.split(PLACEHOLDER_RUN)
        run = self.special_token * num_positions
        return before.replace("{layer}", str(layer)), run, after.replace("{layer}", str(layer))

    def for_model(self, num_layers: int) -> "OracleSpec":
        """Fill in unknown layers from ``layer_combinations``, which are in per cent of the depth.

        Without that key they are the literature's 25, 50 and 75 %, one a question.
        """
        if self.act_layer_combinations:
            return self
        percents = self.other.get("layer_combinations") or [[percent] for percent in DEPTHS]
        layers = (rising([layer_index(num_layers, p) for p in combo]) for combo in percents)
        # In a shallow model two depths may be one layer.
        return replace(self, act_layer_combinations=tuple(dict.fromkeys(layers)))

    def layers(
        self, num_layers: int, named: Sequence[str] = (), percents: Sequence[int] = ()
    ) -> tuple[Layers, ...]:
        """Return what questions are asked of: layers ``named``, at ``percents``, or as trained.

        ``all`` names every layer, one a question. Raises UserError for a layer that a model of
        ``num_layers`` does not have.
        """
        if tuple(named) == ("all",):
            return tuple((layer,) for layer in range(num_layers))
        chosen = [parse_layers(layers) for layers in named]
        chosen += [(layer_index(num_layers, percent),) for percent in percents]
        found = tuple(dict.fromkeys(chosen)) or self.for_model(num_layers).act_layer_combinations
        for layer in chain(*found):
            check_layer(num_layers, layer)
        return found

    def middle_layers(self, num_layers: int) -> Layers:
        """Return what is read where nothing else is said: the middle of what was trained on."""
        trained = self.for_model(num_layers).act_layer_combinations
        return trained[len(trained) // 2]

    def trained_on(self, layers: tuple[Layers, ...]) -> "OracleSpec":
        """Return the spec of an adapter that was trained to read these layers."""
        if layers == self.act_layer_combinations:
            return self
        # The same layers as depths, which the file would otherwise go on to name.
        other = {key: value for key, value in self.other.items() if key != "layer_combinations"}
        return replace(self, act_layer_combinations=layers, other=other)

    def warning_of(self, layers: Iterable[Layers]) -> str | None:
        """Say which of ``layers`` the adapter was not trained to read, if that is known."""
        known = self.act_layer_combinations
        unknown = sorted(set(layers) - set(known)) if known else []
        if not unknown:
            return None
        known, unknown = (" or ".join(map(format_layers, part)) for part in (known, unknown))
        return (
            f"the adapter was trained to read layers {known}, but {unknown} is read: see --layers."
        )


_KEYS = tuple(name for name in OracleSpec.__dataclass_fields__ if name != "other")


def load_spec(adapter: str | Path) -> OracleSpec:
    """Read ``ao_config.json`` of a local folder or Hub id; the defaults where there is none.

    A key that is absent has its default; a key of the wrong type is an error.
    """
    path = resolve_files(adapter, [SPEC_FILE, "adapter_config.json"]) / SPEC_FILE
    if not path.is_file():
        _warn_that_there_is_no(path)
        return OracleSpec()
    with read_faults(path):
        values = json.loads(path.read_text(encoding="utf-8"))
        # No tokenizer takes half of a surrogate pair, and no layer NaN.
        json.dumps(values, ensure_ascii=False, allow_nan=False).encode()
    if not isinstance(values, dict):
        raise UserError(f"{path} does not hold a JSON object.")
    return _from_json(values, path)


@cache  # of the several readers of one adapter's file the first says it
def _warn_that_there_is_no(path: Path) -> None:
    warnings.warn(
        f"there is no {path}: the adapter is taken for a public oracle, injected at layer 1 behind "
        "the prefix 'Layer: N' with ' ?' for each activation, that reads a layer at 25, 50 or 75 % "
        "depth (see --layers)",
        stacklevel=3,
    )


def _from_json(values: dict[str, Any], path: Path) -> OracleSpec:
    checks = {
        "hook_onto_layer": ("an integer", _is_integer),
        "special_token": ("a string", lambda value: isinstance(value, str)),
        "prefix_template": ("a string", lambda value: isinstance(value, str)),
        "steering_coefficient": ("a number", lambda v: isinstance(v, float) or _is_integer(v)),
        "act_layer_combinations": ("a list of lists of different layer indices", _is_combinations),
        "layer_combinations": ("a list of lists of different depths in per cent", _is_combinations),
        "calibrated": ("true or false", lambda value: isinstance(value, bool)),
        "calibrated_by": ("a string", lambda value: isinstance(value, str)),
    }
    for key, (kind, holds) in checks.items():
        if key in values and not holds(values[key]):
            raise UserError(f"{path}: {key} is {values[key]!r}, which is not {kind}.")
    known = {key: values[key] for key in _KEYS if key in values}
    if "act_layer_combinations" in known:
        known["act_layer_combinations"] = tuple(map(rising, known["act_layer_combinations"]))
    other = {key: value for key, value in values.items() if key not in _KEYS}
    return OracleSpec(**known, other=other)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_combinations(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(combo, list)
        and combo
        and all(map(_is_integer, combo))
        and len(set(combo)) == len(combo)
        for combo in value
    )


def save_spec(spec: OracleSpec, folder: str | Path) -> Path:
    """Write ``ao_config.json`` into ``folder``, the keys of ``other`` included."""
    values = {**spec.other, **{key: getattr(spec, key) for key in _KEYS}}
    path = Path(folder) / SPEC_FILE
    atomic_write_text(path, json.dumps(values, indent=2) + "\n")
    return path
