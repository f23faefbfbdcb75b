"""What is in progress in this process and may never end: no native call can be cancelled or freed (pipeline/watchdog.py)."""


class Call:
    """`with Call(what):` around one thing that may never end."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        in_progress.add(self)

    def __exit__(self, *_: object) -> None:
        in_progress.discard(self)


in_progress: set[Call] = set()  # of this process
