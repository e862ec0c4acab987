"""Open files of this process: an open stream takes one, and without one nobody is let in."""

import resource

#: more than this is never needed, and some systems offer a billion
MOST = 65_536
#: kept for requests, the database, providers and files
KEPT = 200


def raise_open_files() -> int:
    """Allow this process as many open files as it may have; how many those are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = allowed(hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return allowed(soft)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def open_files() -> int:
    """How many files a server that starts here may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(allowed(soft), allowed(hard))


def room_for_streams() -> int:
    """How many streams may be open, so that there is a file left for every other request."""
    files = allowed(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    return max(files - KEPT, files // 2)


def room_for_connections(files: int | None = None) -> int:
    """How many may be connected at once, with or without a stream, so that the database and providers have files."""
    files = files or allowed(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    return max(files - KEPT // 2, files * 3 // 4)


def allowed(limit: int) -> int:
    return MOST if limit == resource.RLIM_INFINITY else min(limit, MOST)
