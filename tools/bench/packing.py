"""What packing a large model costs: ``python -m bitstack.tools.bench.packing --device cuda``.

A model of the shape of Llama 3.1 8B, made of random weights layer by layer on the device. Every layer goes through what
packing does with it: second moments of activations (random ones here), then chains of blocks for all its matrices, one
matrix at a time. The embedding comes last.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

#: Rows and columns of the matrices of one layer that read the same input, and how wide that input is.
SHAPES: Final = {
    "8b": {
        "layers": 32,
        "vocabulary": 128256,
        "width": 4096,
        "inputs": [
            [(4096, 4096), (1024, 4096), (1024, 4096)],
            [(4096, 4096)],
            [(14336, 4096), (14336, 4096)],
            [(4096, 14336)],
        ],
    },
    "tiny": {"layers": 2, "vocabulary": 512, "width": 64, "inputs": [[(64, 64), (32, 64)], [(128, 64)], [(64, 128)]]},
}


class Clock:
    """Seconds by stage, the device's own work included."""

    def __init__(self, device: Any) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._device = device

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Within it, time counts for this stage."""
        import torch

        started = time.monotonic()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds[name] += time.monotonic() - started


def run(shape: dict[str, Any], recipe_name: str, tokens: int, layers: int, device: Any) -> dict[str, Any]:
    """Pack ``layers`` layers and the embedding of a model of that shape; the rows of the report."""
    import torch

    from bitstack.blocks import search_of
    from bitstack.decompose import Problem, decompose
    from bitstack.design import Judge, worths_at
    from bitstack.measure import LinearMeasure, TokenMeasure, linear_scales, token_scales
    from bitstack.recipe_file import load_recipe

    recipe = load_recipe(recipe_name)
    settings, clock, size = recipe.decompose, Clock(device), 0
    generator = torch.Generator(device).manual_seed(0)

    def random(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=generator, device=device)

    def moment(columns: int) -> torch.Tensor:
        total = torch.zeros(columns, columns, device=device)
        spread = torch.logspace(-1, 1, columns, device=device)
        for _ in range(0, tokens, 8192):
            x = random(min(tokens, 8192), columns) * spread
            total.addmm_(x.T, x)
        return total / tokens

    def packed(problem: Problem, options: Any, judge: Judge) -> int:
        with clock.stage("decompose"):
            chains = decompose(problem, search_of(options, judge))
        with clock.stage("bytes"):
            return sum(len(data) for chain in chains for _, data in chain.blocks())

    elements = 0
    for number in range(layers):
        for group in shape["inputs"]:
            with clock.stage("second moments"):
                hessian = moment(group[0][1])
            alike: dict[tuple[int, int], int] = defaultdict(int)
            for sides in group:
                alike[sides] += 1
            for (rows, columns), count in alike.items():
                outputs = [torch.rand(rows, generator=generator, device=device).double() for _ in range(count)]
                weights = [random(rows, columns) * columns**-0.5 for _ in range(count)]
                loss = [
                    (rows * columns, float(LinearMeasure(hessian[None], o[None]).rows(w[None]).sum()))
                    for o, w in zip(outputs, weights, strict=True)
                ]
                judge = Judge(worths_at(settings.bits, loss), settings.emphasis)
                # One at a time where one is large, as packing does it.
                for output, weight in zip(outputs, weights, strict=True):
                    problem = Problem.of(
                        [weight], [linear_scales(hessian, output)], LinearMeasure(hessian[None], output[None]), number
                    )
                    size += packed(problem, settings.linear, judge)
                    elements += rows * columns
    rows, columns = shape["vocabulary"], shape["width"]
    table = random(rows, columns) * 0.02
    uses = [(torch.rand(rows, generator=generator, device=device).double(), moment(columns))]
    judge = Judge(worths_at(settings.bits, [(rows * columns, 1.0)]), settings.emphasis)
    scales = token_scales(uses)
    for start in range(0, rows, 4096):
        part = slice(start, start + 4096)
        measure = TokenMeasure(tuple((w[None, part], a) for w, a in uses))
        own = type(scales)(scales.row[part], scales.col)
        size += packed(Problem.of([table[part]], [own], measure, 0), settings.token, judge)
    elements += rows * columns
    total = sum(clock.seconds.values())
    return {
        "layers": layers,
        "tokens": tokens,
        "recipe": recipe_name,
        "elements": elements,
        "bytes": size,
        "seconds": round(total, 2),
        "stages": {name: round(value, 2) for name, value in clock.seconds.items()},
        "shares": {name: round(value / total, 4) for name, value in clock.seconds.items()},
        "peak_device_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        "peak_device_reserved_bytes": torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="8b")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--tokens", type=int, default=65536, help="of random activations")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--device")
    args = parser.parse_args()
    from bitstack.tools.devices import find_device, hardware, versions

    device = find_device(args.device)
    shape: dict[str, Any] = SHAPES[args.shape]
    rows = run(shape, args.recipe, args.tokens, args.layers or shape["layers"], device)
    print(json.dumps(rows | {"shape": args.shape, "hardware": hardware(device), "versions": versions()}, indent=2))


if __name__ == "__main__":
    main()
