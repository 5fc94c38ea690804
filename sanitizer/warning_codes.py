"""What a run can warn of, by names that programs may branch on. Torch-free."""

from enum import StrEnum
from typing import Self


class WarningCode(StrEnum):
    """The code of a warning. A name keeps its meaning; later versions may add some.

    Attributes:
        meaning: What was seen, in a sentence.
    """

    meaning: str

    def __new__(cls, code: str, meaning: str) -> Self:
        made = str.__new__(cls, code)
        made._value_ = code
        made.meaning = meaning
        return made

    # --- The files
    FILES_IGNORED = (
        "files_ignored",
        "Files that are no images in a class folder were left out.",
    )
    IMAGES_RESIZED = "images_resized", "Images were resized to the model's input."
    STEM_ASSUMED = (
        "stem_assumed",
        "The weights do not say what stem the network has; one was assumed.",
    )
    DATA_OVERLAP = (
        "data_overlap",
        "Evaluation images are among those trained on: their share of the accuracy says nothing "
        "about new images.",
    )

    # --- Whether model and images fit; each keeps the verdict from `allowed`
    PREPARATION_SUSPECTED = (
        "preparation_suspected",
        "The model does far better with another mean and std, which the message names. The "
        "verdict is not `allowed`, and images are not screened.",
    )
    CLASS_ORDER_SUSPECTED = (
        "class_order_suspected",
        "The model does far better with its classes in another order, which the message names. "
        "The verdict is not `allowed`, and images are not screened.",
    )
    SUSPECT_NEAR_CHANCE = (
        "suspect_near_chance",
        "The model as it came is hardly better than one answer for all images. The verdict is not "
        "`allowed`.",
    )

    # --- What was done otherwise than asked for
    TRIGGERED_IMAGES = (
        "triggered_images",
        "Clean images carry a trigger, and were left out.",
    )
    AUGMENTATION_FITTED = (
        "augmentation_fitted",
        "The model does not bear mirrored images or crops as large as asked for; it was trained "
        "with less.",
    )
    AUGMENTATION_NOT_BORNE = (
        "augmentation_not_borne",
        "The model does not bear mirrored images or crops as large as asked for, and was trained "
        "with them all the same, as the request says: its accuracy may suffer.",
    )
    BACKED_OFF = (
        "backed_off",
        "The training lost what the network knew, and was begun again at lower learning rates. "
        "More of a backdoor may be left.",
    )
    RETUNING_DIVERGED = (
        "retuning_diverged",
        "Durability cannot be told: a copy of the sanitized model diverged.",
    )
    RETUNING_LEFT_OUT = (
        "retuning_left_out",
        "Durability cannot be told: there are not enough images.",
    )

    # --- How the run went
    RESUMED = "resumed", "The run was interrupted, and went on from its last checkpoint."
    CHECKPOINT_DAMAGED = (
        "checkpoint_damaged",
        "The checkpoint of an interrupted run is of no use; the run started over.",
    )
    STORY_TOO_LONG = (
        "story_too_long",
        "The run tells more than is kept of one: from there on its figures are left out. Of "
        "events alone.",
    )
