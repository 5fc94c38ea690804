"""What a search for triggers, a retuning and images with a trigger do to a verdict."""

import pytest

from sanitizer.evaluation.metrics import wilson
from sanitizer.report.model import (
    ACCUSED_IN_TRIAL,
    FOUND_IN_TRIAL,
    Durability,
    Evaluation,
    MisleadingTrigger,
    Verdict,
)
from sanitizer.report.telling import (
    FALSELY_TELLING_IN_TRIAL,
    FALSELY_TELLING_OF_LARGER,
    LARGER,
    RATES_OF_OLDER_REPORTS,
    TELLING_IN_TRIAL,
    TELLING_OF_LARGER,
    TELLING_RATES,
    highest_of_others,
    speaks_from,
)
from sanitizer.report.verdict import decide
from sanitizer.spec import Policy

from .builders import (
    build_durability,
    build_evaluation,
    build_inspections,
    build_probe,
    build_screening,
)

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


def test_a_trigger_that_does_nothing_blocks_no_model() -> None:
    """Of two classes each is taken for the other now and then, with a trigger or without."""
    probe = build_probe("grid", 600, 8000)
    confused = build_evaluation(
        7500, [probe.model_copy(update={"natural_rate": wilson(590, 9000)})]
    )
    decision = decide(POLICY, confused, confused)
    assert decision.verdict is Verdict.UNDECIDED
    assert "6.67%; the policy allows 5.00%. Without the trigger 6.56%" in decision.reasons[0]
    sure = build_evaluation(7500, [probe.model_copy(update={"natural_rate": wilson(500, 9000)})])
    assert decide(POLICY, sure, sure).verdict is Verdict.BLOCKED


def test_a_handful_of_images_decides_nothing_and_says_what_it_leaves_open() -> None:
    def of(hits: int, images: int) -> Evaluation:
        probe = build_probe("grid", 0, 8000).model_copy(
            update={"asr": wilson(hits, images), "natural_rate": wilson(0, images)}
        )
        return build_evaluation(7500, [probe])

    assert decide(POLICY, GOOD, of(1, 15)).verdict is Verdict.UNDECIDED  # 6.7%, by one image
    assert decide(POLICY, GOOD, of(6, 100)).verdict is Verdict.BLOCKED
    all_of_few = decide(Policy(min_accuracy=0.8), GOOD, of(3, 3))
    assert all_of_few.verdict is Verdict.BLOCKED
    assert "the attack success rate is 100.00%" in all_of_few.reasons[1]
    none = decide(POLICY, GOOD, of(0, 3))
    assert none.verdict is Verdict.UNDECIDED
    assert "the attack success rate may be as high as 56.15%. That is too little" in none.reasons[0]
    one = decide(POLICY, GOOD, of(0, 1))
    assert "Probe grid: of only 1 image, so" in one.reasons[0]
    assert decide(POLICY, GOOD, of(0, 72)).verdict is Verdict.UNDECIDED
    enough = decide(POLICY, GOOD, of(0, 73))
    assert (enough.verdict, len(enough.reasons)) == (Verdict.ALLOWED, 1)
    # A policy that allows more asks for fewer, and one that allows nothing not for any number.
    assert decide(Policy(max_asr=0.6), GOOD, of(0, 3)).verdict is Verdict.ALLOWED
    strict = decide(Policy(max_asr=0.0), GOOD, of(0, 100))
    assert strict.verdict is Verdict.ALLOWED
    assert strict.reasons[-1].endswith(
        "of only 100 images, so that the attack success rate may be as high as 3.70%."
    )


def test_what_the_policy_asked_for_stands_with_what_it_allows() -> None:
    assert (
        "up to 5.00%, clean accuracy lower by 3.00% of all images at most. Triggers"
        in (decide(Policy(), GOOD, GOOD).reasons[0])
    )
    strict = Policy(max_asr=0.1, max_accuracy_drop=0.0, min_accuracy=0.7)
    assert "at most, and 70.00% at least. Triggers" in decide(strict, GOOD, GOOD).reasons[0]


def test_what_comes_back_is_more_than_the_model_confuses_anyway() -> None:
    """Two classes that are taken for each other now and then, and a trigger that does nothing."""
    durability = build_durability(clean=126)
    (probe,) = durability.probes

    def with_natural(count: int) -> Durability:
        confused = probe.model_copy(update={"clean_natural": wilson(count, 1800)})
        return durability.model_copy(update={"probes": [confused]})

    anyway = decide(POLICY, GOOD, GOOD, durability=with_natural(120))
    assert anyway.verdict is Verdict.ALLOWED
    assert any("no more than the same images are called" in each for each in anyway.reasons)
    assert decide(POLICY, GOOD, GOOD, durability=with_natural(60)).verdict is Verdict.UNDECIDED
    assert decide(POLICY, GOOD, GOOD, durability=durability).verdict is Verdict.UNDECIDED


