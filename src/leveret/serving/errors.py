"""Refusals in OpenAI's form: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import HTTPException
from fastapi.responses import JSONResponse

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 504: "timeout_error"}


class ApiError(HTTPException):
    """A request that is refused. (As FastAPI's exception, it passes through where FastAPI would take others for a
    mistake in the body.)

    Args:
        status: of HTTP.
        message: what is wrong and how to mend it. Never holds what the user wrote.
        param: the field that is wrong, if it is one.
        code: a word for programs.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.param, self.code = param, code

    @property
    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status_code, "server_error" if self.status_code >= 500 else "invalid_request_error")
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status_code, self.headers)


INTERNAL = "The server failed at this request. Its log says more."


def full(seconds: int) -> ApiError:
    return ApiError(
        429,
        f"All slots are busy and the queue is full. Try again in {seconds} s.",
        code="server_full",
        headers={"Retry-After": str(seconds)},
    )


def out_of_time(seconds: float) -> ApiError:
    # The openai client would ask again at once, and again run out of time.
    return ApiError(
        504,
        f"The answer was not complete after {seconds:g} s, which is this server's limit. Ask for fewer tokens.",
        code="time_limit",
        headers={"x-should-retry": "false"},
    )
