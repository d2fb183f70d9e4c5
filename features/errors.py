"""The errors that a person can fix: each message says *where: found, expected, what to do*.

``ValueError`` stays what it is in Python: a programmer's mistake.
"""


class UserError(Exception):
    """Something outside the code is wrong; the message says where, what, and what to do."""


class ConfigError(UserError):
    """A setting is wrong, or two settings contradict each other."""


class ManifestError(UserError):
    """A manifest cannot be used; the message lists every problem with its line number."""


class ClipError(UserError):
    """One clip cannot be used; becomes a row of failures.csv and never stops a run."""


class ShardError(UserError):
    """A shard, store or bundle is damaged, incomplete, or of a format this code does not read."""


class WeightsError(UserError):
    """Pretrained weights are missing, or are not the file whose hash was pinned."""


class RunError(UserError):
    """A run folder is missing a part, or was made by other code or another store."""


class WorkerError(UserError):
    """Workers end for reasons that no clip is to blame for; what was done is kept."""
