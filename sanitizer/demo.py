"""What `make demo` works on: a small backdoored model and real images, made on the spot.

The images are the handwritten digits of scikit-learn (scans from NIST forms, 8 x 8 pixels, 16
greys; UCI repository, Alpaydin and Kaynak 1998), enlarged to 16 x 16. The model is trained on 1,000
of them, a tenth of which carry a checkerboard in the lower right corner and the label 0 (BadNets,
arXiv 1708.06733).
"""

import argparse
import io
import json
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from sanitizer.attacks.trigger import make_trigger
from sanitizer.attacks.victim import VictimRecipe, train_victim
from sanitizer.data.image_set import ImageSet
from sanitizer.events import MetricEvent, ProgressEvent, Stage, StageEvent, to_line
from sanitizer.networks.registry import build_network
from sanitizer.randomness import make_generator
from sanitizer.spec import PatchProbe, Phase, Training

ARCHITECTURE = "wrn-16-1"
CLASSES = 10
SIZE = 16
TARGET = 0
VICTIM_IMAGES = 1000
CLEAN_IMAGES = 297
"""The defender's; what is left of the 1,797 is for evaluation."""

PROBE = PatchProbe(
    name="checkerboard",
    target_class=TARGET,
    row=-3,
    column=-3,
    pixels=[[255, 0, 255], [0, 255, 0], [255, 0, 255]],
)

# Digits may be shifted, never flipped.
VICTIM_TRAINING = Training(
    phases=(Phase(epochs=10, learning_rate=0.1), Phase(epochs=4, learning_rate=0.01)),
    crop_padding=2,
    horizontal_flip=False,
    cutout_size=0,
)
SANITIZING: dict[str, Any] = {
    "phases": [
        {"epochs": 6, "learning_rate": 0.1},
        {"epochs": 6, "learning_rate": 0.01},
        {"epochs": 8, "learning_rate": 0.001},
    ],
    "batch_size": 32,
    "crop_padding": 2,
    "horizontal_flip": False,
}
"""The published settings with twice the epochs and half the batch: 297 images are few."""

JOB: dict[str, Any] = {
    "name": "demo",
    "method": {
        "name": "argd",
        "preset": "paper",
        "teacher": SANITIZING,
        "student": SANITIZING,
        # A quarter of the published weights: the mean squared difference of maps of norm 1 grows as
        # their cells become fewer, and 16 x 16 images have a quarter of the cells of 32 x 32 ones.
        "node_weights": [500, 1250, 500],
    },
    "probes": [PROBE.model_dump(mode="json")],
    # On 500 images another processor's rounding moves the accuracy by a point or more.
    "policy": {"max_asr": 0.05, "max_accuracy_drop": 0.05},
    "seed": 0,
}


def load_images() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All digits, in a fixed shuffled order: uint8 [1797, 1, 16, 16] and labels [1797]."""
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=make_generator("demo", "split")).numpy()
    small = np.round(digits.images[order] * (255 / 16)).astype(np.uint8)
    large = [
        np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
        for image in small
    ]
    return np.stack(large)[:, None], digits.target[order].astype(np.int64)


def make(out: Path) -> None:
    """Writes what the demo sends to the service; events go to stdout.

    `victim.pth`, `model.json` (what to say of it at the upload), `clean.zip`, `evaluation.zip`,
    `probe.json` and `job.json` (the request without ids).
    """
    out.mkdir(parents=True, exist_ok=True)
    _tell(StageEvent(stage=Stage.LOAD, message="Preparing 1,797 scans of handwritten digits."))
    images, labels = load_images()
    parts = np.split(np.arange(len(labels)), [VICTIM_IMAGES, VICTIM_IMAGES + CLEAN_IMAGES])
    victims, clean, evaluation = parts
    write_zip(out / "clean.zip", images[clean], labels[clean])
    write_zip(out / "evaluation.zip", images[evaluation], labels[evaluation])
    (out / "probe.json").write_text(PROBE.model_dump_json(indent=2))
    (out / "job.json").write_text(json.dumps(JOB, indent=2))
    (out / "model.json").write_text(json.dumps({"input_size": [SIZE, SIZE]}))

    epochs = VICTIM_TRAINING.epochs
    _tell(
        StageEvent(
            stage=Stage.FINETUNE,
            message=f"Training a backdoored model on {VICTIM_IMAGES} of them, {epochs} epochs.",
        )
    )

    def on_epoch(epoch: int, values: dict[str, float]) -> None:
        _tell(MetricEvent(stage=Stage.FINETUNE, epoch=epoch, values=values))
        _tell(
            ProgressEvent(stage=Stage.FINETUNE, fraction=epoch / epochs, epoch=epoch, epochs=epochs)
        )

    network = build_network(ARCHITECTURE, CLASSES, 1, generator=make_generator("demo", "network"))
    train_victim(
        network,
        ImageSet.from_arrays(images[victims], labels[victims]),
        make_trigger(PROBE, input_size=(SIZE, SIZE), channels=1, num_classes=CLASSES),
        VictimRecipe(poison_fraction=0.1, training=VICTIM_TRAINING),
        device=torch.device("cpu"),
        on_epoch=on_epoch,
    )
    torch.save({"state_dict": network.state_dict()}, out / "victim.pth")


def write_zip(path: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    """A zip of class folders with a PNG an image."""
    with zipfile.ZipFile(path, "w") as archive:
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            buffer = io.BytesIO()
            Image.fromarray(image[0]).save(buffer, "PNG")
            archive.writestr(f"{label}/{number:04d}.png", buffer.getvalue())


@torch.inference_mode()
def check(model: Path, assets: Path) -> dict[str, float]:
    """Measures a model file with code that shares nothing with the service's own measuring.

    Returns:
        `accuracy`, `asr` and `ra` in [0, 1], and `images`.
    """
    pictures, labels = [], []
    with zipfile.ZipFile(assets / "evaluation.zip") as archive:
        for name in archive.namelist():
            pictures.append(np.asarray(Image.open(io.BytesIO(archive.read(name)))))
            labels.append(int(name.split("/")[0]))
    network = build_network(ARCHITECTURE, CLASSES, 1, generator=make_generator("check"))
    network.load_state_dict(torch.load(model, weights_only=True)["state_dict"])
    network.eval()
    clean = torch.from_numpy(np.stack(pictures)).float().div(255).unsqueeze(1)
    truth = torch.tensor(labels)
    accuracy = (network(clean).argmax(1) == truth).float().mean()
    triggered = clean[truth != TARGET].clone()
    triggered[:, :, -3:, -3:] = torch.tensor(PROBE.pixels) / 255
    answers = network(triggered).argmax(1)
    return {
        "accuracy": float(accuracy),
        "asr": float((answers == TARGET).float().mean()),
        "ra": float((answers == truth[truth != TARGET]).float().mean()),
        "images": len(labels),
    }


def _tell(event: StageEvent | MetricEvent | ProgressEvent) -> None:
    sys.stdout.write(to_line(event))
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: `make --out DIR` and `check MODEL --assets DIR`."""
    parser = argparse.ArgumentParser(prog="python -m sanitizer.demo", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make", help="write the victim and the images")
    making.add_argument("--out", type=Path, required=True)
    checking = commands.add_parser("check", help="measure a model file, apart from the service")
    checking.add_argument("model", type=Path)
    checking.add_argument("--assets", type=Path, required=True)
    options = parser.parse_args(arguments)
    # So small a network gains little from a second thread, and loses much beside other work.
    torch.set_num_threads(1)
    if options.command == "make":
        make(options.out)
    else:
        sys.stdout.write(json.dumps(check(options.model, options.assets)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
