"""JSON decoded in steps, for large files: each step is short, so that other threads get their turn between two.

To decode 20 MB at once holds the interpreter for a third of a second, in whichever thread that is done.
"""

from contextlib import suppress
from functools import cache
from typing import Any, TypeVar, get_args, get_origin

import msgspec

T = TypeVar("T", bound=msgspec.Struct)


#: structs without lists of their own that are decoded in one step
TOGETHER = 100


def decode(data: bytes | msgspec.Raw, struct: type[T], place: str = "$") -> T:
    """The same as `msgspec.json.decode(data, type=struct)`, step by step.

    Raises msgspec.MsgspecError, whose text names the place in the whole.
    """
    outer, lists = _outer(struct)
    try:
        found = msgspec.json.decode(data, type=outer)
    except msgspec.ValidationError as error:
        what, mark, where = str(error).partition(" - at `$")
        if place == "$":
            raise
        raise msgspec.ValidationError(f"{what} - at `{place}{where if mark else '`'}") from error
    values = {name: getattr(found, name) for name in struct.__struct_fields__}
    for name, (encoded, inner) in lists.items():
        values[name] = _decode_all(values[name], inner, f"{place}.{encoded}")
    return struct(**values)


def _decode_all(written: list[msgspec.Raw], struct: type[T], place: str) -> list[T]:
    step = 1 if _outer(struct)[1] else TOGETHER
    done: list[T] = []
    for first in range(0, len(written), step):
        some = written[first : first + step]
        if step > 1:
            with suppress(msgspec.ValidationError):  # one by one tells where it is
                done += msgspec.json.decode(b"[" + b",".join(map(bytes, some)) + b"]", type=list[struct])  # type: ignore[valid-type]
                continue
        done += [decode(one, struct, f"{place}[{first + at}]") for at, one in enumerate(some)]
    return done


@cache
def _outer(struct: type[msgspec.Struct]) -> tuple[Any, dict[str, tuple[str, type[msgspec.Struct]]]]:
    """The struct with its lists of structs left as they are written, and what these lists hold."""
    fields: list[tuple[str, Any, Any]] = []
    lists: dict[str, tuple[str, type[msgspec.Struct]]] = {}
    for field in msgspec.structs.fields(struct):
        kind, inner = field.type, next(iter(get_args(field.type)), None)
        if get_origin(kind) is list and isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            kind, lists[field.name] = list[msgspec.Raw], (field.encode_name, inner)
        known = {"default": field.default, "default_factory": field.default_factory}
        fields.append((field.name, kind, msgspec.field(name=field.encode_name, **known)))
    strict = struct.__struct_config__.forbid_unknown_fields
    return msgspec.defstruct(struct.__name__, fields, forbid_unknown_fields=strict), lists
