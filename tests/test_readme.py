"""What the README says stays true."""

import re

import pytest

from il_based_rl.__main__ import COMMANDS as FRONT_DOOR
from scripts.flag_tables import BEGIN, COMMANDS, END, README, with_tables

TEXT = README.read_text(encoding="utf-8")


def test_the_flag_tables_are_those_of_the_settings():
    assert with_tables(TEXT) == TEXT, "run python scripts/flag_tables.py"


def test_a_table_that_is_out_of_date_is_noticed():
    assert with_tables(TEXT.replace("| `--seed` | none |", "| `--seed` | `7` |")) == TEXT


def test_every_command_has_a_table():
    assert list(COMMANDS) == list(FRONT_DOOR)
    tables = TEXT[TEXT.index(BEGIN) : TEXT.index(END)]
    assert re.findall(r"<code>il-rl ([\w-]+)</code>", tables) == list(COMMANDS)


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT))))
def test_what_it_links_to_is_there(link):
    assert (README.parent / link).is_file()


def test_its_python_is_python():
    blocks = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        compile(block, "README.md", "exec")