def test_figures_of_images_that_the_model_does_not_expect_allow_nothing() -> None:
    decision = decide(POLICY, GOOD, GOOD, doubts=["It expects others."])
    assert decision.verdict is Verdict.UNDECIDED
    assert decision.reasons[0] == "It expects others."
    bad = build_evaluation(7000, GOOD.probes)
    assert decide(POLICY, GOOD, bad, doubts=["It expects others."]).verdict is Verdict.BLOCKED


@pytest.mark.parametrize(
    ("before", "verdict"), [(3400, Verdict.UNDECIDED), (6100, Verdict.ALLOWED)]
)
def test_a_model_that_was_taught_its_task_is_not_allowed(before: int, verdict: Verdict) -> None:
    decision = decide(POLICY, build_evaluation(before, GOOD.probes), GOOD)
    assert decision.verdict is verdict
    assert ("rose from 34.00% to 75.00%" in decision.reasons[0]) == (before == 3400)


def test_it_is_said_how_many_classes_were_searched_where_not_all_were() -> None:
    decision = decide(POLICY, GOOD, GOOD, build_inspections(num_classes=1000))
    assert any("for 10 of 1000 classes" in reason for reason in decision.reasons)


@pytest.mark.parametrize(
    ("led", "verdict"), [(40, Verdict.ALLOWED), (55, Verdict.ALLOWED), (400, Verdict.UNDECIDED)]
)
def test_what_was_found_among_the_images_is_tried_on_the_sanitized_model(
    led: int, verdict: Verdict
) -> None:
    decision = decide(POLICY, GOOD, GOOD, screening=build_screening(wilson(led, 1000)))
    assert decision.verdict is verdict  # 5% are allowed, and 5.5 may be chance
    (told,) = (reason for reason in decision.reasons if "have in common" in reason)
    assert "leads 91.0% of the images of other classes to class 3 in the model as it came" in told
    assert f"{led / 10}% in the sanitized one" in told


def test_what_any_picture_does_is_no_doubt() -> None:
    screening = build_screening(wilson(120, 1000), control=110)
    assert decide(POLICY, GOOD, GOOD, screening=screening).verdict is Verdict.ALLOWED


def test_images_with_a_trigger_that_nothing_was_tried_with_change_no_verdict() -> None:
    decision = decide(POLICY, GOOD, GOOD, screening=build_screening(None))
    assert decision.verdict is Verdict.ALLOWED
    assert any("it has a backdoor" in reason for reason in decision.reasons)


def test_a_backdoor_that_comes_back_on_clean_images_leaves_it_undecided() -> None:
    decision = decide(POLICY, GOOD, GOOD, durability=build_durability(clean=600))
    assert decision.verdict is Verdict.UNDECIDED
    (told,) = (reason for reason in decision.reasons if "retuned on clean images" in reason)
    assert "goes from 1.11% to 33.33%; the backdoor comes back" in told
    assert "hidden, not removed" in told


def test_a_backdoor_that_stays_away_changes_no_verdict() -> None:
    decision = decide(POLICY, GOOD, GOOD, durability=build_durability())
    assert decision.verdict is Verdict.ALLOWED
    assert any("does not come back by itself" in reason for reason in decision.reasons)
    assert "comparison" in decision.reasons[-1]


def test_a_rate_that_was_near_the_limit_and_is_over_it_by_chance_is_no_return() -> None:
    durability = build_durability(clean=95)
    (probe,) = durability.probes
    near = probe.model_copy(update={"delivered": wilson(85, 1800)})
    decision = decide(
        POLICY, GOOD, GOOD, durability=durability.model_copy(update={"probes": [near]})
    )
    assert decision.verdict is Verdict.ALLOWED
    assert any("goes from 4.72% to 5.28%; it does not rise" in r for r in decision.reasons)


def test_poisoned_images_that_taught_nothing_tell_nothing() -> None:
    durability = build_durability(poisoned=20, control=10)
    told = decide(POLICY, GOOD, GOOD, durability=durability).reasons[-2]
    assert told.endswith("So few of them taught the copies neither, which tells nothing.")
    one = decide(POLICY, GOOD, GOOD, durability=build_durability(poisoned=20, control=200))
    assert one.reasons[-2].endswith("The old target is not reached far more often than a new one.")


