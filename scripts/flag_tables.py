"""Write the README's flag tables from the settings classes: `python scripts/flag_tables.py`."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from pathlib import Path
from typing import Any

from il_based_rl import config

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- flags: begin (written by scripts/flag_tables.py) -->", "<!-- flags: end -->"
COMMANDS = {
    "train-ppo": config.TrainPPOConfig,
    "collect": config.CollectConfig,
    "train": config.TrainConfig,
    "dagger": config.DaggerConfig,
    "finetune": config.FinetuneConfig,
    "evaluate": config.EvaluateConfig,
    "compare": config.CompareConfig,
    "demos-needed": config.DemosNeededConfig,
    "report": config.ReportConfig,
    "video": config.VideoConfig,
    "runs": config.RunsConfig,
    "plot": config.PlotConfig,
    "pipeline": config.PipelineConfig,
    "tune": config.TuneConfig,
    "presets": config.PresetsConfig,
    "doctor": config.DoctorConfig,
}


def field_docstrings(settings: type[Any]) -> dict[str, str]:
    """Return the text that stands under each field of a settings class."""
    (definition,) = ast.parse(inspect.getsource(settings)).body
    assert isinstance(definition, ast.ClassDef)
    texts: dict[str, str] = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            texts[field.target.id] = " ".join(str(below.value.value).split())
    return texts


def rows(settings: Any) -> list[str]:
    """Return a table row for each flag of a settings object, those of its parts included."""
    texts = field_docstrings(type(settings))
    lines: list[str] = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            lines += rows(value)
            continue
        flag = field.name.replace("_", "-")
        if isinstance(value, bool):
            shown, flag = "on" if value else "off", f"--no-{flag}" if value else f"--{flag}"
            flag = f"`{flag}`"
        else:
            shown = "none" if value is None else f"`{' '.join(map(str, value)) if isinstance(value, tuple) else value}`"
            flag = f"`{flag.upper()}`" if str(field.type).startswith("Positional") else f"`--{flag}`"
        lines.append(f"| {flag} | {shown} | {texts[field.name]} |")
    return lines


def tables() -> str:
    """Return all tables as Markdown."""
    parts = []
    for command, settings in COMMANDS.items():
        head = f"<details><summary><code>il-rl {command}</code></summary>\n\n| flag | default | meaning |\n|---|---|---|"
        parts.append("\n".join([head, *rows(settings()), "\n</details>"]))
    return "\n\n".join(parts)


def with_tables(readme: str) -> str:
    """Return a README's text with the tables between the two marks brought up to date."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")
