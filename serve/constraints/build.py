"""From a pattern to an automaton: the work of the process that compiles constraints (`worker`)."""

from rill.serve.constraints.automaton import Automaton
from rill.serve.constraints.characters import Characters
from rill.serve.constraints.determinize import build_automaton
from rill.serve.constraints.dialect import NoTextError, read_choices, read_regex
from rill.serve.constraints.jobs import Job
from rill.serve.constraints.patterns import ConstraintError

SHOWN = 5  # characters that a model lacks, in a message


def build(job: Job) -> Automaton:
    """Compile a pattern. Raises ConstraintError."""
    pattern, kind = job.pattern, job.pattern.kind
    characters = Characters(job.texts)
    try:
        if kind == "choices":
            language = read_choices(tuple(pattern.value), characters)
        elif kind == "regex":
            language = read_regex(str(pattern.value), characters)
        else:
            raise ConstraintError(kind, "JSON Schema is not supported yet")
    except NoTextError as error:
        needs = list(dict.fromkeys(error.needs))
        more = f" or {len(needs) - SHOWN} others" if len(needs) > SHOWN else ""
        what = " or ".join(needs[:SHOWN]) + more
        raise ConstraintError(kind, f"no text of this model matches: no symbol of the model has {what}") from None
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
