"""What a policy makes of the figures of a run. Torch-free."""

from collections.abc import Sequence

from sanitizer.report.model import (
    Decision,
    Evaluation,
    Inspection,
    Inspections,
    Verdict,
)
from sanitizer.spec import Policy


def decide(
    policy: Policy, before: Evaluation, after: Evaluation, inspections: Inspections | None = None
) -> Decision:
    """`blocked` if a figure breaks the policy, `undecided` without a trigger, else `allowed`.

    Where a search finds something in the sanitized model, it is `undecided` at best. That it finds
    nothing changes no verdict.
    """
    decision = _by_figures(policy, before, after)
    if inspections is None:
        return decision
    found = bool(inspections.after.suspicious)
    verdict = decision.verdict
    if found and verdict is Verdict.ALLOWED:
        verdict = Verdict.UNDECIDED
    return Decision(verdict=verdict, reasons=[*decision.reasons, *_told(inspections)])


def _told(inspections: Inspections) -> list[str]:
    """What was looked for, and what came of it."""
    before, after = inspections.before, inspections.after
    classes = len(after.classes)
    which = "every class" if classes == after.num_classes else f"{classes} of {after.num_classes}"
    which += "" if classes == after.num_classes else " classes"
    sentences = [
        f"Triggers were searched for with clean images alone: for {which} a patch, a pattern and a "
        "shift of features that lead images there, before and after."
    ]
    sentences.append(f"In the model as it came {_finding(before)}.")
    sentences.append(f"In the sanitized model {_finding(after)}.")
    if not after.suspicious:
        sentences.append(
            "That a search finds nothing is no proof: triggers of other kinds, larger ones, or "
            "such as need a certain image stay hidden from it."
        )
    return sentences


def _finding(inspection: Inspection) -> str:
    if not inspection.suspicious:
        return f"no class stands out (anomaly {inspection.anomaly:.1f})"
    strongest = inspection.suspicious[0]
    rate = next(each.estimated_asr for each in inspection.classes if each.target_class == strongest)
    return (
        f"{_classes(inspection.suspicious)} out (anomaly {inspection.anomaly:.1f}): a change found "
        f"for class {strongest} leads {rate:.0%} of other images there"
    )


def _classes(classes: Sequence[int]) -> str:
    if len(classes) == 1:
        return f"class {classes[0]} stands"
    return f"classes {', '.join(map(str, classes))} stand"


def _by_figures(policy: Policy, before: Evaluation, after: Evaluation) -> Decision:
    broken = []
    drop = before.accuracy.value - after.accuracy.value
    if drop > policy.max_accuracy_drop:
        broken.append(
            f"Clean accuracy fell by {drop:.2%} of all images; the policy allows "
            f"{policy.max_accuracy_drop:.2%}."
        )
    if after.accuracy.value < policy.min_accuracy:
        broken.append(
            f"Clean accuracy is {after.accuracy.value:.2%}; the policy asks for "
            f"{policy.min_accuracy:.2%}."
        )
    broken += [
        f"Probe {probe.name}: the attack success rate is {probe.asr.value:.2%}; the policy allows "
        f"{policy.max_asr:.2%}."
        for probe in after.probes
        if probe.asr.value > policy.max_asr
    ]
    if broken:
        return Decision(verdict=Verdict.BLOCKED, reasons=broken)
    if not after.probes:
        return Decision(
            verdict=Verdict.UNDECIDED,
            reasons=[
                "No trigger was given to measure. Clean accuracy holds, but whether a "
                "backdoor is left is not known."
            ],
        )
    return Decision(
        verdict=Verdict.ALLOWED,
        reasons=[
            "Every measured trigger and the clean accuracy are within the policy. Triggers "
            "that were not given "
            "were not measured."
        ],
    )
