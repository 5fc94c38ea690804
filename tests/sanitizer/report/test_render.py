import base64
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from sanitizer.choice import Tried, records_of
from sanitizer.evaluation.metrics import wilson
from sanitizer.report.model import (
    MisleadingTrigger,
    Report,
    StageRecord,
    StageSpeed,
    Verdict,
    WarningRecord,
)
from sanitizer.report.plots import plot_before_after, plot_curves
from sanitizer.report.render import UNEXPECTED_CODES, render_page
from sanitizer.stages.expect import ORDER, PREPARATION
from tests.reports import make_cost

from .builders import build_durability, build_inspections, build_report, build_screening

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_verdict_and_its_reasons_come_first() -> None:
    page = Page(render_page(build_report(), {}))
    assert "Allowed This is about the sanitized file, sanitized-wrn.pth.tar ;" in page.text
    places = [page.text.index(each) for each in ("Allowed", "Every measured trigger", "Figures")]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("verdict", "told"),
    [
        (Verdict.ALLOWED, "It may be used as far as the policy of the request goes"),
        (Verdict.BLOCKED, "Do not use it: it breaks the policy of the request."),
        (Verdict.UNDECIDED, "do not use it before somebody has weighed what follows."),
    ],
    ids=list(Verdict),
)
def test_a_verdict_says_what_to_do_with_which_file(verdict: Verdict, told: str) -> None:
    text = Page(render_page(build_report(verdict=verdict), {})).text
    assert "the sanitized file, sanitized-wrn.pth.tar ; the uploaded one is as it was." in text
    assert told in text


def test_what_would_tell_more_is_said_where_it_was_not_done() -> None:
    without = build_report((), verdict=Verdict.UNDECIDED)
    text = Page(render_page(without, {})).text
    assert "More would be known with triggers to measure ( probes )." in text
    assert "A search for triggers can be asked for ( inspect )." in text
    searched = build_report(verdict=Verdict.UNDECIDED).model_copy(
        update={"inspections": build_inspections()}
    )
    text = Page(render_page(searched, {})).text
    assert "More would be known" not in text
    assert "can be asked for" not in text


def test_classes_are_named_as_the_data_names_them() -> None:
    names = ["plane", "1", "<b>bird</b>", "\N{RIGHT-TO-LEFT OVERRIDE}gnp.exe"]
    report = build_report().model_copy(
        update={"class_names": names, "inspections": build_inspections(before=(3,))}
    )
    page = Page(render_page(report, {}))
    assert "Attack success rate, probe grid, target class 0 ( plane )" in page.text
    assert "are taken for class 0 ( plane ) anyway" in page.text
    assert "2 ( <b>bird</b> ) 71.60%" in page.text  # by class; escaped
    assert "3 ( \N{RIGHT-TO-LEFT OVERRIDE}gnp.exe ) stood out before" in page.text
    named = sum(tag == "bdi" for tag, _ in page.tags)
    assert named == sum(tag == "bdi" for tag, _ in Page(render_page(build_report(), {})).tags) + 9


def test_what_the_run_took_stands_with_what_was_done() -> None:
    speed = StageSpeed(
        stage="teacher",
        images=25_000,
        seconds=10,
        images_per_second=2500,
        macs_per_second=195_000_000_000,
    )
    cost = make_cost(speeds=[speed], threads=2, peak_host_bytes=3 << 30, start_seconds=1.5)
    text = Page(render_page(build_report().model_copy(update={"cost": cost}), {})).text
    assert "at most 3.0 GiB of memory, on 2 threads of AMD EPYC" in text
    assert "Starting the process took 1.5 s" in text
    assert "2,500 195 G" in text


def test_what_a_stage_without_epochs_did_is_told() -> None:
    values = {"pruned_channels": 18.0, "heldout_accuracy": 0.73399, "loss": 0.0123456}
    pruning = StageRecord(stage="prune", seconds=1.5, values=values)
    report = build_report()
    page = render_page(report.model_copy(update={"stages": [*report.stages, pruning]}), {})
    told = " ".join(page.split())
    assert "Prune: pruned channels 18, heldout accuracy 0.734, loss 0.0123." in told
    assert "Prune:" not in render_page(report, {})


