"""The JavaScript reader as a second opinion: a process of Node that is asked about one file after the other."""

import struct
import subprocess
from pathlib import Path
from typing import Final

#: Reasons of this reader alone: a limit of its platform (its README says which), not of the format.
OWN_LIMITS = frozenset({"unsupported"})


class JavaScript:
    """Asks ``answers.js`` of the folder ``spec/readers/js``. Use it in a ``with`` statement, or close it."""

    def __init__(self, folder: Path) -> None:
        command = ["node", "--max-old-space-size=512", str(folder / "answers.js")]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, data: bytes) -> str:
        """The reason of the first fault, ``sound``, or ``!`` and what else it ended with."""
        if self._process.stdin is None or self._process.stdout is None:
            return "! no process"
        try:
            self._process.stdin.write(struct.pack("<I", len(data)) + data)
            self._process.stdin.flush()
        except (OSError, ValueError) as error:
            return f"! {error}"
        return self._process.stdout.readline().decode().strip() or "! the process ended"

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None and self._process.stdout is not None:
            self._process.stdin.close()
            self._process.wait()
            self._process.stdout.close()

    def __enter__(self) -> "JavaScript":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _steps() -> dict[str, int]:
    """The step of opening, spec §7.1, or of verifying, to which a reason belongs.

    Within a step a reader may report any of several.
    """
    steps: tuple[str, ...] = (
        "truncated",
        "not-bstk bad-transfer",
        "version-unsupported feature-unsupported",
        "superblock-invalid",
        "trailing-bytes",
        "head-digest",
        "metadata-compression metadata-msgpack metadata-key metadata-value metadata-name metadata-duplicate "
        "kind-unknown codec-unknown",
        "attachment-offset",
        "block-codec block-padding block-values block-rows block-columns",
        "block-digest",
        "attachment-codec",
        "attachment-digest",
        "padding",
        "sound",
    )
    return {reason: step for step, reasons in enumerate(steps) for reason in reasons.split()}


_STEPS: Final = _steps()
#: Refusals of a zstd frame. Decoders differ in which damaged frames they refuse (spec §8.3): one may get further.
_FRAMES: Final = frozenset({"metadata-compression", "index-compression", "block-codec", "attachment-codec"})


def agree(reason: str | None, answer: str) -> bool:
    """Whether both readers accept, or both refuse at the same step; of the index, spec §9.3, for the same reason.

    Where one of them refuses a zstd frame, the other may say anything but that something before it is wrong.
    """
    own = reason or "sound"
    if not answer.startswith("!") and (own in _FRAMES or answer in _FRAMES):
        return True
    return answer in OWN_LIMITS or own == answer or (own in _STEPS and _STEPS[own] == _STEPS.get(answer))
