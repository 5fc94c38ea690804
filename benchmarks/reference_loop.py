"""ARGD the way a researcher writes it: what `benchmarks.engine_speed` compares the engine with.

    python -m benchmarks.reference_loop --seed 0

One file with everything in it: images decoded by PIL up front, torchvision transforms in a
DataLoader, fp32, NCHW, losses as modules written from the paper (arXiv 2204.09975), figures read
after every step. It shares with the engine only the network's definition and the draw of the clean
images. Prints one JSON object.
"""

import argparse
import io
import itertools
import json
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from sanitizer.data.splits import draw
from sanitizer.networks.wide_resnet import WideResNet

NODE_WEIGHTS = (2000.0, 5000.0, 2000.0)
DIM = 128
PATCH = ((255, 128, 255), (128, 255, 128), (255, 128, 128))
PATCH_ROW = PATCH_COLUMN = 18
TARGET = 0


class Images(Dataset[tuple[Any, int]]):
    """PIL images, and a transform for each as it is asked for."""

    def __init__(
        self, pictures: list[Image.Image], labels: list[int], transform: Callable[[Any], Any]
    ) -> None:
        self.pictures = pictures
        self.labels = labels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.pictures[index]), self.labels[index]


class Cutout:
    """Zeroes one square of an image tensor; its centre lies anywhere."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Tensor) -> Tensor:
        height, width = image.shape[1:]
        top = random.randrange(height) - self.size // 2
        left = random.randrange(width) - self.size // 2
        image[:, max(top, 0) : max(top + self.size, 0), max(left, 0) : max(left + self.size, 0)] = 0
        return image


class Trigger:
    """Puts the grid patch on a PIL image."""

    def __call__(self, image: Image.Image) -> Image.Image:
        pixels = np.array(image)
        rows = slice(PATCH_ROW, PATCH_ROW + 3)
        pixels[rows, PATCH_COLUMN : PATCH_COLUMN + 3] = np.array(PATCH, np.uint8)[..., None]
        return Image.fromarray(pixels)


class Embedding(nn.Module):
    """Queries of the teacher's nodes, keys of the student's, and a bilinear map between them."""

    def __init__(self, nodes: int) -> None:
        super().__init__()
        self.nodes = nodes
        self.queries = nn.ModuleList(self._projection() for _ in range(nodes))
        self.keys = nn.ModuleList(self._projection() for _ in range(nodes))
        self.bilinear = nn.Sequential(nn.Linear(DIM, nodes * DIM), nn.BatchNorm1d(nodes * DIM))
        self.p_t = nn.Parameter(nn.init.xavier_normal_(torch.empty(nodes, DIM)))
        self.p_s = nn.Parameter(nn.init.xavier_normal_(torch.empty(nodes, DIM)))

    @staticmethod
    def _projection() -> nn.Module:
        return nn.Sequential(nn.Linear(1, DIM), nn.BatchNorm1d(DIM))

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        batch = student[0].shape[0]
        means_t = [node.mean(dim=(1, 2, 3)).unsqueeze(1) for node in teacher]
        means_s = [node.mean(dim=(1, 2, 3)).unsqueeze(1) for node in student]
        q = torch.stack([layer(m) for layer, m in zip(self.queries, means_t, strict=True)], 1)
        k = torch.stack([layer(m) for layer, m in zip(self.keys, means_s, strict=True)], 1).relu()
        mapped = self.bilinear(k.view(batch * self.nodes, DIM))
        mapped = mapped.view(batch, self.nodes, self.nodes, DIM)
        logits = torch.einsum("bstd,btd->bts", mapped, q) + self.p_t @ self.p_s.T
        attention = F.softmax(logits / DIM**0.5, dim=-1)
        loss = torch.zeros(())
        for t, node in enumerate(teacher):
            size = (node.shape[2], node.shape[3])
            target = F.normalize(F.adaptive_avg_pool2d(node**2, size).flatten(1))
            distances = []
            for mine in student:
                value = F.normalize(F.adaptive_avg_pool2d(mine**2, size).flatten(1))
                distances.append(((value - target) ** 2).mean(1))
            loss = loss + (attention[:, t] * torch.stack(distances, 1)).sum(1).mean()
        return loss


def attention(features: Tensor) -> Tensor:
    """The attention map of a feature map [B, C, H, W]: [B, 1, H, W]."""
    energy = torch.pow(torch.abs(features), 2).sum(dim=1, keepdim=True)
    norm: Tensor = torch.norm(energy, dim=(2, 3), keepdim=True)
    return energy / (norm + 1e-6)


def edge(first: Tensor, second: Tensor) -> Tensor:
    """Normalised squared distance of two nodes, [B]."""
    if first.shape[2] > second.shape[2]:
        first = F.adaptive_avg_pool2d(first, (second.shape[2], second.shape[3]))
    squared = ((first - second) ** 2).sum(dim=(1, 2, 3)).clamp(min=1e-12)
    return squared / squared.max()


def features(network: WideResNet, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """Outputs of the three stages, and the logits."""
    first = network.block1(network.conv1(images))
    second = network.block2(first)
    third = network.block3(second)
    pooled = F.adaptive_avg_pool2d(F.relu(network.bn1(third)), 1).flatten(1)
    return [first, second, third], network.fc(pooled)


def learning_rate(epoch: int) -> float:
    """The authors' steps: 0.1 for 3 epochs, 0.01 for 3, then 0.001."""
    return 0.1 if epoch < 3 else 0.01 if epoch < 6 else 0.001


