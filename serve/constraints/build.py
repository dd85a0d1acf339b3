"""From a pattern to an automaton: the work of the process that compiles constraints (`worker`)."""

from rill.serve.constraints.automaton import Automaton
from rill.serve.constraints.characters import Characters
from rill.serve.constraints.determinize import build_automaton
from rill.serve.constraints.dialect import DialectError, read_choices, read_regex
from rill.serve.constraints.jobs import Job
from rill.serve.constraints.json_schema import read_schema
from rill.serve.constraints.language import Language
from rill.serve.constraints.patterns import ConstraintError, Pattern

SHOWN = 5  # characters that a model lacks, in a message


def build(job: Job) -> Automaton:
    """Compile a pattern. Raises ConstraintError."""
    kind, characters = job.pattern.kind, Characters(job.texts)
    language = _read(job.pattern, characters)
    if language.needs:
        needs = list(dict.fromkeys(language.needs))
        others = f" or {len(needs) - SHOWN} others" if len(needs) > SHOWN else ""
        raise ConstraintError(
            kind, f"no text of this model matches: no symbol of the model has {' or '.join(needs[:SHOWN])}{others}"
        )
    automaton = build_automaton(language, characters, job.texts, job.terminators)
    if automaton is None:
        raise ConstraintError(kind, "no text of this model matches: its symbols do not add up to one that does")
    if automaton.states > job.max_states:
        raise ConstraintError(kind, f"it has {automaton.states:,} states; at most {job.max_states:,} are allowed")
    if automaton.transitions.size > job.max_entries:
        raise ConstraintError(
            kind,
            f"it has {automaton.states:,} states, each with {automaton.symbols:,} symbols of the model; at most "
            f"{job.max_entries:,} entries are allowed",
        )
    return automaton


def _read(pattern: Pattern, characters: Characters) -> Language:
    if not isinstance(pattern.value, str):
        return read_choices(pattern.value, characters)
    if pattern.kind == "json_schema":
        return read_schema(pattern.value, characters)
    try:
        return read_regex(pattern.value, characters)
    except DialectError as error:
        raise ConstraintError("regex", f"the regex {error}") from None
