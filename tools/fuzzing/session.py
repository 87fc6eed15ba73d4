"""What one process of fuzzing does with each file: the checks, the second opinion, the counts, and what was found."""

import json
import math
import os
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import blake3

from .examine import Finding, held_to_limits, most_memory
from .javascript import JavaScript, agree

#: One file of so many has its memory measured, is shown to the other reader.
MEASURED, ASKED = 32, 64
#: Seconds between two reports.
REPORTED = 5.0


class Session:
    """Runs files and keeps count. Files with a finding are written to ``folder``, one for each different finding.

    Args:
        folder: where findings and ``stats-NAME.json`` go.
        javascript: the folder of the JavaScript reader; None: it is not asked.
        runs, seconds: after so many executions, or so long, the process ends.
    """

    def __init__(
        self, folder: Path, name: str, javascript: Path | None, *, runs: float = math.inf, seconds: float = math.inf
    ) -> None:
        self._folder, self._stats = folder, folder / f"stats-{name}.json"
        self._javascript = JavaScript(javascript) if javascript else None
        self.executions = self.measured = self.asked = self.worst = 0
        self.worst_share = 0.0
        self._runs, self._ends, self._next = runs, time.monotonic() + seconds, time.monotonic()
        self.reasons: Counter[str] = Counter()
        self.differing: Counter[str] = Counter()
        self.findings: Counter[str] = Counter()

    def run(self, data: bytes, *, thorough: bool = False) -> None:
        """One execution; ``thorough``: measure memory and ask the other reader whatever its turn."""
        self.executions += 1
        memory = thorough or self.executions % MEASURED == 0
        try:
            reason, peak = held_to_limits(data, memory=memory)
        except Exception as error:
            self._found(error, data)
        else:
            self.reasons[reason or "sound"] += 1
            if memory:
                self.measured += 1
                self.worst = max(self.worst, peak)
                self.worst_share = max(self.worst_share, peak / most_memory(data))
            if self._javascript and (thorough or self.executions % ASKED == 0):
                self._compare(reason, data)
        now = time.monotonic()
        if self.executions >= self._runs or now >= self._ends:
            self.close()
            os._exit(0)  # libFuzzer would end the process without a way to close the session
        if now >= self._next:
            self._next = now + REPORTED
            self.report()

    def _compare(self, reason: str | None, data: bytes) -> None:
        answer = self._javascript.ask(data) if self._javascript else ""
        self.asked += 1
        if not agree(reason, answer):
            self._found(Finding("readers", f"bsformat {reason or 'sound'}, JavaScript {answer}"), data)
        elif answer != (reason or "sound"):
            self.differing[f"{reason} / {answer}"] += 1
            if self.differing[f"{reason} / {answer}"] == 1:
                self._keep("reason", data)

    def _found(self, error: Exception, data: bytes) -> None:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "fuzzing" not in f.filename]
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
        text = str(error) if isinstance(error, Finding) else type(error).__name__
        if len(self.findings) < 1000:
            key = f"{text[:60]} {place}".strip()
            self.findings[key] += 1
            if self.findings[key] == 1:
                path = self._keep("finding", data)
                print(f"FINDING {key}: {path}", file=sys.stderr, flush=True)
                traceback.print_exception(error, limit=-6)

    def _keep(self, what: str, data: bytes) -> Path:
        path = self._folder / f"{what}-{blake3.blake3(data).hexdigest()[:16]}.bstk"
        path.write_bytes(data)
        return path

    def report(self) -> dict[str, Any]:
        """Write the counts down, whole or not at all."""
        counts = {
            "executions": self.executions,
            "memory_measured": self.measured,
            "worst_peak_bytes": self.worst,
            "worst_share_of_limit": round(self.worst_share, 3),
            "asked_javascript": self.asked,
            "reasons": dict(self.reasons.most_common()),
            "other_reason_in_javascript": dict(self.differing.most_common(50)),
            "findings": dict(self.findings),
        }
        part = self._stats.with_suffix(".part")
        part.write_text(json.dumps(counts), encoding="utf-8")
        os.replace(part, self._stats)
        return counts

    def close(self) -> None:
        """Report, and end the other reader."""
        self.report()
        if self._javascript:
            self._javascript.close()
