"""The time of a run under --max-minutes: when to evaluate, and when to stop training so that the end still fits."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVALUATIONS = 20  # over a run, where they are cheap enough
EVALUATING = 0.1  # of the time, at most, for all evaluations with the last one
ONE_EVALUATION = 0.01  # of the time: a slow model is measured on less text
FINAL = 0.05  # of the time, for measuring the whole held-out part at the end
STEPS_BETWEEN = 5  # evaluations, at least
TOLERANCE, TOLERANCE_SECONDS = 0.1, 4.0  # of the time, and seconds, that a run may end later; one second is a margin
MAX_RESERVE = 0.4  # of the time that is left once the program is loaded
SMOOTHED_SECONDS = 0.5
MAX_STRETCH = 10.0

# Seconds of one processor core.
CURVES = 1.0
EXIT = 0.4
SAMPLED_CHARACTER = 1e-3


class TimeLimit:
    """The time limit of a run, which is to end `minutes` after its process was started, everything included.

    The process was started `elapsed` seconds ago; earlier processes have trained for `spent` seconds. What the end will
    take is estimated from what its parts took before, and from how much of a processor core this process gets, the
    ratio of `cpu_clock` to `clock`.
    """

    def __init__(
        self,
        minutes: float,
        elapsed: float = 0.0,
        spent: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._clock, self._cpu_clock, self._spent = clock, cpu_clock, spent
        self.seconds = minutes * 60
        self._loaded = self._evaluated = clock()
        self._end = self._loaded - elapsed - spent + self.seconds
        self._latest = self._end + TOLERANCE * self.seconds + TOLERANCE_SECONDS
        self._step, self._stretch = 0.0, 1.0  # of late: seconds of a step, and seconds per second of a core
        self._steps: list[tuple[float, float]] = []  # the latest ones: seconds, and seconds of a core
        self._evaluation = 0.0  # seconds that the last one took
        self._evaluating = 0.0  # seconds of all evaluations
        self._sampling = 0.0  # seconds that the last samples took, or will take
        self._whole_pass = 0.0  # seconds that measuring the whole held-out part would take

    def begin(self, measured: float, sampled_characters: int) -> None:
        """Begin to train: evaluations measure this share of the held-out part, and samples have so many characters."""
        self._loaded = self._evaluated = self._clock()
        self._evaluation = measured * self._whole_pass
        self._sampling = sampled_characters * SAMPLED_CHARACTER

    @property
    def done(self) -> float:
        """The share of the training that is done; 1 or more if another step would end too late."""
        now, end = self._clock(), self._end_of_training()
        begin = self._loaded - self._spent
        share = (now - begin) / max(end - begin, 1e-9)
        return share if now + self._step / 2 < end else max(share, 1.0)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Wrap a step of training."""
        began, cpu_began = self._clock(), self._cpu_clock()
        yield
        self._steps.append((self._clock() - began, self._cpu_clock() - cpu_began))
        seconds, cpu_seconds = map(sum, zip(*self._steps, strict=True))
        if seconds >= SMOOTHED_SECONDS:
            self._step = seconds / len(self._steps)
            self._stretch = min(max(seconds / max(cpu_seconds, 1e-9), 1.0), MAX_STRETCH)
            self._steps.clear()

    def evaluation_is_due(self, steps: int) -> bool:
        """Whether to evaluate, so many steps after the last evaluation."""
        now = self._clock()
        interval = (self._end_of_training() - self._loaded + self._spent) / EVALUATIONS
        if steps < STEPS_BETWEEN or now - self._evaluated < interval:
            return False
        allowed = EVALUATING - self._last_evaluation() / self.seconds
        return self._evaluating + self._evaluation <= allowed * (now - self._loaded)

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Wrap an evaluation, with all that is written and sampled."""
        began = self._clock()
        yield
        self._evaluated = self._clock()
        self._evaluation = self._evaluated - began
        self._evaluating += self._evaluation

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Wrap the making of samples."""
        began = self._clock()
        yield
        self._sampling = self._clock() - began

    def measured(self, seconds: float, share: float) -> None:
        """Note that it took `seconds` to measure this share of the held-out part."""
        self._whole_pass = seconds / share

    @property
    def affordable(self) -> float:
        """The share of the held-out part that an evaluation may measure; may be above 1."""
        return ONE_EVALUATION * self.seconds / max(self._whole_pass, 1e-9)

    @property
    def whole_pass_fits(self) -> bool:
        """Whether the whole held-out part can be measured at the end."""
        return self._whole_pass <= FINAL * self.seconds

    def end_of_measuring(self, seconds: float = math.inf) -> Callable[[], bool]:
        """A function that says whether to stop measuring: `seconds` from now, or when the rest would not fit."""
        until = min(self._clock() + seconds, (self._end + self._latest) / 2)
        return lambda: self._clock() > min(until, self._latest - self._sampling - self._closing())

    def end_of_first(self) -> Callable[[], bool]:
        """The same for the first measurement, which takes no longer than one should."""
        return self.end_of_measuring(ONE_EVALUATION * self.seconds)

    def end_of_whole_pass(self) -> Callable[[], bool]:
        """The same for measuring the whole held-out part: with all evaluations it takes a tenth of the time."""
        return self.end_of_measuring(EVALUATING * self.seconds - self._evaluating)

    def sampling_is_over(self) -> bool:
        """Whether making samples has to stop."""
        return self._clock() > self._latest - self._closing()

    @property
    def curves_fit(self) -> bool:
        """Whether there is time to draw the curves."""
        return self._clock() <= self._latest - self._closing()

    def _closing(self) -> float:
        """Seconds for the curves and the end of the process."""
        return (CURVES + EXIT) * self._stretch

    def _last_evaluation(self) -> float:
        return self._evaluation + (self._whole_pass if self.whole_pass_fits else 0.0)

    def _end_of_training(self) -> float:
        reserve = self._last_evaluation() + self._sampling + self._closing()
        return self._end - min(reserve, MAX_RESERVE * max(self._end - self._loaded, 0.0))
