"""What the operating system lets a process have."""

import resource

MOST_FILES = 1 << 16
"""The most open files that we ask for; some systems set no limit."""


def allow_open_files() -> int:
    """Raise the soft limit of open files, often 1,024, to the hard one: a stream of text keeps a file open per source.

    Returns:
        How many files this process, and those that it starts, may have open.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):  # macOS allows fewer than its hard limit says
            return soft
        return wanted
    return soft
