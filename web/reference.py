"""The description of the interface as a page shows it: every URL in a table of words, made from OpenAPI's."""

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any, NamedTuple

Schema = Mapping[str, Any]
#: where a parameter stands, in words
PLACES = {"path": "in the URL", "query": "in the query", "header": "in a header"}
KINDS = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "null": "null"}
FORMATS = {"uuid": "id", "date-time": "instant", "date": "day"}


class Field(NamedTuple):
    """One thing that is sent or told."""

    name: str
    kind: str
    #: empty for a field of a form
    where: str
    required: bool


class Answer(NamedTuple):
    status: str
    about: str
    kinds: tuple[str, ...]
    #: the form it has; empty for none
    form: str


class Operation(NamedTuple):
    id: str
    method: str
    path: str
    summary: str
    parameters: list[Field]
    body: list[Field]
    answers: list[Answer]
    #: {status: codes}
    refusals: list[Answer]


class Group(NamedTuple):
    """The URLs that begin alike."""

    name: str
    operations: list[Operation]


class Reference(NamedTuple):
    groups: list[Group]
    #: {form: its fields}
    forms: dict[str, list[Field]]


def reference_of(description: Mapping[str, Any]) -> Reference:
    """The whole page."""
    schemas = description["components"]["schemas"]
    found = [
        _operation(path, method, operation, schemas)
        for path, item in description["paths"].items()
        for method, operation in item.items()
    ]
    found.sort(key=lambda one: (_noun(one.path), one.path, one.method))
    groups = [Group(name, list(some)) for name, some in groupby(found, key=lambda one: _noun(one.path))]
    forms = {name: list(_fields(schema)) for name, schema in sorted(schemas.items()) if "properties" in schema}
    return Reference(groups, forms)


def _noun(path: str) -> str:
    return path.split("/")[1] or "home"


def _operation(path: str, method: str, operation: Mapping[str, Any], schemas: Mapping[str, Schema]) -> Operation:
    bodies = list(operation.get("requestBody", {"content": {}})["content"].values())
    schema: Schema = bodies[0]["schema"] if bodies else {}
    parameters = [
        Field(one["name"], kind_of(one["schema"]), PLACES[one["in"]], one["required"])
        for one in operation["parameters"]
    ]
    answers, refusals = list[Answer](), list[Answer]()
    for status, told in operation["responses"].items():
        kinds = tuple(told.get("content", {}))
        form = next((_named(one.get("schema", {})) for one in told.get("content", {}).values()), "")
        (refusals if int(status) >= 400 else answers).append(Answer(status, told["description"], kinds, form))
    return Operation(
        operation["operationId"],
        method.upper(),
        path,
        operation["summary"],
        parameters,
        list(_fields(schemas.get(_named(schema), schema))),
        answers,
        refusals,
    )


def _fields(schema: Schema) -> Iterator[Field]:
    for name, one in schema.get("properties", {}).items():
        yield Field(name, kind_of(one), "", name in schema.get("required", ()))


def _named(schema: Schema) -> str:
    return str(schema.get("$ref", "")).rpartition("/")[2]


def kind_of(schema: Schema) -> str:
    """What a value is, in words."""
    if name := _named(schema):
        return name
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(kind_of, schema["anyOf"])))
    if "enum" in schema or "const" in schema:
        return " · ".join(str(value) or "empty" for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind == "array":
        return f"list of {kind_of(schema['items'])}" if schema.get("items") else "list"
    if kind == "object":
        values = schema.get("additionalProperties")
        return f"names with {kind_of(values)}" if isinstance(values, dict) and values else "object"
    return FORMATS.get(schema.get("format", ""), KINDS.get(str(kind), "anything"))
