"""Trains ResNet-20 on CIFAR-10 in the usual way of PyTorch, to compare with our training; prints one line of JSON.

Run under a Python that has torch, torchvision and NumPy: plain_pytorch_resnet20.py FOLDER [STEPS]. The folder holds the
official binary files, data_batch_1.bin to data_batch_5.bin and test_batch.bin. The recipe is that of
configs/cifar10_resnet20.py: 64,000 steps, or fewer to measure only the speed, and an evaluation after every second
epoch, as in degradation.py. A DataLoader with workers crops and flips; the layout is channels_last; a GPU uses bfloat16
autocast.
"""

import itertools
import json
import os
import pathlib
import sys
import time

import numpy as np
import torch
import torchvision
from torch import nn
from torch.nn.functional import cross_entropy, pad
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

BATCH_SIZE, STEPS = 128, 64_000
NORMALIZE = transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
TRAINING = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]


class Cifar10(Dataset):
    """Images of the official binary files: a byte for the label, then 32 x 32 bytes of each colour."""

    def __init__(self, files: list[pathlib.Path], transform: transforms.Compose):
        records = np.concatenate([np.fromfile(file, np.uint8).reshape(-1, 3073) for file in files])
        self.labels = records[:, 0].astype(np.int64)
        self.images = np.ascontiguousarray(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(transforms.functional.to_pil_image(self.images[index])), self.labels[index]


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (option A)."""

    def __init__(self, in_features: int, features: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_features, features, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(features)
        self.stride, self.added = stride, features - in_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.added:
            x = pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.added // 2, self.added // 2))
        return torch.relu(x + y)


def make_network() -> nn.Module:
    """Returns ResNet-20 with He's initial weights."""
    widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
    blocks = [Block(i, o, 1 if i == o else 2) for i, o in zip(widths, widths[1:], strict=False)]
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
    return network


def main() -> None:
    """Trains, evaluates after every second epoch, prints."""
    start = time.perf_counter()
    folder, steps = pathlib.Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else STEPS
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    workers = min(len(os.sched_getaffinity(0)), 16)
    options = {"num_workers": workers, "pin_memory": device == "cuda", "persistent_workers": True}
    to_tensor = [transforms.ToTensor(), NORMALIZE]
    train_data = Cifar10(sorted(folder.glob("data_batch_?.bin")), transforms.Compose([*TRAINING, *to_tensor]))
    test_data = Cifar10([folder / "test_batch.bin"], transforms.Compose(to_tensor))
    train_batches = DataLoader(train_data, BATCH_SIZE, shuffle=True, drop_last=True, **options)
    test_batches = DataLoader(test_data, 1000, **options)
    network = make_network().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [STEPS // 2, STEPS * 3 // 4])

    def logits_of(images: torch.Tensor) -> torch.Tensor:
        images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            return network(images)

    def test_error() -> float:
        network.eval()
        with torch.no_grad():
            right = sum((logits_of(images).argmax(1).cpu() == labels).sum().item() for images, labels in test_batches)
        return 100 * (1 - right / len(test_data))

    step, stretches = 0, []  # of every two epochs the steps, and the seconds of training and of evaluation
    while step < steps:
        first, begin = step, time.perf_counter()
        network.train()
        for images, labels in itertools.chain(train_batches, train_batches):
            optimizer.zero_grad()
            loss = cross_entropy(logits_of(images), labels.to(device, non_blocking=True))
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            if step == steps:
                break
        loss.item()  # waits for the device
        trained = time.perf_counter()
        error = test_error()
        stretches.append((step - first, trained - begin, time.perf_counter() - trained))

    seconds = time.perf_counter() - start
    settled = stretches[1:] or stretches  # the first also starts the workers
    measured, training, evaluation = np.sum(settled, axis=0)
    step_seconds = training / measured + evaluation / len(settled) / (2 * len(train_batches))
    result = {
        "steps": step,
        "seconds": seconds,
        "seconds_of_64000_steps": seconds + (STEPS - step) * step_seconds,  # evaluations included
        "images_per_second": measured * BATCH_SIZE / training,
        "test_error": error,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "workers": workers,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
