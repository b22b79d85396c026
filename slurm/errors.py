"""What this room tells the person at the keyboard."""


class SubmitError(Exception):
    """A profile, a submission or a cluster that is not as it should be.

    The message says what is wrong, where and the way out; `jobs` prints it without a traceback.
    """
