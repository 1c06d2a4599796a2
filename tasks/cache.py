"""Chunks that sound the same are computed once: the cache of finished ones, and the flights of
those under way.

A chunk's content key holds everything its samples depend on and nothing else, so equal keys mean
equal samples, whoever asks. Chunks of requests without a seed have none: each draws its own noise.
Long jobs have none either; they are kept as files, and one would push everybody else's out.

- ``supertonic:cache:C``: samples of content C; ``cache:used`` orders contents by their last use and
  ``cache:sizes`` holds the bytes of each and their ``total``. They are copies: audio on its way to
  a listener has keys of its own, which no eviction touches.
- ``supertonic:flight:C``: the jobs that wait for C (``job:J``, with the time they joined), when the
  queued message is due, and the attempts made at it. The message of whoever came first serves all,
  also when that job is cancelled; who needs it earlier queues another one.
"""

import hashlib
import json

from tasks.messages import Chunk

LUA = """
local CACHE, USED, SIZES = P .. 'cache:', P .. 'cache:used', P .. 'cache:sizes'
-- Of one entry beside its samples: its names in three places.
local OVERHEAD, KEPT_S = 400, 86400

local function evict(content)
  local size = redis.call('HGET', SIZES, content)
  if size then
    redis.call('HDEL', SIZES, content)
    redis.call('HINCRBY', SIZES, 'total', -size)
  end
  redis.call('ZREM', USED, content)
  redis.call('UNLINK', CACHE .. content)
end

-- What nobody asked for in a day, then the least recently used, until the rest fits the limit.
local function shrink(limit, now)
  while true do
    local oldest = redis.call('ZRANGE', USED, 0, 0, 'WITHSCORES')
    if #oldest == 0 then redis.call('DEL', SIZES) return end
    if number(SIZES, 'total') <= limit and tonumber(oldest[2]) > now - KEPT_S then return end
    evict(oldest[1])
  end
end

local function keep(content, pcm, limit, now)
  -- Redis takes memory in steps, four for each power of two.
  local step = 2 ^ (math.floor(math.log(#pcm + 1) / math.log(2)) - 2)
  local size = math.ceil(#pcm / step) * step + OVERHEAD
  if size > limit then return end
  evict(content)
  redis.call('SET', CACHE .. content, pcm, 'EX', KEPT_S)
  redis.call('HSET', SIZES, content, size)
  redis.call('HINCRBY', SIZES, 'total', size)
  redis.call('ZADD', USED, now, content)
  shrink(limit, now)
end

local function recall(content, now)
  local pcm = redis.call('GET', CACHE .. content)
  if pcm then
    redis.call('ZADD', USED, now, content)
    redis.call('EXPIRE', CACHE .. content, KEPT_S)
  end
  return pcm
end

local function lives(job_id)
  local state = redis.call('HGET', P .. 'job:' .. job_id, 'state')
  return state == 'queued' or state == 'running'
end

-- Jobs that wait for this content and are still wanted.
local function waiting_for(content)
  local found, fields = {}, redis.call('HKEYS', P .. 'flight:' .. content)
  for _, field in ipairs(fields) do
    local job_id = string.match(field, '^job:(.+)$')
    if job_id and lives(job_id) then table.insert(found, job_id) end
  end
  return found
end

-- Whether a message that is due early enough is under way already.
local function is_asked(content, due)
  local asked = redis.call('HGET', P .. 'flight:' .. content, 'due')
  return asked and tonumber(asked) <= due
end

local function join(content, job_id, index, now)
  redis.call('HSET', P .. 'flight:' .. content, 'job:' .. job_id, now)
  local work = P .. 'work:' .. job_id
  redis.call('HSET', work, 'content:' .. index, content)
  -- Stored without anything to be spoken, it had no account until now.
  if redis.call('TTL', work) < 0 then
    redis.call('EXPIRE', work, redis.call('TTL', P .. 'job:' .. job_id))
  end
end

-- A flight must not outlive its message: who joined it later would wait for nothing.
local function ask(content, due, ttl)
  redis.call('HSET', P .. 'flight:' .. content, 'due', due)
  redis.call('EXPIRE', P .. 'flight:' .. content, ttl)
end

-- A job needs none of its contents any more. Where others wait for one, its message goes on for
-- them, and its work is on the account of one of them.
local function leave_flights(job_id)
  local fields = redis.call('HGETALL', P .. 'work:' .. job_id)
  for i = 1, #fields, 2 do
    local index = string.match(fields[i], '^content:(%d+)$')
    if index then
      local content = fields[i + 1]
      redis.call('HDEL', P .. 'flight:' .. content, 'job:' .. job_id)
      local others = waiting_for(content)
      if #others == 0 then
        redis.call('DEL', P .. 'flight:' .. content)
      else
        local work = discharge(job_id, index)
        local heir = P .. 'work:' .. others[1]
        if work and redis.call('HEXISTS', heir, index) == 0 then charge(others[1], index, work) end
      end
    end
  end
end
"""


def content_key(fingerprint: str, chunk: Chunk) -> str:
    """One name for everything that this chunk's samples depend on.

    ``fingerprint`` is the model's: weights, voices, sizes and precision. With the seed, the index
    decides the noise. Not in it: the job, the pause behind the chunk, its urgency and deadline.
    """
    facts = [
        fingerprint,
        chunk.text,
        chunk.language,
        chunk.voice,
        chunk.steps,
        float(chunk.speed),
        chunk.seed,
        chunk.index,
    ]
    text = json.dumps(facts, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
