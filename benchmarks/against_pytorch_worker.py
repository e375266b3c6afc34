"""PyTorch's side of against_pytorch.py, which runs this file under a Python that has torch, torchvision and timm.

Arguments: the network's name, its library, the batch size, the image size in pixels, the data type and the weights of
the auxiliary losses. Every line on standard input is a mode (train or infer), a style (eager, compiled or
cuda_graphs) and how many steps to run. The answer is a line of JSON: the seconds, or an error. The first line of the
output describes PyTorch and the device.
"""

import json
import pathlib
import sys
import time
from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LEARNING_RATE = 1e-6  # so small that the weights stay near their initial values


def make_network(name: str, library: str, has_aux: bool) -> torch.nn.Module:
    """Returns a network with new weights; one with auxiliary heads has them for training only."""
    if library == "studies":
        sys.path.insert(0, str(pathlib.Path(__file__).parent / "studies"))
        import plain_pytorch_resnet20

        return plain_pytorch_resnet20.make_network()
    if library == "timm":
        import timm

        return timm.create_model(name)
    import torchvision

    options = {"aux_logits": True, "init_weights": False} if has_aux else {}
    return torchvision.models.get_model(name, weights=None, **options)


def make_turn(
    network: torch.nn.Module, batch: tuple, mode: str, style: str, dtype: str, aux_weights: list[float]
) -> Callable[[], None]:
    """Returns a function that runs one step of a mode: SGD with momentum, or the logits."""
    images, labels = batch
    device = images.device.type
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (MEAN, STD))
    network.train(mode == "train")

    def forward(images: torch.Tensor, labels: torch.Tensor):
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            outputs = network((images.float() / 255 - mean) / std)
            if mode == "infer":
                return outputs
            logits, *auxiliary = outputs if isinstance(outputs, tuple) else (outputs,)
            if type(outputs).__name__ == "GoogLeNetOutputs":
                auxiliary.reverse()  # torchvision returns the deepest first
            losses = [cross_entropy(each, labels) for each in (logits, *auxiliary)]
            return sum(weight * loss for weight, loss in zip([1.0, *aux_weights], losses, strict=True))

    if style != "eager":
        forward = torch.compile(forward, mode="reduce-overhead" if style == "cuda_graphs" else "default")
    if mode == "infer":

        def step() -> None:
            with torch.inference_mode():
                forward(images, labels)

        return step
    options = {"fused": True} if device == "cuda" else {}
    optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATE, momentum=0.9, weight_decay=1e-4, **options)

    def step() -> None:
        optimizer.zero_grad()
        forward(images, labels).backward()
        optimizer.step()

    return step


def main() -> None:
    """Answers one line after the other."""
    name, library, batch_size, image_size, dtype, *aux_weights = sys.argv[1:]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")  # TF32, as ours
    network = make_network(name, library, bool(aux_weights)).to(device, memory_format=torch.channels_last)
    images = torch.randint(0, 256, (int(batch_size), 3, int(image_size), int(image_size)), dtype=torch.uint8)
    labels = torch.randint(0, 10, (int(batch_size),)).to(device)  # CIFAR-10 has ten classes
    batch = images.to(device, memory_format=torch.channels_last), labels
    heads = {parameter for part, parameter in network.named_parameters() if "aux" in part.lower()}
    parameters = sum(parameter.numel() for parameter in network.parameters() if parameter not in heads)
    about = {"torch_version": torch.__version__, "cudnn": torch.backends.cudnn.version(), "torch_device": device}
    print(json.dumps(about | {"threads": torch.get_num_threads(), "parameters": parameters}), flush=True)
    turns: dict[tuple[str, str], Callable[[], None]] = {}
    for line in sys.stdin:
        mode, style, steps = line.split()
        try:
            if (mode, style) not in turns:
                turns[mode, style] = make_turn(network, batch, mode, style, dtype, list(map(float, aux_weights)))
            network.train(mode == "train")
            start = time.perf_counter()
            for _ in range(int(steps)):
                turns[mode, style]()
            if device == "cuda":
                torch.cuda.synchronize()
            answer = {"seconds": time.perf_counter() - start}
        except Exception as error:  # for example no compiler, or out of memory: the row has the error
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
