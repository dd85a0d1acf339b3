"""The options of the gRPC channels of both clients."""

CHANNEL_OPTIONS = [
    # Each client has connections of its own: where several processes share a port, they spread over all of them.
    ("grpc.use_local_subchannel_pool", 1),
    # Find a restarted server soon: by default, gRPC waits up to two minutes between attempts to connect.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Despite its name, this limits how long an attempt to connect may take; the default is 20 s.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    # A machine that has failed closes no connection: ping it during calls, even during quiet ones.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 30_000),  # for a ping that was sent for other reasons, in place of keepalive's
    ("grpc.http2.max_pings_without_data", 0),
]