def test_memory_on_the_gpu_is_told_where_there_is_one() -> None:
    cost = make_cost(device="cuda", peak_device_bytes=5 << 30)
    text = Page(render_page(build_report().model_copy(update={"cost": cost}), {})).text
    assert "and 5.0 GiB on the GPU, on 2 threads" in text


def test_report_of_a_version_that_measured_no_cost_is_read_and_shown() -> None:
    document = build_report().model_dump(mode="json")
    del document["cost"]
    report = Report.model_validate(document)
    assert report.cost is None
    text = Page(render_page(report, {})).text
    assert "of memory" not in text
    assert "Images a second" not in text


@pytest.mark.parametrize("verdict", list(Verdict))
def test_every_verdict_is_named(verdict: Verdict) -> None:
    assert verdict.value.capitalize() in Page(render_page(build_report(verdict=verdict), {})).text


def test_figures_stand_before_and_after_with_intervals_and_change() -> None:
    text = Page(render_page(build_report(), {})).text
    assert "ACC Clean accuracy 72.67% 71.79% to 73.53% 75.23% 74.37% to 76.07% +2.56 better" in text
    assert "99.92% 99.84% to 99.96% 3.59% 3.22% to 3.99% −96.33 better" in text  # noqa: RUF001  # a minus sign, as the page has it


def test_a_report_of_several_probes_names_each() -> None:
    text = Page(render_page(build_report(("grid", "blend")), {})).text
    assert "probe grid, target class 0" in text
    assert "probe blend, target class 0" in text


def test_a_report_without_probes_says_that_no_trigger_was_measured() -> None:
    text = Page(render_page(build_report(()), {})).text
    assert "No trigger was given, so no attack success rate was measured." in text
    assert "not whether a backdoor was or is there." in text
    assert "Attack success rate" not in text


def test_what_was_not_looked_for_is_said() -> None:
    text = Page(render_page(build_report(), {})).text
    assert "What was not looked for Only the triggers above were measured." in text


@pytest.mark.parametrize("code", [PREPARATION, ORDER])
def test_images_that_the_model_does_not_expect_were_not_looked_at(code: str) -> None:
    assert code in UNEXPECTED_CODES
    warning = WarningRecord(code=code, message="It expects others.")
    text = Page(render_page(build_report(warnings=(warning,)), {})).text
    assert "were not looked at, since the model seems to expect other images" in text
    assert "The clean images are taken on trust" not in text
    assert "The clean images are taken on trust" in Page(render_page(build_report(), {})).text


def test_what_the_model_fell_for_stands_before_and_after() -> None:
    found = [
        MisleadingTrigger(
            kind="patch",
            target_class=3,
            before=wilson(178, 180),
            after=wilson(5, 180),
            speaks_from=0.35,
        ),
        MisleadingTrigger(
            kind="grating",
            target_class=6,
            before=wilson(120, 181),
            after=wilson(60, 181),
            speaks_from=None,
        ),
    ]
    told = Page(render_page(build_report().model_copy(update={"misleading": found}), {})).text
    silent = Page(render_page(build_report(), {})).text

    assert "patch speaks for a backdoor 3 98.89% 96.04% to 99.69% 2.78%" in told
    assert f"to {wilson(5, 180).high:.2%} 35.00%" in told  # from which rate on it speaks
    assert "grating 6 66.30%" in told
    assert told.count("never") == 1
    assert "The share of 181 or fewer evaluation images" in told
    assert told.count("speaks for a backdoor") == 2  # in the caption, too
    assert "Models without a backdoor fall for some, too" in told
    assert "What the model fell for" not in silent
    blind = build_report(()).model_copy(update={"misleading": found})
    told = Page(render_page(blind, {})).text
    assert "was or is there; that is told by what the model fell for, as far as such" in told


