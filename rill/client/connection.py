"""How clients connect: the options of their gRPC channels."""

CHANNEL_OPTIONS = [
    # Each client has its own connections: where several processes share a port, each connection goes to one of them.
    ("grpc.use_local_subchannel_pool", 1),
    # A server that was restarted is found soon: the default waits up to two minutes between attempts to connect.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Despite its name, how long an attempt to connect may take; the default is 20 s.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    # A machine that is gone says nothing: ask during calls, however quiet they are.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 30_000),  # where a ping is under way for other reasons, and keepalive sends none
    ("grpc.http2.max_pings_without_data", 0),
]
