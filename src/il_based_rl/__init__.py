"""Train an expert, collect its demonstrations, clone a student, prove how good it is.

Nothing is imported here, so that a command's `--help` need not wait for torch; the modules are
`il_based_rl.ppo_agent`, `.collect`, `.dataset`, `.agent`, `.evaluate` and their neighbours.
"""

__version__ = "0.1.0"