def test_hashes_data_settings_and_warnings_are_there() -> None:
    warning = WarningRecord(code="files_ignored", message="3 files were left out.")
    text = Page(render_page(build_report(warnings=(warning,), resumed=2), {})).text
    for expected in (
        "ab" * 32,
        "cd" * 32,
        "2,500 images of 50,000, drawn by class with seed 7. 10 classes, 250 images each.",
        "10,000 images of 10,000, all that were given.",
        "student.cutout_size 3",
        "3 files were left out. files_ignored",
        "taken up again 2 times",
        "epoch, optimizer",
        "torch 2.15.0",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("images", "available", "told"),
    [
        (2488, 2500, "2,488 images of 2,500, all that were given but those with a trigger."),
        (
            2488,
            50_000,
            "2,488 images of 50,000, drawn by class with seed 7; 12 with a trigger were left out "
            "of them.",
        ),
    ],
    ids=["all", "some"],
)
def test_images_that_were_left_out_are_told_with_the_data(
    images: int, available: int, told: str
) -> None:
    report = build_report()
    clean = {"images": images, "images_available": available}
    changes = {
        "screening": build_screening(None),
        "clean_data": report.clean_data.model_copy(update=clean),
    }
    text = Page(render_page(report.model_copy(update=changes), {})).text
    assert f"{told} 10 classes, 250 images each." in text
    assert "10,000 images of 10,000, all that were given. 10 classes" in text


def test_images_that_were_left_out_of_those_held_out_are_told() -> None:
    report = build_report()
    clean = {"images": 1988, "images_available": 2500}
    held = {"images": 497, "images_available": 2500, "source": "held_out"}
    changes = {
        "screening": build_screening(None).model_copy(update={"held_out": 3}),
        "clean_data": report.clean_data.model_copy(update=clean),
        "evaluation_data": report.evaluation_data.model_copy(update=held),
    }
    text = Page(render_page(report.model_copy(update=changes), {})).text
    assert "1,988 images of 2,500, all that were given but those with a trigger and those" in text
    assert "kept apart and not trained on. 3 with a trigger were left out of it. 10 cl" in text
    del changes["screening"]
    without = Page(render_page(report.model_copy(update=changes), {})).text
    assert "1,988 images of 2,500, drawn by class" in without
    changes["clean_data"] = report.clean_data.model_copy(update={**clean, "images": 2003})
    without = Page(render_page(report.model_copy(update=changes), {})).text
    assert "2,003 images of 2,500, all that were given but those held out." in without
    assert "kept apart and not trained on. 10 classes" in without


def test_pictures_are_embedded_and_described() -> None:
    png = plot_before_after(build_report())
    (image,) = Page(render_page(build_report(), {"before_after.png": png})).all("img")
    source = image["src"] or ""
    assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == png
    assert (image["alt"] or "").startswith("Bar chart")


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    page = Page(render_page(build_report(), {"a.png": plot_before_after(build_report())}))
    assert not page.all("script")
    assert not page.all("link")
    assert all((i["src"] or "").startswith("data:") for i in page.all("img"))
    assert any("default-src 'none'" in (m.get("content") or "") for m in page.all("meta"))


def test_what_came_from_outside_is_escaped() -> None:
    evil = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'
    html = render_page(
        build_report(filename=evil, warnings=(WarningRecord(code="x", message=evil),)),
        {evil: plot_before_after(build_report())},
    )
    page = Page(html)
    assert not page.all("script")
    assert [i["src"] for i in page.all("img") if i["src"] == "x"] == []
    assert "alert(1)" in page.text


def test_what_stands_between_backticks_is_code_and_escaped() -> None:
    warning = WarningRecord(code="x", message="Set `screen` to <b>`false & none`</b>.")
    html = render_page(build_report(warnings=(warning,)), {})
    told = "Set <code>screen</code> to &lt;b&gt;<code>false &amp; none</code>&lt;/b&gt;."
    assert told in html


