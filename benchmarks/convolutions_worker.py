"""PyTorch's side of convolutions.py, which runs this file under a Python that has torch.

The argument is the data type. Every line on standard input is a list in JSON: the shapes of maps (N, H, W, I) and
kernel (KH, KW, I / groups, O), the stride, the padding, the groups, a direction and how often to compute it. The answer
is a line of JSON: the seconds, or an error. The first line of the output describes PyTorch.
"""

import json
import sys
import time
from collections.abc import Callable

import torch


def make_turn(
    maps: list[int], kernel: list[int], stride: int, padding: list[list[int]], groups: int, direction: str
) -> Callable[[], object]:
    """Returns a function that computes one direction of a convolution, channels_last."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = {"dtype": getattr(torch, sys.argv[1]), "device": device}
    batch, height, width, features = maps
    rows, columns, features_of_group, features_out = kernel
    x = torch.randn(batch, features, height, width, **options).to(memory_format=torch.channels_last)
    weight = torch.randn(features_out, features_of_group, rows, columns, **options)
    weight = weight.to(memory_format=torch.channels_last)
    settings = [stride] * 2, [side for side, _ in padding], [1, 1]
    with torch.inference_mode():
        y = torch.ops.aten.convolution(x, weight, None, *settings, False, [0, 0], groups)
    gradient = torch.randn_like(y)
    if direction == "forward":
        return lambda: torch.ops.aten.convolution(x, weight, None, *settings, False, [0, 0], groups)
    wanted = [direction == "input gradient", direction == "kernel gradient", False]
    return lambda: torch.ops.aten.convolution_backward(
        gradient, x, weight, None, *settings, False, [0, 0], groups, wanted
    )


def main() -> None:
    """Answers one line after the other."""
    torch.backends.cudnn.benchmark = True
    print(json.dumps({"torch_version": torch.__version__, "threads": torch.get_num_threads()}), flush=True)
    turn, made = None, None
    for line in sys.stdin:
        *case, steps = json.loads(line)
        try:
            if case != made:
                turn, made = make_turn(*case), case
            with torch.inference_mode():
                start = time.perf_counter()
                for _ in range(steps):
                    turn()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                answer = {"seconds": time.perf_counter() - start}
        except Exception as error:  # for example out of memory
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