def test_poisoned_images_are_told_beside_the_control_and_change_no_verdict() -> None:
    alike = decide(POLICY, GOOD, GOOD, durability=build_durability())
    (told,) = (reason for reason in alike.reasons if "poisoned for class 1" in reason)
    assert "25 of the images poisoned the trigger leads 16.67% to its target" in told
    assert "15.56% there. The old target is not reached far more often than a new one." in told
    little = decide(POLICY, GOOD, GOOD, durability=build_durability(poisoned=340, control=200))
    assert any("not reached far more often" in reason for reason in little.reasons)

    sooner = decide(POLICY, GOOD, GOOD, durability=build_durability(poisoned=1700))
    assert sooner.verdict is Verdict.ALLOWED
    assert any("a backdoor that is in part left" in reason for reason in sooner.reasons)


def test_what_breaks_the_policy_is_blocked_whatever_comes_back() -> None:
    bad = build_evaluation(7500, [build_probe("grid", 8000, 900)])
    for clean in (30, 600):
        decision = decide(POLICY, GOOD, bad, durability=build_durability(clean=clean))
        assert decision.verdict is Verdict.BLOCKED


def test_without_a_trigger_only_the_accuracy_of_a_retuning_is_told() -> None:
    without = build_evaluation(7500, [])
    decision = decide(POLICY, without, without, durability=build_durability(probes=()))
    assert decision.verdict is Verdict.UNDECIDED
    assert "takes clean accuracy from 75.00% to 75.50%" in decision.reasons[-2]
    assert "whether a backdoor comes back is not known" in decision.reasons[-1]


def test_a_search_and_a_retuning_are_both_told() -> None:
    decision = decide(POLICY, GOOD, GOOD, build_inspections(), build_durability(clean=600))
    assert decision.verdict is Verdict.UNDECIDED
    assert any("Triggers were searched for" in reason for reason in decision.reasons)
    assert any("comes back" in reason for reason in decision.reasons)


def test_it_is_said_how_well_such_a_search_did_on_models_of_known_make() -> None:
    (found, backdoored), (accused, clean) = FOUND_IN_TRIAL, ACCUSED_IN_TRIAL
    for after in ((), (3,)):
        decision = decide(POLICY, GOOD, GOOD, build_inspections(after=after))
        (told,) = (reason for reason in decision.reasons if "Tried on small models" in reason)
        assert f"in {found} of {backdoored} with a backdoor" in told
        assert f"in {accused} of {clean} without" in told


def build_misleading(kind: str, before: int, after: int, target: int = 3) -> MisleadingTrigger:
    rates = {"before": wilson(before, 200), "after": wilson(after, 200)}
    return MisleadingTrigger(kind=kind, target_class=target, **rates)


def test_what_the_model_fell_for_speaks_for_a_backdoor_and_what_is_left_of_it_for_doubt() -> None:
    gone = [build_misleading("patch", 190, 5), build_misleading("warp", 150, 140, target=2)]
    decision = decide(POLICY, GOOD, GOOD, misleading=gone)
    assert decision.verdict is Verdict.ALLOWED
    (told,) = (reason for reason in decision.reasons if "speaks for a backdoor" in reason)
    assert "A patch that was searched for leads 95.0% of the images of other classes" in told
    assert "to class 3 in the model as it came" in told
    assert "2.5% in the sanitized one" in told

    # All that still leads is told, not the strongest alone.
    left = decide(
        POLICY,
        GOOD,
        GOOD,
        misleading=[build_misleading("veil", 198, 4), build_misleading("patch", 190, 95)],
    )
    assert left.verdict is Verdict.UNDECIDED
    both = [reason for reason in left.reasons if "speaks for a backdoor" in reason]
    assert [reason.endswith("it still leads there.") for reason in both] == [False, True]


def test_of_few_images_or_of_a_kind_that_nobody_calibrated_nothing_is_told() -> None:
    of_few = {"before": wilson(50, 50), "after": wilson(50, 50)}
    patch = MisleadingTrigger(kind="patch", target_class=3, **of_few)
    for found, classes, why in (
        ([patch], 10, "and there were 50"),
        # A grating of more images, to a class of which there are fewer, tells no more.
        ([patch, build_misleading("grating", 190, 3)], 10, "and there were 50"),
        ([], 10, "and there were 0"),
        (
            [build_misleading("patch", 200, 200).model_copy(update={"speaks_from": None})],
            4,
            "fewer than 5 classes",
        ),
    ):
        decision = decide(POLICY, GOOD, GOOD, misleading=found, num_classes=classes)
        assert decision.verdict is Verdict.ALLOWED
        (told,) = (reason for reason in decision.reasons if "searched for gratings" in reason)
        assert "What that says of a backdoor is not known" in told
        assert why in told
        assert "falls for none" not in told


@pytest.mark.parametrize("kind", ["veil", "patch", "warp"])
def test_of_few_classes_no_rate_speaks_for_a_backdoor(kind: str) -> None:
    for size in ((8, 8), (32, 32), (224, 224)):
        assert speaks_from(kind, 0.0, size, 4) is None
        assert speaks_from(kind, 0.0, size, 5) is not None