def test_headings_and_tables_are_marked_up_for_screen_readers() -> None:
    page = Page(render_page(build_report(), {}))
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1
    assert all("scope" in header for header in page.all("th"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids


def test_reports_are_made_without_a_look_at_attacks() -> None:
    code = (
        "import sys, sanitizer.report.plots, sanitizer.report.render\n"
        "assert not [m for m in sys.modules if m.startswith(('sanitizer.attacks', 'torch'))]\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_search_is_told_class_by_class_with_what_became_of_its_findings() -> None:
    report = build_report().model_copy(update={"inspections": build_inspections(before=(3,))})
    page = Page(render_page(report, {}))
    assert "Search for triggers" in page.text
    assert "3 stood out before" in page.text
    assert "stands out after" not in page.text
    assert "98.00%" in page.text  # before
    assert "3.00%" in page.text  # the same change on the sanitized model
    assert "That it finds nothing is no proof" in page.text
    assert "No trigger was searched for" not in page.text
    assert "For each class the smallest patch" in page.text
    assert "alone says nothing" in page.text
    many = report.model_copy(update={"inspections": build_inspections(num_classes=100)})
    assert "For each of 10 of 100 classes the smallest patch" in Page(render_page(many, {})).text


def test_a_report_without_a_search_says_that_none_was_made() -> None:
    page = Page(render_page(build_report(), {}))
    assert "Search for triggers" not in page.text
    assert "No trigger was searched for" in page.text


def test_what_came_back_is_told_trigger_by_trigger_beside_its_control() -> None:
    durability = build_durability(clean=600, probes=("grid", "corner"))
    report = build_report().model_copy(update={"durability": durability})
    text = Page(render_page(report, {})).text
    assert "clean accuracy is 75.50% instead of 75.00%" in text
    assert "grid its target, class 0 1.11%" in text
    assert "33.33%" in text
    assert "corner control, class 1 0.56%" in text
    assert "25 poisoned" in text
    assert "but for copies that were retuned and thrown away" in text
    assert "was not tried (the request can ask for it with durability" not in text


def test_without_a_trigger_the_page_says_that_no_return_was_measured() -> None:
    report = build_report(()).model_copy(update={"durability": build_durability(probes=())})
    text = Page(render_page(report, {})).text
    assert "No trigger was given, so whether a backdoor comes back was not measured" in text
    assert "thrown away" not in text


def test_a_report_without_retuning_says_that_none_was_made() -> None:
    text = Page(render_page(build_report(), {})).text
    assert "Trained further" not in text
    assert "ask for it with durability" in text


def test_every_method_that_was_tried_is_told_with_why_it_was_kept_or_not() -> None:
    tried = [
        Tried("argd", right=[True] * 200 + [False] * 50, residual=0.3, images=225, target=3),
        Tried("ft_sam", right=[True] * 210 + [False] * 40, residual=0.02, images=225, target=1),
        Tried("fst", left_out="It would have taken about 90 s more; of 60 s 12 were left."),
    ]
    report = build_report().model_copy(update={"tries": records_of(tried)})
    page = Page(render_page(report, {"curves.png": plot_curves(report)}))
    assert "Methods that were tried" in page.text
    assert "method argd, which kept ft_sam" in page.text
    assert (
        "During training Of all methods that were tried, one after another; ft_sam was kept."
        in (page.text)
    )
    assert "argd dropped 80.00%" in page.text
    assert "ft_sam kept 84.00%" in page.text
    assert "fst left out none none none It would have taken about 90 s more" in page.text
    assert "Methods that were tried" not in Page(render_page(build_report(), {})).text


def test_a_search_for_the_choice_of_a_method_is_told_as_one() -> None:
    tried = [Tried("argd", right=[True] * 250, residual=0.0, images=225, target=3)]
    report = build_report().model_copy(update={"tries": records_of(tried)})
    text = Page(render_page(report, {})).text
    assert "The model as it came was searched to choose a method; the sanitized one was not" in text
    assert "No trigger was searched for" not in text
    both = report.model_copy(update={"inspections": build_inspections()})
    assert "searched to choose a method" not in Page(render_page(both, {})).text


@pytest.mark.parametrize(
    ("anomaly", "told"),
    [(1.26, "1.3"), (-0.04, "0.0"), (-0.06, "\N{MINUS SIGN}0.1"), (0.0, "0.0")],
    ids=str,
)
def test_an_anomaly_has_a_sign_where_it_is_one(anomaly: float, told: str) -> None:
    inspections = build_inspections()
    (first, *others) = inspections.before.classes
    changed = first.model_copy(
        update={"changes": [first.changes[0].model_copy(update={"anomaly": anomaly})]}
    )
    before = inspections.before.model_copy(update={"classes": [changed, *others]})
    searched = inspections.model_copy(update={"before": before})
    report = build_report().model_copy(update={"inspections": searched})
    assert f"patch: 6.67%, anomaly {told} 6.67%" in Page(render_page(report, {})).text
