"""The ARGD losses written once more, from the definitions: slow, and easy to check."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from sanitizer.methods.argd.losses import RelationEmbedding


def attention_map(features: Tensor) -> Tensor:
    maps = []
    for image in features:
        energy = torch.zeros_like(image[0])
        for channel in image:
            energy = energy + channel**2
        norm = math.sqrt(sum(float(v) ** 2 for v in energy.flatten()))
        maps.append((energy / (norm + 1e-6)).unsqueeze(0))
    return torch.stack(maps)


def pooled(node: Tensor, height: int, width: int) -> Tensor:
    """Adaptive average pooling as it is defined: cell i covers floor(iH/h) to ceil((i+1)H/h)."""
    source_height, source_width = node.shape
    rows = []
    for i in range(height):
        top, bottom = i * source_height // height, -(-(i + 1) * source_height // height)
        row = []
        for j in range(width):
            left, right = j * source_width // width, -(-(j + 1) * source_width // width)
            row.append(node[top:bottom, left:right].mean())
        rows.append(torch.stack(row))
    return torch.stack(rows)


def node_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], weights: Sequence[float]
) -> float:
    total = 0.0
    for mine, theirs, weight in zip(student, teacher, weights, strict=True):
        total += weight * float(((mine - theirs) ** 2).sum()) / mine.numel()
    return total


def edge(first: Tensor, second: Tensor) -> list[float]:
    squared = []
    for a, b in zip(first[:, 0], second[:, 0], strict=True):
        grid = a.shape if a.numel() <= b.numel() else b.shape
        difference = pooled(a, *grid) - pooled(b, *grid)
        squared.append(max(float((difference**2).sum()), 1e-12))
    return [value / max(squared) for value in squared]


def edge_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> float:
    terms = []
    for i in range(len(student)):
        for j in range(i + 1, len(student)):
            mine, theirs = edge(student[i], student[j]), edge(teacher[i], teacher[j])
            terms.append(sum((a - b) ** 2 for a, b in zip(mine, theirs, strict=True)) / len(mine))
    return sum(terms) / len(terms) if terms else 0.0


def batch_norm(rows: Tensor) -> Tensor:
    return functional.batch_norm(rows, None, None, training=True)


def embedding_terms(
    embedding: RelationEmbedding, student: Sequence[Tensor], teacher: Sequence[Tensor]
) -> list[float]:
    dim, images = embedding.dim, student[0].shape[0]
    queries = []
    for t, node in enumerate(teacher):
        mean = node.mean(dim=(1, 2, 3))
        queries.append(
            batch_norm(torch.outer(mean, embedding.query_weight[t]) + embedding.query_bias[t])
        )
    keys = []
    for s, node in enumerate(student):
        mean = node.mean(dim=(1, 2, 3))
        key = batch_norm(torch.outer(mean, embedding.key_weight[s]) + embedding.key_bias[s])
        keys.append(key.clamp(min=0))
    stacked = torch.stack([keys[s][b] for b in range(images) for s in range(len(student))])
    mapped = batch_norm(stacked @ embedding.bilinear_weight.T + embedding.bilinear_bias)
    terms = []
    for t, target in enumerate(teacher):
        height, width = target.shape[2:]
        total = 0.0
        for b in range(images):
            logits = []
            for s in range(len(student)):
                vector = mapped[b * len(student) + s][t * dim : (t + 1) * dim]
                position = embedding.teacher_position[t] @ embedding.student_position[s]
                logits.append(float(vector @ queries[t][b] + position) / math.sqrt(dim))
            shares = [math.exp(v - max(logits)) for v in logits]
            wanted = unit(pooled(target[b, 0] ** 2, height, width))
            for s, node in enumerate(student):
                value = unit(pooled(node[b, 0] ** 2, height, width))
                total += shares[s] / sum(shares) * float(((value - wanted) ** 2).mean())
        terms.append(total / images)
    return terms


def unit(values: Tensor) -> Tensor:
    scaled: Tensor = values / max(float((values**2).sum()) ** 0.5, 1e-12)
    return scaled
