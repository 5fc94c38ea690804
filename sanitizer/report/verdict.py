"""What a policy makes of the figures of a run. Torch-free."""

from sanitizer.report.model import Decision, Evaluation, Verdict
from sanitizer.spec import Policy


def decide(policy: Policy, before: Evaluation, after: Evaluation) -> Decision:
    """`blocked` if a figure breaks the policy, `undecided` without a trigger, else `allowed`."""
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
