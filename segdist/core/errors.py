"""The one exception that is meant for the person at the keyboard."""


class UserError(Exception):
    """Bad input, a bad setting, or a state on disk that needs a decision.

    The message says what is wrong, where (file, key, sample, rank) and the way out. Jobs print it without a
    traceback and exit with code 2.
    """

    on_this_rank = False
    """True where the other ranks don't see it: then the rank itself must say it, or nobody does."""
