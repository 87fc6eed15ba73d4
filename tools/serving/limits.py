"""What a server takes on, and no more."""

from dataclasses import dataclass
from typing import Final

#: Stop sequences of one request, and the characters of the longest, as OpenAI has it for the former.
MOST_STOPS: Final = 4
LONGEST_STOP: Final = 512
#: Tokens whose logits a request may change.
MOST_BIASES: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a server takes on.

    Attributes:
        context: tokens of a prompt and its answer together; 0: not known before the model is.
        parallel: answers that are written at once, in turns; each holds a cache of up to ``context`` tokens. One
            request may ask for so many.
        queue: requests that wait beyond so many.
        chunk: tokens of a prompt that go through the model in one pass.
        body: bytes of the body of a request.
        grace: seconds that running requests have to end when the server is stopped.
    """

    context: int = 0
    parallel: int = 8
    queue: int = 64
    chunk: int = 256
    body: int = 4 << 20
    grace: float = 30.0

    @property
    def admitted(self) -> int:
        """Requests that are in the server at once."""
        return self.parallel + self.queue