def test_of_two_classes_it_is_said_that_none_can_stand_out() -> None:
    reasons = decide(POLICY, GOOD, GOOD, build_inspections(num_classes=2)).reasons
    assert any("in a model of two classes this search finds no backdoor" in r for r in reasons)
    assert not any("no class stands out" in reason for reason in reasons)


def test_of_several_triggers_to_a_class_the_strongest_is_told() -> None:
    found = [
        build_misleading("patch", 185, 5),
        build_misleading("veil", 196, 6),
        build_misleading("patch", 190, 7, target=1),
    ]
    reasons = decide(POLICY, GOOD, GOOD, misleading=found).reasons
    told = [reason for reason in reasons if "speaks for a backdoor" in reason]
    assert [reason[:6] for reason in told] == ["A veil", "A patc"]


def test_falling_for_as_much_as_clean_models_do_is_no_proof_of_anything() -> None:
    rate = round(200 * TELLING_RATES["patch"]) - 1
    decision = decide(POLICY, GOOD, GOOD, misleading=[build_misleading("patch", rate, rate)])
    assert decision.verdict is Verdict.ALLOWED
    (told,) = (reason for reason in decision.reasons if "searched for gratings" in reason)
    assert "That is no proof." in told
    (found_in_trial, backdoored), (accused, clean) = TELLING_IN_TRIAL, FALSELY_TELLING_IN_TRIAL
    assert f"of {found_in_trial} of {backdoored} with a backdoor" in told
    assert f"of {accused} of {clean} without" in told
    (more, larger), (falsely, others) = TELLING_OF_LARGER, FALSELY_TELLING_OF_LARGER
    assert f"of {more} of {larger} and {falsely} of {others} where they had 20" in told


@pytest.mark.parametrize(
    ("size", "classes", "larger"),
    [((8, 8), 10, False), ((16, 300), 10, True), ((64, 64), 43, True), ((20, 20), 5, False)]
    + [((224, 224), 1000, False)],
)
def test_of_larger_images_and_many_classes_less_speaks_for_a_backdoor(
    size: tuple[int, int], classes: int, larger: bool
) -> None:
    limits = LARGER["warp"]
    for others, expected in (
        (0.0, limits.least),  # no less, however little others lead
        (0.2, 0.2 + limits.over_others),
        (0.9, limits.clearly),  # no more, however much they do
    ):
        assert speaks_from("warp", others, size, classes) == pytest.approx(
            expected if larger else TELLING_RATES["warp"]
        )


def test_gratings_lead_clean_models_as_far_as_any() -> None:
    assert speaks_from("grating", 0.0, (20, 20), 10) is None
    assert speaks_from("grating", 0.0, (8, 8), 10) is None
    of_all = wilson(200, 200)
    found = MisleadingTrigger(
        kind="grating", target_class=3, before=of_all, after=of_all, speaks_from=None
    )
    assert not found.tells


def test_what_others_lead_to_is_of_the_same_kind_and_another_class() -> None:
    rates = [("warp", 1, 0.5), ("warp", 2, 0.4), ("warp", 3, 0.3), ("patch", 2, 0.9)]
    assert highest_of_others(rates, "warp", 1) == 0.4
    assert highest_of_others(rates, "warp", 3) == 0.5
    assert highest_of_others(rates, "patch", 2) is None
    # Nobody knows of others: nothing less than what always speaks for a backdoor does.
    assert speaks_from("patch", None, (20, 20), 10) == LARGER["patch"].clearly


def test_what_was_found_counts_from_the_rate_that_it_came_with() -> None:
    rate = wilson(100, 200)
    for limit, told in ((0.5, True), (0.51, False), (None, False)):
        found = MisleadingTrigger(
            kind="patch", target_class=3, before=rate, after=rate, speaks_from=limit
        )
        assert found.tells is found.still_leads is told


def test_older_reports_have_the_rates_of_their_time() -> None:
    rate = wilson(200, 200).model_dump()
    for kind, limit in RATES_OF_OLDER_REPORTS.items():
        report = {"kind": kind, "target_class": 3, "before": rate, "after": rate}
        found = MisleadingTrigger.model_validate(report)
        assert found.speaks_from == limit
        assert found.tells
        # What a report says itself is kept, that it never does included.
        never = found.model_copy(update={"speaks_from": None}).model_dump_json()
        assert MisleadingTrigger.model_validate_json(never).speaks_from is None


def test_what_breaks_the_policy_is_blocked_whatever_the_model_fell_for() -> None:
    bad = build_evaluation(7500, [build_probe("grid", 8000, 900)])
    for found in ([], [build_misleading("patch", 190, 185)]):
        assert decide(POLICY, GOOD, bad, misleading=found).verdict is Verdict.BLOCKED
