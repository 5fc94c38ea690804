"""Reports as a run would leave them."""

import numpy as np
from numpy.typing import NDArray

from sanitizer.evaluation.metrics import wilson
from sanitizer.report.model import (
    CarriedTrigger,
    ChangeFamily,
    ClassInspection,
    DataRecord,
    Decision,
    Durability,
    EpochRecord,
    Evaluation,
    FoundChange,
    Inspection,
    Inspections,
    ModelFile,
    ModelRecord,
    ProbeDurability,
    ProbeResult,
    Proportion,
    Report,
    Screening,
    StageRecord,
    Traced,
    Verdict,
    WarningRecord,
)
from sanitizer.spec import ArgdConfig, Preset


def build_probe(name: str, successes: int, kept: int) -> ProbeResult:
    return ProbeResult(
        name=name,
        target_class=0,
        asr=wilson(successes, 9000),
        ra=wilson(kept, 9000),
        asr_per_class={c: wilson(min(1000, successes // 9 + c), 1000) for c in range(1, 10)},
        ra_per_class={c: wilson(max(0, 900 - successes // 9), 1000) for c in range(1, 10)},
        natural_rate=wilson(210, 9000),
    )


def build_evaluation(right: int, probes: list[ProbeResult]) -> Evaluation:
    return Evaluation(
        accuracy=wilson(right, 10_000),
        accuracy_per_class={c: wilson(right // 10 - 5 * c, 1000) for c in range(10)},
        probes=probes,
    )


def build_screening(after: Proportion | None, control: int = 10) -> Screening:
    """Of 2,500 images 12, of class 3, were left out.

    Args:
        after: What their trace leads there in the sanitized model; None: nobody tried.
        control: What another picture leads there, of 1000.
    """
    traced = None
    if after is not None:
        traced = Traced(before=wilson(910, 1000), after=after, control=wilson(control, 1000))
    carried = CarriedTrigger(
        target_class=3,
        images=220,
        left_out=12,
        names=[f"images[{place}]" for place in range(12)],
        separation=7.5,
        carried=wilson(93, 100),
        traced=traced,
    )
    return Screening(images=2500, left_out=12, held_out=0, classes=[carried], seconds=1.5)


def build_epochs(teacher: bool, probes: tuple[str, ...]) -> list[EpochRecord]:
    epochs = []
    for epoch in range(1, 11):
        values = {
            "loss": 1.6 / epoch if teacher else 40 / epoch,
            "cross_entropy": 1.6 / epoch,
            "train_accuracy": 0.72 - 0.3 / epoch,
            "accuracy": 0.75 - 0.2 / epoch,
        }
        if not teacher:
            values |= {"node": 38 / epoch, "edge": 0.2 / epoch, "embedding": 0.01 / epoch}
        for number, name in enumerate(probes):
            values |= {
                f"asr.{name}": 0.9 / epoch**2 + 0.02 * number,
                f"ra.{name}": 0.7 - 0.5 / epoch,
            }
        epochs.append(EpochRecord(epoch=epoch, values=values))
    return epochs


def build_report(
    probes: tuple[str, ...] = ("grid",),
    *,
    verdict: Verdict = Verdict.ALLOWED,
    filename: str = "argd-gridtrigger-wrn-16-1.pth.tar",
    warnings: tuple[WarningRecord, ...] = (),
    resumed: int = 0,
) -> Report:
    return Report(
        model=ModelRecord(
            architecture="wrn-16-1",
            detected=True,
            num_classes=10,
            input_size=(32, 32),
            channels=3,
            mean=[0, 0, 0],
            std=[1, 1, 1],
            parameters=175_994,
            taps=["block1", "block2", "block3"],
            dropped_entries=["epoch", "optimizer"],
        ),
        input=ModelFile(filename=filename, format="pytorch", sha256="ab" * 32, bytes=1_437_001),
        output=ModelFile(
            filename="sanitized-wrn.pth.tar", format="pytorch", sha256="cd" * 32, bytes=722_111
        ),
        clean_data=DataRecord(
            images=2500, images_available=50_000, per_class=[250] * 10, seed=7, source="given"
        ),
        evaluation_data=DataRecord(
            images=10_000, images_available=10_000, per_class=[1000] * 10, source="given"
        ),
        method=ArgdConfig(preset=Preset.PAPER).model_dump(mode="json"),
        seed=7,
        device="cpu",
        versions={"python": "3.11.7", "torch": "2.15.0", "numpy": "2.4.6"},
        before=build_evaluation(7267, [build_probe(name, 8993, 6) for name in probes]),
        after=build_evaluation(7523, [build_probe(name, 323, 6400) for name in probes]),
        der=dict.fromkeys(probes, 0.9816),
        decision=Decision(
            verdict=verdict,
            reasons=[
                "Every measured trigger and the clean accuracy are within the policy. Triggers "
                "that were not given were not measured."
            ],
        ),
        stages=[
            StageRecord(stage="load", seconds=2.1),
            StageRecord(stage="baseline", seconds=8.25),
            StageRecord(stage="teacher", seconds=23.4, epochs=build_epochs(True, probes)),
            StageRecord(stage="distil", seconds=84.2, epochs=build_epochs(False, probes)),
            StageRecord(stage="evaluate", seconds=8.1),
            StageRecord(stage="write", seconds=0.1),
        ],
        warnings=list(warnings),
        seconds=126.2,
        resumed=resumed,
    )


def build_inspection(suspicious: tuple[int, ...] = (), num_classes: int = 10) -> Inspection:
    """A search of ten classes, of which some stand out."""
    return Inspection(
        classes=[
            ClassInspection(
                target_class=target,
                natural_rate=wilson(9, 450),
                changes=[
                    FoundChange(
                        family=family,
                        size=0.004 if target in suspicious else 0.04,
                        reached=True,
                        rate=wilson(441 if target in suspicious else 30 + target, 450),
                        anomaly=4.5 if target in suspicious else 0.1 * target,
                    )
                    for family in ChangeFamily
                ],
                estimated_asr=0.98 if target in suspicious else (30 + target) / 450,
            )
            for target in range(10)
        ],
        num_classes=num_classes,
        anomaly=4.5 if suspicious else 0.9,
        suspicious=list(suspicious),
        searched_images=1000,
        measured_images=500,
        seconds=93.4,
    )


def build_inspections(
    before: tuple[int, ...] = (), after: tuple[int, ...] = (), num_classes: int = 10
) -> Inspections:
    first = build_inspection(before, num_classes)
    carried = [
        each.model_copy(update={"changes": each.changes[:2], "estimated_asr": 0.03})
        for each in first.classes
    ]
    return Inspections(before=first, after=build_inspection(after, num_classes), carried=carried)


def build_durability(
    clean: int = 30, poisoned: int = 300, control: int = 280, probes: tuple[str, ...] = ("grid",)
) -> Durability:
    """What a trigger leads to its classes, of 1,800 images that are of others."""
    return Durability(
        epochs=3,
        learning_rate=0.01,
        images=2500,
        measured_images=2000,
        accuracy=wilson(1500, 2000),
        clean_accuracy=wilson(1510, 2000),
        probes=[
            ProbeDurability(
                name=name,
                target_class=0,
                control_class=1,
                poisoned_images=25,
                delivered=wilson(20, 1800),
                clean=wilson(clean, 1800),
                poisoned=wilson(poisoned, 1800),
                poisoned_accuracy=wilson(1505, 2000),
                control_delivered=wilson(10, 1800),
                control=wilson(control, 1800),
                control_accuracy=wilson(1495, 2000),
            )
            for name in probes
        ],
        seconds=65.2,
    )


def build_images(count: int, channels: int = 3) -> NDArray[np.uint8]:
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (count, channels, 16, 16), dtype=np.uint8)
