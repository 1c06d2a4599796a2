"""How often one key, or one address where there are no keys, may ask for speech.

The counts are in Redis, so they hold over all web processes. There is no second opinion for when
Redis is away: nobody is refused by this limit then and nobody gets past it, since speech needs the
same Redis and the request is answered 503 either way.
"""

import ipaddress
import math
import time
from dataclasses import dataclass

import redis
from limits import RateLimitItem, parse_many
from limits.storage import RedisStorage
from limits.strategies import MovingWindowRateLimiter

from app.errors import Problem
from tasks.settings import SettingsError


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a caller stands with the limit that is nearest to being reached."""

    allowed: int
    window_s: int
    remaining: int
    reset_s: int

    def headers(self) -> dict[str, str]:
        """RateLimit fields as in the IETF draft (draft-ietf-httpapi-ratelimit-headers)."""
        return {
            "RateLimit-Policy": f'"speech";q={self.allowed};w={self.window_s}',
            "RateLimit": f'"speech";r={self.remaining};t={self.reset_s}',
        }


class SpeechLimit:
    """Counts requests for speech; without a rule it counts nothing."""

    def __init__(self, rule: str, client: "redis.Redis") -> None:
        """
        Args:
            rule: such as ``60/minute`` or ``10/second; 1000/hour``; empty for no limit.

        Raises:
            SettingsError: the rule cannot be read.
        """
        self._rules = parse_rules(rule)
        storage = RedisStorage(
            "redis://", client.connection_pool, key_prefix="supertonic:rate", wrap_exceptions=False
        )
        self._limiter = MovingWindowRateLimiter(storage)

    def count(self, who: str) -> Standing | None:
        """Count one request of ``who``, a key's fingerprint or an address.

        Raises:
            Problem: 429 when that is one too many.
            redis.RedisError: Redis cannot be reached.
        """
        who = _network(who)
        standings = []
        for rule in self._rules:
            is_allowed = self._limiter.hit(rule, who)
            standing = self._standing(rule, who)
            if not is_allowed:
                detail = f"At most {rule.amount} requests for speech per {_window(rule)}."
                problem = Problem(429, detail, retry_after_s=standing.reset_s)
                problem.headers.update(standing.headers())
                raise problem
            standings.append(standing)
        return min(standings, key=lambda each: each.remaining, default=None)

    def _standing(self, rule: RateLimitItem, who: str) -> Standing:
        stats = self._limiter.get_window_stats(rule, who)
        reset_s = max(1, math.ceil(stats.reset_time - time.time()))
        return Standing(rule.amount, rule.get_expiry(), stats.remaining, reset_s)


def parse_rules(rule: str) -> list[RateLimitItem]:
    """SettingsError: the rule cannot be read."""
    if not rule.strip():
        return []
    try:
        return parse_many(rule)
    except ValueError:
        raise SettingsError(
            f"SUPERTONIC_RATE_LIMIT={rule!r}: expected a number and a time, such as 60/minute"
        ) from None


def _window(rule: RateLimitItem) -> str:
    return (
        f"{rule.multiples} {rule.GRANULARITY.name}s"
        if rule.multiples > 1
        else rule.GRANULARITY.name
    )


def _network(who: str) -> str:
    """An IPv6 caller owns at least a /64; its addresses count as one."""
    try:
        address = ipaddress.ip_address(who)
    except ValueError:
        return who
    if address.version == 4:
        return who
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network(f"{address.exploded}/64", strict=False))
