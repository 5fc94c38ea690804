"""What a search for triggers does to a verdict."""

from sanitizer.report.model import Verdict
from sanitizer.report.verdict import decide
from sanitizer.spec import Policy

from .builders import build_evaluation, build_inspections, build_probe

POLICY = Policy()
GOOD = build_evaluation(7500, [build_probe("grid", 200, 6000)])


def test_a_finding_in_the_sanitized_model_leaves_it_undecided() -> None:
    decision = decide(POLICY, GOOD, GOOD, build_inspections(after=(3,)))
    assert decision.verdict is Verdict.UNDECIDED
    assert any("In the sanitized model class 3 stands out" in r for r in decision.reasons)
    assert not any("no proof" in reason for reason in decision.reasons)


def test_no_finding_changes_no_verdict_and_says_that_it_is_no_proof() -> None:
    decision = decide(POLICY, GOOD, GOOD, build_inspections(before=(3,)))
    assert decision.verdict is Verdict.ALLOWED
    assert any("In the model as it came class 3 stands out" in r for r in decision.reasons)
    assert "no proof" in decision.reasons[-1]
    without = build_evaluation(7500, [])
    assert decide(POLICY, without, without, build_inspections()).verdict is Verdict.UNDECIDED


def test_what_breaks_the_policy_is_blocked_whatever_a_search_finds() -> None:
    bad = build_evaluation(7500, [build_probe("grid", 8000, 900)])
    for after in ((), (3,)):
        decision = decide(POLICY, GOOD, bad, build_inspections(after=after))
        assert decision.verdict is Verdict.BLOCKED


def test_it_is_said_how_many_classes_were_searched_where_not_all_were() -> None:
    decision = decide(POLICY, GOOD, GOOD, build_inspections(num_classes=1000))
    assert any("for 10 of 1000 classes" in reason for reason in decision.reasons)
