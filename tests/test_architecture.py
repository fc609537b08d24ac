"""Imports point one way, and nothing heavy is imported before a command has read its settings."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from il_based_rl.__main__ import COMMANDS

PACKAGE = Path(__file__).parents[1] / "src" / "il_based_rl"
LEVELS = [  # from the bottom; modules on one level never import each other, a room counts as one module
    ["errors", "signals"],
    ["functional", "statistics", "seeding", "config", "files", "cli"],
    ["networks", "spaces", "heads", "presets"],
    ["flat_parameters"],
    ["fused_mlp"],
    ["policy", "dataset", "buffer", "envs", "experiment", "cloning_losses"],
    ["actor_critic_policy", "cloning_updates", "rollout"],
    ["ppo_updates"],
    ["agent", "ppo_agent"],
    ["checkpoint", "interop"],
    ["collect", "evaluate", "doctor"],
    ["train", "train_ppo", "comparison"],
    ["compare", "failure_analysis"],
    ["report", "algorithms"],
    ["pipeline"],
    ["__main__"],
]
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}


def imported_modules(source: str) -> set[str]:
    """Return the modules of this package that a source text imports, wherever in it, without the package's name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}: write the whole name"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    parts = [name.split(".") for name in found]
    return {name[1] for name in parts if name[0] == "il_based_rl" and len(name) > 1 and not name[1].startswith("__v")}


def violations(module: str, source: str) -> list[str]:
    """Return what a module imports from its own level or from above it."""
    imported = imported_modules(source) - {module}
    return sorted(f"{module} -> {name}" for name in imported if LEVEL_OF[name] >= LEVEL_OF[module])


def files_of_modules() -> list[tuple[str, Path]]:
    return [(path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path) for path in sorted(PACKAGE.rglob("*.py"))]


def test_every_module_has_its_level():
    assert {module for module, _ in files_of_modules()} - {"__init__"} == set(LEVEL_OF)


def test_imports_point_one_way():
    files = [(module, path) for module, path in files_of_modules() if module != "__init__"]
    assert [each for module, path in files for each in violations(module, path.read_text())] == []


def test_the_package_itself_imports_nothing():
    statements = ast.walk(ast.parse((PACKAGE / "__init__.py").read_text()))
    assert not [node for node in statements if isinstance(node, ast.Import | ast.ImportFrom)]


@pytest.mark.parametrize(
    "source",
    [
        "from il_based_rl.rollout import Rollouts",
        "import il_based_rl.rollout",
        "def f():\n    from il_based_rl import rollout",
        "if TYPE_CHECKING:\n    from il_based_rl.rollout import Episode",
    ],
)
def test_an_import_from_above_is_found_wherever_it_stands(source):
    assert violations("envs", source) == ["envs -> rollout"]


def test_an_import_from_a_neighbour_is_found_and_one_from_below_is_fine():
    assert violations("envs", "from il_based_rl.dataset import DemoDataset") == ["envs -> dataset"]
    assert violations("envs", "from il_based_rl.spaces import ObservationCodec\nimport numpy") == []


_HEAVY = "sorted({'torch', 'numpy', 'gymnasium', 'scipy', 'wandb', 'matplotlib', 'optuna'} & set(sys.modules))"


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_help_of_every_command_needs_nothing_heavy():
    code = f"""
import sys
from il_based_rl.__main__ import COMMANDS, main
main(["--help"])
for command in COMMANDS:
    try:
        main([command, "--help"])
    except SystemExit as leaving:
        print(f"left {{command}} with {{leaving.code}}")
print("heavy:", {_HEAVY})
"""
    output = run_python(code)
    for command in COMMANDS:
        assert f"usage: il-rl {command}" in output
        assert f"left {command} with 0" in output
    assert output.splitlines()[-1] == "heavy: []"


def test_evaluating_and_collecting_do_not_wait_for_scipy():
    code = """
import sys
import gymnasium as gym
from il_based_rl.collect import collect_demos
from il_based_rl.evaluate import evaluate_policy
from il_based_rl.ppo_agent import PPOAgent
env = gym.make("CartPole-v1")
agent = PPOAgent.for_spaces(env.observation_space, env.action_space, seed=0)
evaluate_policy(agent, "CartPole-v1", 2, quiet=True)
collect_demos("CartPole-v1", agent, 2, quiet=True)
print("scipy" in sys.modules)
"""
    assert run_python(code).strip() == "False"
