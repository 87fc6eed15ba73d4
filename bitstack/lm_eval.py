"""lm-eval with ``.bstk`` files as models.

    python -m bitstack.lm_eval --model bitstack --model_args uri=model.bstk,budget=80MiB --tasks arc_easy

is the command ``lm_eval`` with the model ``bitstack``: lm-eval looks for no plugins, so that somebody has to import it.
In a program that is enough:

    import bitstack.lm_eval
    lm_eval.simple_evaluate(model="bitstack", model_args={"uri": "model.bstk", "budget": "80MiB"}, tasks=["arc_easy"])
"""

import sys
from typing import Final

from bsformat import BstkError

NEEDS: Final = "bitstack.lm_eval needs lm-eval: pip install 'bitstack[eval]'"


def main() -> int:
    """The command ``lm_eval``, with the model.

    Returns:
        The exit code; an error of this project is one line on stderr.
    """
    try:
        from lm_eval.__main__ import cli_evaluate

        import bitstack.lm_eval_model  # noqa: F401
    except ModuleNotFoundError as error:
        raise SystemExit(f"{NEEDS} ({error})") from None
    try:
        cli_evaluate()
    except BstkError as error:
        sys.stderr.write(f"bitstack.lm_eval: error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
else:
    try:
        from .lm_eval_model import BitStackLM
    except ModuleNotFoundError as error:
        raise ImportError(f"{NEEDS} ({error})") from None
    __all__ = ["BitStackLM", "main"]
