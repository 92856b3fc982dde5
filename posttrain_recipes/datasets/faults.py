"""What is wrong with a row, or with a file of them."""

from __future__ import annotations


class RowError(Exception):
    """A row that cannot be used; `messages` has one sentence for each thing that is wrong."""

    def __init__(self, *messages: str) -> None:
        self.messages = messages
        super().__init__("; ".join(messages))


class FileError(RowError):
    """What is wrong with the file as a whole, not with one row that could be left out."""
