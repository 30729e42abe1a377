"""The checkpoint format, from the classes that read and write it."""

import inspect

from pydantic import TypeAdapter

from app.checkpoint.format import Architecture, CalibrationFacts, DatasetFacts, Description, Runtime, Split
from app.checkpoint.thresholds import OperatingPoint
from app.image.policy import Preprocessing
from docs.generate.http import answered
from docs.generate.markdown import paragraphs

PARTS: tuple[type, ...] = (
    *(Description, Architecture, Preprocessing, OperatingPoint, CalibrationFacts, DatasetFacts, Split, Runtime),
)


def checkpoint() -> str:
    """`checkpoint.json`, part by part."""
    sections = []
    for part in PARTS:
        title = "The whole file" if part is Description else part.__name__
        words = "" if part is Description else paragraphs(inspect.cleandoc(part.__doc__ or ""))
        fields = answered(TypeAdapter(part).json_schema()["properties"])
        sections.append(f"### {title} {{ #{part.__name__.lower()} }}\n\n{words}\n\n{fields}")
    return "\n".join(sections)
