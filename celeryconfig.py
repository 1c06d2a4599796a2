"""Celery's settings for every process of this project: plain values, each with its reason."""

from kombu import Queue
from kombu.transport import TRANSPORT_ALIASES

from tasks.settings import Settings

_settings = Settings.from_env()

# A Unix socket has another name in kombu than everywhere else.
broker_url = (_settings.broker_url or _settings.redis_url).replace("unix://", "redis+socket://", 1)
if not _settings.broker_url:
    # One round trip per batch instead of three per message, and no message is ever only in a
    # socket. Not with ``broker_transport``: a URL with a plus in it overrides that.
    TRANSPORT_ALIASES["redis"] = "tasks.transport:Transport"
broker_connection_retry_on_startup = True
# Never give up on Redis: a worker that ends because Redis was long away helps nobody.
broker_connection_max_retries = None
_redis_options = {
    # A dead worker's messages come back after this long. Living workers renew what they hold
    # (tasks/lanes.py), so a long queue never looks like a dead worker.
    "visibility_timeout": _settings.visibility_timeout_s,
    # Kombu sweeps for expired messages every 100 s by default, which would make the line above
    # meaningless; sweep every second instead.
    "unacked_restore_interval": 1,
    "unacked_restore_throttle": 1,
    # A worker killed inside the sweep must not block everybody's recovery for five minutes.
    "unacked_mutex_expire": 5,
    # Urgency is expressed by queues, not by message priority: one Redis list per queue.
    "priority_steps": [0],
    # Strictly the first queue first. The default, round robin, would ignore urgency.
    "queue_order_strategy": "priority",
    "health_check_interval": 10,
    "socket_keepalive": True,
    "socket_connect_timeout": 2,
    # A host that vanished without a word is noticed; replies are only read once they are there.
    "socket_timeout": 10,
}
# RabbitMQ confirms what it has, or a broker that dies takes it along. It costs 0.4 ms per message.
_amqp_options = {"confirm_publish": True}
broker_transport_options = _amqp_options if broker_url.startswith("amqp") else _redis_options

# high: the first chunk of a stream. normal: what follows. low: long jobs. files: assembling them.
task_queues = [Queue(name) for name in ("high", "normal", "low", "files")]
task_default_queue = "normal"
task_create_missing_queues = True

# Nothing on the wire can carry code: JSON in, JSON out, and no result backend at all, because
# results travel as events (tasks/events.py).
accept_content = ["json"]
task_serializer = "json"
result_backend = None
task_ignore_result = True

# A message is acknowledged after its audio is published, and returned when its worker is lost.
task_acks_late = True
task_reject_on_worker_lost = True

# Of the queue `normal`, for each core. The queue knows no deadlines, the worker does: what is due
# soon must not be behind chunks of long texts that are due in a minute. With 64, streams broke off
# at nine tenths of the load that 256 carry (docs/scheduling.md).
worker_prefetch_multiplier = 256
# After a lost connection Celery would lower it, and raise it again only with acknowledgements that
# pass through its own promises, which ours do not (tasks/consumer.py).
worker_enable_prefetch_count_reduction = False
# These threads own the device; the worker asks its engine how many (tasks/worker.py).
worker_pool = "threads"
worker_concurrency = 1
# Flower switches events on when it starts; without it nobody pays for them.
worker_send_task_events = False
worker_hijack_root_logger = False
worker_cancel_long_running_tasks_on_connection_loss = False
# Remote control replies are read from Redis lists; do not leave them behind.
control_queue_expires = 60
event_queue_expires = 60
event_queue_ttl = 30
