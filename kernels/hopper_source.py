"""The sources of the kernels for compute capability 9.0, put together of `hopper_*.cu`."""

from importlib.resources import files

from .table import FIELD_NAMES, FIELDS, SIGN8, SPARSE


def assemble(*parts: str, bfloat: bool = False, **open_: object) -> str:
    """Some `hopper_{part}.cu` one after the other, after definitions of all that they leave open.

    Args:
        parts: in this order, "values" first.
        bfloat: whether what is narrow is bfloat16, and not float16.
        open_: names and what they stand for, beside those of the rows of a table.
    """
    open_ |= {"BFLOAT": int(bfloat), "SIGN8": SIGN8, "SPARSE": SPARSE, "FIELDS": FIELDS}
    open_ |= {name: number for number, name in enumerate(FIELD_NAMES)}
    defined = [f"#define {name} {value}" for name, value in open_.items()]
    texts = [files(__package__).joinpath(f"hopper_{part}.cu").read_text("utf-8") for part in parts]
    return "\n".join([*defined, *texts])
