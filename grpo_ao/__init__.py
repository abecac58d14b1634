"""grpo_ao: train a calibrated Activation Oracle with GRPO.

The public names are imported when they are first used, so that ``import grpo_ao`` stays fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grpo_ao.calibration import auroc, brier, calibration_error, ece, smooth_ece
    from grpo_ao.discrimination import within_family_auroc
    from grpo_ao.epistemic import parse_oracle_output
    from grpo_ao.errors import UserError
    from grpo_ao.oracle.oracle import Oracle, OracleAnswer
    from grpo_ao.probe import Positions, Probe
    from grpo_ao.reward import calibrated_reward

__version__ = "0.2.0"
__all__ = [
    "Oracle",
    "OracleAnswer",
    "Positions",
    "Probe",
    "UserError",
    "auroc",
    "brier",
    "calibrated_reward",
    "calibration_error",
    "ece",
    "parse_oracle_output",
    "smooth_ece",
    "within_family_auroc",
]
_MODULES = {
    "Oracle": "oracle.oracle",
    "OracleAnswer": "oracle.oracle",
    "Positions": "probe",
    "Probe": "probe",
    "UserError": "errors",
    "calibrated_reward": "reward",
    "parse_oracle_output": "epistemic",
    "within_family_auroc": "discrimination",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'grpo_ao' has no attribute '{name}'")
    return getattr(import_module(f"grpo_ao.{_MODULES.get(name, 'calibration')}"), name)
