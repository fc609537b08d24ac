"""Every error that is the user's to mend, each with a name of its own.

The message of a `UserError` is one line that says what was given, what was expected and what to do; a command prints it
to standard error and leaves with `exit_code`, without a traceback.
"""

_LONGEST = 2_000


class UserError(Exception):
    """Something the user can mend; the base of all errors below. Its message is one short line, whatever it quotes."""

    exit_code = 2

    def __init__(self, message: object = "") -> None:
        line = " ".join(str(message).split())
        super().__init__(line if len(line) <= _LONGEST else f"{line[:_LONGEST]}...")


class ConfigError(UserError, ValueError):
    """A setting is out of range, or two settings contradict each other."""


class UnsupportedSpaceError(UserError, TypeError):
    """A Gymnasium space that no policy here can read or act in."""


class UnknownEnvironmentError(UserError, ValueError):
    """No environment is registered under this id."""


class MissingExtraError(UserError, ImportError):
    """An optional package is needed and not installed."""


class SpaceMismatchError(UserError, ValueError):
    """The spaces of a file, an agent and an environment do not fit each other."""


class ArchitectureMismatchError(UserError, ValueError):
    """The layer sizes that were asked for contradict the file's."""


class FileFormatError(UserError, ValueError):
    """A file is damaged, foreign, of another version, or holds values that it must not."""


class FileMissingError(UserError, FileNotFoundError):
    """A file that was asked for is not there."""


class FileWriteError(UserError, OSError):
    """A file cannot be written where it was asked for."""


class LockedError(UserError, BlockingIOError):
    """Another process is writing the same run."""


class ResumeError(UserError, ValueError):
    """There is nothing to resume, or the settings contradict what is resumed."""


class NotFiniteError(UserError, ValueError):
    """A policy was asked about an observation that holds NaN or infinity."""


class RenderError(UserError, RuntimeError):
    """An environment cannot be drawn, or its pictures cannot be made a video."""

    exit_code = 1


class CollectionError(UserError, RuntimeError):
    """The wanted demonstrations were not reached within the allowed attempts."""


class EnvironmentFaultError(UserError, RuntimeError):
    """An environment, or the policy acting in it, broke the rules while it ran."""

    exit_code = 1


class TrainingDivergedError(UserError, RuntimeError):
    """The parameters of a policy are no longer finite."""

    exit_code = 1


class DoctorError(UserError, RuntimeError):
    """Something that was checked is not as it must be."""

    exit_code = 1


class Terminated(KeyboardInterrupt):
    """The system asked the process to end (SIGTERM)."""

    exit_code = 143


class TimeIsUp(KeyboardInterrupt):
    """The time that was given to a run is over."""
