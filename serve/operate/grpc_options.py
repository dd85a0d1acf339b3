"""Options of the gRPC server."""

from rill.serve.config import ServerConfig

PENDING_CALLS = 4096
MORE_BYTES = 2**20  # of a request, beside its text
METADATA_BYTES = 16_384  # of a call: from this size on gRPC always refuses it, by its own default


def grpc_options(config: ServerConfig, models: int) -> list[tuple[str, int]]:
    """Return the channel arguments of a server with this number of models."""
    calls = max(models * (config.max_streams + config.max_waiting), PENDING_CALLS)
    keepalive = int(1000 * config.keepalive_seconds)
    return [
        # gRPC cancels some of the calls that arrive faster than it hands them over: by default from 1,000 on. A call
        # that finds no slot should be told so, and when to try again.
        ("grpc.server.max_pending_requests", calls),
        ("grpc.server.max_pending_requests_hard_limit", 2 * calls),
        # Clients ping to see whether the server is still there, however long a slow stream is silent.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        # The server pings, too: a client that vanished reads nothing, and nothing else reports it.
        ("grpc.keepalive_time_ms", keepalive),
        ("grpc.keepalive_timeout_ms", keepalive),
        # Where a ping is under way for other reasons, keepalive sends none.
        ("grpc.http2.ping_timeout_ms", keepalive),
        # A port in use is an error, not a second server. For several processes the supervisor takes care of that.
        ("grpc.so_reuseport", int(config.engines > 1)),
        # A text that is too long should get our own error: leave room for 4 bytes a character, a constraint, and a
        # token with another one.
        ("grpc.max_receive_message_length", max(8 * config.max_prompt, 4 * config.max_score_chars) + MORE_BYTES),
        # Between two different limits gRPC refuses some calls at random: use one limit for both.
        ("grpc.max_metadata_size", METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", METADATA_BYTES),
        # Drop a connection that sends nothing, or something other than gRPC; the default is two minutes.
        ("grpc.server_handshake_timeout_ms", 10_000),
        # More calls on one connection than twice what the server has room for would only be refused.
        ("grpc.max_concurrent_streams", 2 * calls + 100),
        *([("grpc.max_allowed_incoming_connections", config.max_connections)] if config.max_connections else []),
    ]
