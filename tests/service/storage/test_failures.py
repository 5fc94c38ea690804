"""Errors that only Amazon's own server gives, in the words it gives them."""

from obstore.exceptions import GenericError, PermissionDeniedError

from service.storage import AccessRefused, StorageError
from service.storage.failures import named

PUT = "Generic S3 error: Error performing PUT https://b.s3.amazonaws.com/k in 9ms"


def _answer(status: str, document: str) -> str:
    return (
        f"{PUT} - Server returned non-2xx status code: {status}: "
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{document}</Error>\n\n'
        f"Debug source:\nGeneric {{ {document} }}"
    )


def test_token_that_has_run_out_is_a_refusal_that_does_not_repeat_it() -> None:
    document = (
        "<Code>ExpiredToken</Code><Message>The provided token has expired.</Message>"
        "<Token-0>IQoJsecret</Token-0>"
    )
    error = named(GenericError(_answer("400 Bad Request", document)), "k", "b")
    assert isinstance(error, AccessRefused)
    assert error.reason == "ExpiredToken The provided token has expired."
    assert error.__cause__ is None


def test_wrong_signature_is_a_refusal_without_what_was_signed() -> None:
    document = (
        "<Code>SignatureDoesNotMatch</Code><Message>Check your key.</Message>"
        "<CanonicalRequest>PUT x-amz-security-token:IQoJsecret</CanonicalRequest>"
    )
    error = named(PermissionDeniedError(_answer("403 Forbidden", document)), "k", "b")
    assert isinstance(error, AccessRefused)
    assert "IQoJsecret" not in str(error)
    assert error.__cause__ is None


def test_refusal_without_a_document_is_one_too() -> None:
    text = "The operation lacked privileges: Server returned non-2xx status code: 403 Forbidden: "
    error = named(PermissionDeniedError(text), "k", "b")
    assert isinstance(error, AccessRefused)
    assert "403 Forbidden" in error.reason


def test_bucket_in_another_region_is_told_in_the_words_of_s3() -> None:
    document = (
        "<Code>AuthorizationHeaderMalformed</Code>"
        "<Message>the region 'us-east-1' is wrong; expecting 'eu-west-1'</Message>"
        "<Region>eu-west-1</Region>"
    )
    error = named(GenericError(_answer("400 Bad Request", document)), "k", "b")
    assert type(error) is StorageError
    assert str(error) == (
        "the store failed on k: AuthorizationHeaderMalformed the region 'us-east-1' is wrong; "
        "expecting 'eu-west-1'"
    )


def test_error_without_an_answer_keeps_its_cause() -> None:
    cause = GenericError(f"{PUT} - HTTP error: error sending request\n\nDebug source:\nGeneric")
    error = named(cause, "k", "b")
    assert str(error) == f"the store failed on k: {PUT} - HTTP error: error sending request"
    assert error.__cause__ is cause
