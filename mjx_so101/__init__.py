"""mjx_so101: the SO-101 paper-return task as thousands of parallel MJX environments."""

from mjx_so101.gl import choose_gl

choose_gl()

from mjx_so101.env import PaperReturnEnv, StepResult
from mjx_so101.errors import CheckpointError, ConfigError, HealthError, RemoteError, SO101Error
from mjx_so101.geometry import SheetGeometry
from mjx_so101.kinematics import ArmKinematics
from mjx_so101.params import PRESETS, EnvParams, Randomization, load_randomization
from mjx_so101.scene import JOINTS, SceneConfig, load_model
from mjx_so101.task import Observation, PaperReturn, State, TaskConfig

__version__ = "0.1.0"

__all__ = [
    "JOINTS", "PRESETS", "ArmKinematics", "CheckpointError", "ConfigError", "EnvParams", "HealthError", "Observation",
    "PaperReturn", "PaperReturnEnv", "Randomization", "RemoteError", "SO101Error", "SceneConfig", "SheetGeometry",
    "State", "StepResult", "TaskConfig", "load_model", "load_randomization",
]  # fmt: skip
