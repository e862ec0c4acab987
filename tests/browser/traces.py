"""What a trace of Chromium says of a page. Counts and no times: how long something takes is the machine's affair."""

import json


def styled_elements(trace: bytes) -> list[int]:
    """How many elements each recalculation of styles of a trace visited.

    An event that had begun when the trace began, or was still open when it ended, has no count.
    """
    events = [event for event in json.loads(trace)["traceEvents"] if event["name"] == "UpdateLayoutTree"]
    return [event["args"]["elementCount"] for event in events if "elementCount" in event.get("args", {})]
