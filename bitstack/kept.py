"""Statistics as a work folder keeps them."""

import torch

from .collect import LinearStatistics, Statistics, TokenStatistics
from .work import WorkFolder


def save_statistics(work: WorkFolder, name: str, statistics: Statistics) -> None:
    """Keep the statistics of some targets as one step."""
    tensors: dict[str, torch.Tensor] = {}
    for target, linear in statistics.linear.items():
        tensors |= {f"{target}#hessian": linear.hessian.clone(), f"{target}#output": linear.output}
    for target, token in statistics.token.items():
        for number, (rows, columns) in enumerate(token.terms):
            tensors |= {f"{target}#{number}#rows": rows.clone(), f"{target}#{number}#columns": columns.clone()}
    work.save(name, tensors)


def load_statistics(work: WorkFolder, name: str, tokens: int) -> Statistics:
    """What `save_statistics` kept, taken from so many tokens."""
    tensors = work.load(name)
    out = Statistics({}, {}, tokens)
    for key in tensors:
        target, _, rest = key.partition("#")
        if rest == "hessian":
            out.linear[target] = LinearStatistics(tensors[key], tensors[f"{target}#output"])
        elif rest.endswith("#rows"):
            out.token.setdefault(target, TokenStatistics())
    for target, token in out.token.items():
        count = sum(key.startswith(f"{target}#") and key.endswith("#rows") for key in tensors)
        token.terms += [(tensors[f"{target}#{n}#rows"], tensors[f"{target}#{n}#columns"]) for n in range(count)]
    return out