class Job:
    """Teacher, then student, with everything timed."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = torch.device(options.device)
        self.seconds: dict[str, list[float]] = {"teacher": [], "distil": []}

    def load(self) -> None:
        """Reads images and model."""
        data = self.options.shared / "data"
        table = pq.read_table(data / "cifar10" / "train.parquet")
        labels = np.array(table["label"], dtype=np.int64)
        chosen = draw(labels, self.options.images, self.options.seed)
        train = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                Cutout(3),
            ]
        )
        clean = Images(_decode(table.take(chosen)), labels[chosen].tolist(), train)
        self.loader = DataLoader(clean, batch_size=64, shuffle=True)
        test = pq.read_table(data / "cifar10" / "test.parquet")
        pictures, truth = _decode(test), np.array(test["label"]).tolist()
        self.clean_test = DataLoader(Images(pictures, truth, transforms.ToTensor()), batch_size=256)
        others = [i for i, label in enumerate(truth) if label != TARGET]
        triggered = transforms.Compose([Trigger(), transforms.ToTensor()])
        self.bad_test = DataLoader(
            Images([pictures[i] for i in others], [truth[i] for i in others], triggered),
            batch_size=256,
        )
        path = data / "models" / "argd-gridtrigger-wrn-16-1.pth.tar"
        weights = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        self.student = WideResNet(16, 1, 10)
        self.student.load_state_dict(weights)
        self.student.to(self.device)
        self.teacher = deepcopy(self.student)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of clean images."""
        for images, labels in self.loader:
            yield images.to(self.device), labels.to(self.device)

    def finetune(self) -> None:
        """The teacher."""
        optimizer = _sgd(self.teacher)
        for epoch in range(self.options.epochs):
            begun = time.perf_counter()
            _set_rate(optimizer, learning_rate(epoch))
            self.teacher.train()
            correct, total = 0, 0.0
            for images, labels in self.batches():
                logits = self.teacher(images)
                loss = F.cross_entropy(logits, labels)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # torch's own
                optimizer.step()
                total += loss.item()
                correct += int((logits.argmax(1) == labels).sum())
            self.seconds["teacher"].append(time.perf_counter() - begun)

    def distil(self) -> None:
        """The student."""
        self.teacher.eval()
        embedding = Embedding(3).to(self.device)
        optimizer = _sgd(self.student)
        for epoch in range(self.options.epochs):
            begun = time.perf_counter()
            _set_rate(optimizer, learning_rate(epoch))
            self.student.train()
            correct, total = 0, 0.0
            for images, labels in self.batches():
                mine, logits = features(self.student, images)
                with torch.no_grad():
                    theirs, _ = features(self.teacher, images)
                nodes_s = [attention(feature) for feature in mine]
                nodes_t = [attention(feature) for feature in theirs]
                node = sum(
                    weight * F.mse_loss(a, b)
                    for a, b, weight in zip(nodes_s, nodes_t, NODE_WEIGHTS, strict=True)
                )
                pairs = ((0, 1), (1, 2), (0, 2))
                edges = [
                    F.mse_loss(edge(nodes_s[i], nodes_s[j]), edge(nodes_t[i], nodes_t[j]))
                    for i, j in pairs
                ]
                loss = F.cross_entropy(logits, labels) + node + sum(edges) / len(edges)
                loss = loss + embedding(nodes_s, nodes_t)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item()
                correct += int((logits.argmax(1) == labels).sum())
            self.seconds["distil"].append(time.perf_counter() - begun)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """ACC and ASR of the student, in per cent, on the test file."""
        self.student.eval()
        shares = {}
        for name, loader, wanted in (
            ("acc", self.clean_test, None),
            ("asr", self.bad_test, TARGET),
        ):
            hits = total = 0
            for images, labels in loader:
                answers = self.student(images.to(self.device)).argmax(1).cpu()
                hits += int((answers == (labels if wanted is None else wanted)).sum())
                total += len(labels)
            shares[name] = 100 * hits / total
        return shares


def _decode(table: Any) -> list[Image.Image]:
    return [Image.open(io.BytesIO(row["bytes"])).convert("RGB") for row in table["img"].to_pylist()]


def _sgd(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True
    )


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one job and prints what it took."""
    begun = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=2500)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    random.seed(options.seed)
    np.random.seed(options.seed)

    job = Job(options)
    marks = [("load", time.perf_counter())]

    def timed(name: str, part: Callable[[], Any]) -> Any:
        value = part()
        if job.device.type == "cuda":
            torch.cuda.synchronize()
        marks.append((name, time.perf_counter()))
        return value

    timed("load", job.load)
    before = timed("baseline", job.measure)
    timed("teacher", job.finetune)
    timed("distil", job.distil)
    after = timed("evaluate", job.measure)
    parts = {name: stop - start for (_, start), (name, stop) in itertools.pairwise(marks)}
    result = {
        "before": before,
        "after": after,
        "seconds": parts,
        "epoch_seconds": job.seconds,
        "total_seconds": time.perf_counter() - begun,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
