"""Streams of a model in this process, without a server."""

from contextlib import asynccontextmanager


@asynccontextmanager
async def live_stream(model, spec):
    """A live stream of `model`, as soon as a slot is free."""
    async with model.slot() as slot:
        with model.stream_in(slot, spec) as stream:
            yield stream
