"""Between the symbols of a model and the texts that its servers take."""

from collections.abc import Mapping, Sequence

from rill.gateway.api.fields import shown
from rill.gateway.errors import ApiError
from rill.vocabulary import UNKNOWN, UnknownCharacterError, Vocabulary


def text_of(name: str, ids: Sequence[int], vocabulary: Vocabulary, field: str) -> str:
    """Return the text that a server reads as these ids. Raises ApiError."""
    symbols = vocabulary.symbols
    for at, one in enumerate(ids):
        if not 0 <= one < len(symbols):
            check_id(f"{name}[{at}] is", one, vocabulary, field)
    unknown = vocabulary.unknown_character
    if unknown is None:
        return vocabulary.decode(ids)
    return "".join(unknown if symbols[one] == UNKNOWN else symbols[one] for one in ids)


def check_id(found: str, one: int, vocabulary: Vocabulary, field: str) -> None:
    """Raise ApiError, which begins with `found`, for what is not the id of a symbol."""
    if not 0 <= one < len(vocabulary):
        last = len(vocabulary) - 1
        raise ApiError(400, f"{found} {shown(one)}; the ids of the model's symbols are 0 to {last}", field)


def ids_of(name: str, text: str, vocabulary: Vocabulary, field: str) -> list[int]:
    """Return the ids of a text's symbols. Raises ApiError for a symbol that the model lacks."""
    try:
        return vocabulary.encode(text)
    except UnknownCharacterError as error:
        raise ApiError(400, f"{name}: {error}", field) from None


def biases_of(biases: Mapping[int, float], vocabulary: Vocabulary) -> dict[str, float]:
    """Return biases by symbol; one of `<unk>`, which is never generated, is left out. Raises ApiError."""
    symbols = vocabulary.symbols
    for one in biases:
        if one >= len(symbols):
            message = f"logit_bias: {one} is not the id of a symbol; those of the model are 0 to {len(symbols) - 1}"
            raise ApiError(400, message, "logit_bias")
    return {symbols[one]: bias for one, bias in biases.items() if symbols[one] != UNKNOWN}
