"""Plain text out of data sets: ``python -m bitstack.tools.bench.texts DATA -o FOLDER``.

Writes ``lambada.txt`` (passages from books) and ``hellaswag.txt`` (how-to articles and captions, each with its right
ending), one passage a paragraph, from the local files of those sets: texts that nothing here was developed on.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

#: Output name -> pattern of the data file, and what of a line is text.
SETS: Final[dict[str, tuple[str, Callable[[dict[str, Any]], str]]]] = {
    "lambada.txt": ("lambada*.jsonl", lambda line: f"{line['context']} {line['continuation']}"),
    "hellaswag.txt": ("hellaswag*.jsonl", lambda line: f"{line['query']} {line['choices'][line['gold']]}"),
}


def passages(file: Path, text: Callable[[dict[str, Any]], str]) -> Iterator[str]:
    """The text of each line of a JSON lines file."""
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            yield text(json.loads(line)).strip()


def main() -> None:
    """Write the texts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    for name, (pattern, text) in SETS.items():
        found = sorted(args.data.glob(pattern))
        if not found:
            raise SystemExit(f"{args.data}: no file {pattern}")
        out = args.output / name
        out.write_text("\n\n".join(passages(found[0], text)) + "\n", encoding="utf-8")
        print(f"{out}: {out.stat().st_size:,} bytes from {found[0].name}")


if __name__ == "__main__":
    main()
