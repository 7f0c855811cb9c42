"""What all sections of the configuration share."""

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, numbers are finite, values cannot change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Python takes true for 1; whoever writes `num_rounds: true` meant something else."""
        if isinstance(value, bool) and info.field_name is not None:
            hint = cls.model_fields[info.field_name].annotation
            kinds = {hint, *get_args(hint)}
            if bool not in kinds and kinds & {int, float}:
                return str(value).lower()  # a text that is no number: the error shows it
        return value
