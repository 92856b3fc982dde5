"""What all messages share: media types, and the error that a bad request is answered with."""

from __future__ import annotations

JSON = "application/json"
PROTOBUF = "application/x-protobuf"


class RequestError(Exception):
    """The request is at fault: an HTTP status and a sentence saying what to change."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
