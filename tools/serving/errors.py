"""Errors as OpenAI's API words them: a status, and an object that says what is wrong with which parameter."""

from collections.abc import Mapping
from typing import Any, Final

from fastapi import HTTPException

from bsformat.errors import BstkError, BudgetError, ModelError, ResizeError, SourceError

#: The type of an error by the status of the answer; others are the server's.
_TYPES: Final = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_CODES: Final = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}


class ApiError(HTTPException):
    """What a client is told in place of an answer.

    Attributes:
        param: the parameter that is wrong, None where it is none of them.
        code: the cause, in lower case with underscores.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers) if headers else None)
        self.param, self.code = param, code

    def to_json(self) -> dict[str, Any]:
        """The object that clients of OpenAI's API expect."""
        return error_object(self.status_code, str(self.detail), self.param, self.code)


def error_object(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The body of an answer that is an error."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code or _CODES.get(status)}}


def unsupported(param: str, instead: str = "leave it out") -> ApiError:
    """A parameter of the API that this server does not have."""
    return ApiError(
        400, f"{param!r} is not supported by this server: {instead}.", param=param, code="unsupported_parameter"
    )


def invalid(param: str, message: str) -> ApiError:
    """A parameter whose value will not do."""
    return ApiError(400, message, param=param, code="invalid_value")


def of_bstk(error: BstkError, param: str | None = None) -> ApiError:
    """An error of this project, as what it means to a client."""
    status = 500
    if isinstance(error, BudgetError | ModelError):
        status = 400
    elif isinstance(error, ResizeError):
        status = 409
    elif isinstance(error, SourceError):
        status = 502
    return ApiError(status, error.message, param=param, code=error.reason.replace("-", "_"))
