"""What starting a server can raise."""


class ServerFailed(RuntimeError):
    """A server did not come up; the text has the tail of its log."""
