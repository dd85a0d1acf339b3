"""When a process that has ended is started again."""

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds before a process is replaced: doubled each time that fails
STEADY_SECONDS = 60.0  # for which a process must serve, or its replacement has failed, too


def pause(failures: int) -> float:
    """Return the seconds to wait, after so many starts in a row that did not last."""
    return min(FIRST_PAUSE * 2.0 ** max(failures - 1, 0), LONGEST_PAUSE)
