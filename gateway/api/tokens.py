"""`/tokenize`, `/detokenize` and `/tokenizer_info`, as vLLM has them: a text's symbols by their ids, and back."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from rill.gateway.api.fields import Fields, fields_of, shown, whole
from rill.gateway.api.prompts import check_ids, ids_of, special_id, text_of
from rill.gateway.errors import ApiError
from rill.gateway.served_models import ServedModel
from rill.gateway.servers import Servers
from rill.vocabulary import UNKNOWN


async def tokenize(request: Request) -> JSONResponse:
    """Return the ids of a text's symbols.

    A text that is nothing but the name of a start or end symbol has its id: clients look up these ids like that.
    """
    fields = await fields_of(request)
    name, shows_symbols = fields.text("model"), fields.flag("return_token_strs")
    if "prompt" not in fields:
        fields.fail("prompt", "prompt is missing: a text to cut into symbols")
    text = fields.text("prompt")
    fields.ignore("add_special_tokens")  # servers add them
    fields.refuse_others()
    vocabulary = (await _model(request, name)).vocabulary
    special = special_id(text, vocabulary)
    ids = await ids_of("prompt", text, vocabulary, "prompt") if special is None else [special]
    symbols = [vocabulary.symbols[one] for one in ids] if shows_symbols else None
    return JSONResponse({"count": len(ids), "max_model_len": None, "tokens": ids, "token_strs": symbols})


async def detokenize(request: Request) -> JSONResponse:
    """Return the text that is read as these symbols; start and end symbols have none."""
    fields = await fields_of(request)
    name, ids = fields.text("model"), _ids(fields)
    fields.ignore("skip_special_tokens")
    fields.refuse_others()
    vocabulary = (await _model(request, name)).vocabulary
    if not all(type(one) is int for one in ids):
        ids = [whole(f"tokens[{at}]", one, 0, len(vocabulary) - 1) for at, one in enumerate(ids)]
    check_ids("tokens", ids, vocabulary, "tokens")
    return JSONResponse({"prompt": text_of(ids, vocabulary)})


async def tokenizer_info(request: Request) -> JSONResponse:
    """Describe the tokenizer, as Hugging Face's `tokenizer_config.json` does; `?model=` names another model."""
    served = await _model(request, request.query_params.get("model", ""))
    vocabulary = served.vocabulary
    start = vocabulary.symbols[vocabulary.start_id]
    end = vocabulary.ends[0] if vocabulary.ends else start
    info: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": start,
        "eos_token": end,
        "pad_token": end,
        "unk_token": None if vocabulary.unknown_id is None else UNKNOWN,
        "chat_template": None,
        "clean_up_tokenization_spaces": False,
        "vocab_size": len(vocabulary),
        "model": served.name,
        "model_id": served.model_id,
    }
    return JSONResponse(info)


def _ids(fields: Fields) -> list[Any]:
    found = fields.take("tokens")
    if not isinstance(found, list):
        message = "tokens is missing" if found is None else f"tokens must be a list of ids, not {shown(found)}"
        raise ApiError(400, message, "tokens")
    return found


async def _model(request: Request, name: str) -> ServedModel:
    servers: Servers = request.app.state.servers
    return (await servers.models.fresh(servers.for_request(request))).find(name)
