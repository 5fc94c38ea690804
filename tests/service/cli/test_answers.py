import pytest
from pydantic import BaseModel

from service.cli import answers
from service.datasets.schemas import DatasetOut
from service.db.tables import JobStatus
from service.jobs import schemas as jobs
from service.keys.schemas import KeyCreated
from service.models.schemas import ModelOut


@pytest.mark.parametrize(
    ("answer", "schema"),
    [
        (answers.ModelAnswer, ModelOut),
        (answers.DatasetAnswer, DatasetOut),
        (answers.ProbeFigures, jobs.ProbeFigures),
        (answers.Figures, jobs.Figures),
        (answers.JobSummary, jobs.JobSummary),
        (answers.JobError, jobs.JobError),
        (answers.JobAnswer, jobs.JobDetail),
        (answers.JobCheck, jobs.JobCheck),
        (answers.JobEstimate, jobs.JobEstimate),
        (answers.JobValidation, jobs.JobValidation),
        (answers.JobEvent, jobs.JobEventOut),
        (answers.ArtifactAnswer, jobs.ArtifactOut),
        (answers.KeyAnswer, KeyCreated),
        (answers.ListAnswer, jobs.JobList),
    ],
)
def test_the_command_reads_only_fields_that_the_api_sends(
    answer: type[BaseModel], schema: type[BaseModel]
) -> None:
    assert set(answer.model_fields) <= set(schema.model_fields)


def test_every_kind_of_answer_is_compared() -> None:
    compared = {
        mark.args[1][i][0]
        for mark in [
            m
            for m in test_the_command_reads_only_fields_that_the_api_sends.pytestmark  # type: ignore[attr-defined]  # pytest's own
            if m.name == "parametrize"
        ]
        for i in range(len(mark.args[1]))
    }
    assert compared == set(answers.Answer.__subclasses__())


def test_the_final_states_are_those_of_the_service() -> None:
    assert {s for s in JobStatus if s.is_terminal} == answers.TERMINAL_STATES


def test_an_answer_keeps_its_document_as_it_came() -> None:
    document = {"name": "x", "asr": 0.5, "ra": 0.5, "new": 1}
    assert answers.ProbeFigures.read(document).document is document
