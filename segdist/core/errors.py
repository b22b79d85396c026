"""The exception whose message is shown to the user."""


class UserError(Exception):
    """Bad input, a bad setting, or a state on disk that needs a decision.

    The message says what is wrong, where (file, key, sample, rank) and the way out. Jobs print it without a
    traceback and exit with code 2.
    """

    on_this_rank = False
    """True if only this rank hits the error and must report it itself."""
