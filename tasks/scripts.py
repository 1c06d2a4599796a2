"""Every change in Redis that readers must see whole, as Lua: Redis runs a script as one step.

The parts that account for work and that share computations are in ``tasks/demand.py`` and
``tasks/cache.py``; here they meet the jobs. Key names are made inside the scripts, since one
publishing may reach jobs that the caller does not know of.
"""

from tasks import cache, demand

_JOBS = """
local TOTALS = P .. 'totals'

local function is_open(state)
  return state == 'queued' or state == 'running' or state == 'paused'
end

-- Append to the job's events, and remember it in `news`.
local function say(job_id, news, ...)
  news[#news + 1] = {redis.call('XADD', P .. 'events:' .. job_id, '*', ...), ...}
end

-- A script that speaks of many jobs makes this a table, by bell, and tells it all at its end.
local to_tell

-- Tell the processes in which somebody follows the job what was said, so that they need not ask.
-- Whoever says something rings too, or followers would take the next thing they hear for the next
-- that was said.
local function ring(job_id, news)
  local bells = redis.call('HGET', P .. 'job:' .. job_id, 'bells') or ''
  for bell in string.gmatch(bells, '%S+') do
    if to_tell then
      to_tell[bell] = to_tell[bell] or {}
      table.insert(to_tell[bell], {job_id, news})
    else
      redis.call('PUBLISH', bell, cjson.encode({{job_id, news}}))
    end
  end
end

-- Publish one chunk to one job, once. Returns 1, or 0 when it has ended or the chunk is there. A
-- paused job takes what was being spoken when it was paused.
local function publish(job_id, index, facts, pcm, ttl, now)
  local key, events, n_samples = P .. 'job:' .. job_id, P .. 'events:' .. job_id, #pcm / 2
  local job = redis.call('HMGET', key, 'state', 'chunk:' .. index, 'done', 'samples', 'count',
                         'kind', 'started_at')
  local state, news = job[1], {}
  if not is_open(state) or job[2] then return 0 end
  redis.call('SET', P .. 'audio:' .. job_id .. ':' .. index, pcm, 'EX', ttl)
  local done = job[3] + 1
  say(job_id, news, 'type', 'audio', 'index', index, 'n_samples', n_samples, 'facts', facts,
      'done', done)
  discharge(job_id, index)
  redis.call('HDEL', P .. 'work:' .. job_id, 'content:' .. index)
  redis.call('EXPIRE', P .. 'work:' .. job_id, ttl)
  local is_last = done == tonumber(job[5]) and job[6] ~= 'long'
  if is_last then
    say(job_id, news, 'type', 'done')
    redis.call('HINCRBY', TOTALS, 'jobs_done', 1)
    close_account(job_id)
  end
  redis.call('HSET', key, 'chunk:' .. index, n_samples, 'done', done,
             'samples', job[4] + n_samples, 'started_at', job[7] or now,
             'state', is_last and 'done' or state == 'queued' and 'running' or state)
  if is_last then redis.call('HSET', key, 'finished_at', now) end
  redis.call('EXPIRE', key, ttl)
  redis.call('EXPIRE', events, ttl)
  ring(job_id, news)
  return 1
end

-- End a job, once. Returns 1, or 0 when it has ended before or is unknown. One that ended before
-- Redis lost it is no news to the totals. A full Redis refuses a script that begins by adding
-- something, and this is what frees memory, so it begins by removing nothing.
local function finish(job_id, state, reason, now, is_known)
  local job, news = P .. 'job:' .. job_id, {}
  if not is_open(redis.call('HGET', job, 'state')) then return 0 end
  redis.call('HDEL', job, '')
  redis.call('HSET', job, 'state', state, 'error', reason, 'finished_at', now)
  say(job_id, news, 'type', state, 'error', reason)
  local ttl = redis.call('TTL', job)
  if ttl > 0 then redis.call('EXPIRE', P .. 'events:' .. job_id, ttl) end
  if not is_known then redis.call('HINCRBY', TOTALS, 'jobs_' .. state, 1) end
  leave_flights(job_id)
  close_account(job_id)
  ring(job_id, news)
  -- Chunks still waiting in workers are dropped there (tasks/consumer.py).
  redis.call('PUBLISH', P .. 'over', job_id)
  return 1
end
"""

_LIBRARY = demand.LUA + cache.LUA + _JOBS

# Publish chunks' audio, each to its job and to all that wait for the same content. ARGV: now, then
# job, index, facts, samples, seconds to live, content and bytes of the cache of each. Returns for
# each 1, or 0 when the job has ended or the chunk is there already.
PUBLISH = (
    _LIBRARY
    + """
local now = ARGV[1]

local function publish_to_all(job_id, index, facts, pcm, ttl, content, limit)
  limit = tonumber(limit)
  local mine = publish(job_id, index, facts, pcm, ttl, now)
  local told, heard_by = mine, job_id
  if content ~= '' then
    local flight = P .. 'flight:' .. content
    for _, other in ipairs(waiting_for(content)) do
      -- It joined later, so it waited less.
      local own = cjson.decode(facts)
      local here_ms = (now - redis.call('HGET', flight, 'job:' .. other)) * 1000
      own.queue_time_ms = math.max(0, math.floor(here_ms - (own.inference_time_ms or 0)))
      if publish(other, index, cjson.encode(own), pcm, ttl, now) == 1 then
        told, heard_by = told + 1, other
      end
    end
    redis.call('DEL', flight)
    if told > 0 and limit > 0 then keep(content, pcm, limit, now) end
  end
  if told > 0 then
    redis.call('HINCRBY', TOTALS, 'chunks', 1)
    local rate = redis.call('HGET', P .. 'job:' .. heard_by, 'sample_rate')
    redis.call('HINCRBY', TOTALS, 'audio_ms', math.floor(500 * #pcm / rate + 0.5))
  end
  return mine
end

local is_new = {}
to_tell = {}
for i = 2, #ARGV, 7 do table.insert(is_new, publish_to_all(unpack(ARGV, i, i + 6))) end
for bell, news in pairs(to_tell) do redis.call('PUBLISH', bell, cjson.encode(news)) end
return is_new
"""
)

# Add a slice to a chunk that is still being made: its samples from a number on. Made a second time,
# after a worker's death, they are the same samples, and what is there already is no news. ARGV:
# job, index, number of the first sample, samples, seconds to live, now. Returns whether any is.
SLICE = (
    _LIBRARY
    + """
local job_id, index, start, pcm, ttl, now = unpack(ARGV)
local job, events = P .. 'job:' .. job_id, P .. 'events:' .. job_id
local audio, state = P .. 'audio:' .. job_id .. ':' .. index, redis.call('HGET', job, 'state')
if state ~= 'queued' and state ~= 'running' then return 0 end
if redis.call('HEXISTS', job, 'chunk:' .. index) == 1 then return 0 end
local before = redis.call('STRLEN', audio)
start = 2 * start
if before < start or before >= start + #pcm then return 0 end
local now_there = redis.call('SETRANGE', audio, start, pcm)
local news = {}
say(job_id, news, 'type', 'slice', 'index', index, 'n_samples', now_there / 2)
if state == 'queued' then redis.call('HSET', job, 'state', 'running', 'started_at', now) end
for _, key in ipairs({job, events, audio}) do redis.call('EXPIRE', key, ttl) end
ring(job_id, news)
return 1
"""
)

# ARGV: job, state, reason, now.
END = _LIBRARY + "return finish(unpack(ARGV))"

# A job that Redis has lost, and that had ended before, ends as it did then. ARGV: job, state,
# reason, when; chunks and samples it had then, of which some may have been removed since.
END_AGAIN = (
    _LIBRARY
    + """
local job_id, state, reason, ended_at, done, samples = unpack(ARGV)
if finish(job_id, state, reason, ended_at, true) == 0 then return 0 end
redis.call('HSET', P .. 'job:' .. job_id, 'done', done, 'samples', samples)
return 1
"""
)

# A chunk cannot be spoken: end its job and all that wait for the same content. ARGV: job, content,
# reason, now.
FAIL = (
    _LIBRARY
    + """
local job_id, content, reason, now = unpack(ARGV)
local others = content ~= '' and waiting_for(content) or {}
redis.call('DEL', P .. 'flight:' .. content)
for _, other in ipairs(others) do finish(other, 'failed', reason, now) end
return finish(job_id, 'failed', reason, now)
"""
)

# Let a new job in and queue its chunks, if there is none with this id. ARGV: seconds to live, time
# to list it under or '', job, order as JSON, number of fields and values of the record, these, and
# queue and message of each chunk that is to be queued here. Chunks that are kept are published at
# once, those that somebody else has asked for are waited for; only the others are work. Returns
# whether the job is new, the reason of a refusal or '', the wait and the time to come back in ms,
# and the indexes that are to be queued.
CREATE = (
    _LIBRARY
    + demand.JUDGE
    + """
local ttl, listed_at, job_id, order = ARGV[1], ARGV[2], ARGV[3], cjson.decode(ARGV[4])
local job, last = P .. 'job:' .. job_id, 5 + ARGV[5]
if redis.call('EXISTS', job, P .. 'gone:' .. job_id) > 0 then return {0, '', 0, 0} end

local now, plan, kept, is_joined = order.now, {first = 0, later = {}, long = 0, ms = 0}, {}, {}
for i, work in ipairs(order.works) do
  local _, ms, offset, group, content = unpack(work)
  kept[i] = content ~= '' and recall(content, now / 1000)
  is_joined[i] = content ~= '' and not kept[i] and is_asked(content, now + offset)
  if not kept[i] and not is_joined[i] then
    plan.ms = plan.ms + ms
    if group == 'later' then table.insert(plan.later, {offset, ms})
    else plan[group] = plan[group] + ms end
  end
end
local wait = 0
if order.limits then
  local reason, retry
  reason, wait, retry = judge(now, order.owner, plan, order.limits)
  if reason ~= '' then return {1, reason, wait, retry} end
end

redis.call('HSET', job, unpack(ARGV, 6, last))
redis.call('EXPIRE', job, ttl)
if listed_at ~= '' then
  redis.call('ZADD', P .. 'jobs', listed_at, job_id)
  redis.call('ZADD', P .. 'open', listed_at, job_id)
end
if not order.is_known then redis.call('HINCRBY', TOTALS, 'jobs', 1) end
if #order.works > 0 then open_account(job_id, order.owner, ttl) end
local answer = {1, '', wait, 0}
for i, work in ipairs(order.works) do
  local index, ms, offset, group, content = unpack(work)
  if kept[i] then
    redis.call('HINCRBY', TOTALS, 'cache_hits', 1)
    publish(job_id, index, order.kept_facts, kept[i], ttl, now / 1000)
  elseif is_joined[i] then
    redis.call('HINCRBY', TOTALS, 'coalesced', 1)
    join(content, job_id, index, now / 1000)
  else
    charge(job_id, index, string.format('%d:%d:%s', ms, (now + wait + offset) / BUCKET, group))
    if content ~= '' then
      redis.call('HINCRBY', TOTALS, 'cache_misses', 1)
      join(content, job_id, index, now / 1000)
      ask(content, now + offset, ttl)
    end
    table.insert(answer, index)
    local at = last + 2 * i - 1
    if ARGV[at] then redis.call('LPUSH', ARGV[at], ARGV[at + 1]) end
  end
end
return answer
"""
)

# Chunks are about to be spoken: are they wanted, how often were they begun? ARGV: token, 'alone' or
# 'together', samples per second, then job, index and content of each. Attempts count once per
# token, so that repeating the call counts nothing, and without bringing a forgotten job back as a
# fragment. In company only a first attempt is counted: a later one is made alone, and counted then.
# Returns for each the state of the job ('running' while anybody waits for the content), whether the
# chunk is published, the number of the attempt, and the job's samples per second if these are
# others.
BEGIN = (
    _LIBRARY
    + """
local LEFT_S = 10
local time, token, company, rate = redis.call('TIME'), ARGV[1], ARGV[2], tonumber(ARGV[3])
local now = string.format('%d.%06d', time[1], time[2])

-- Whether nobody has followed a job that is only for its listener, for longer than a connection
-- takes to be made anew: the process that had him died, and could not cancel it.
local function is_left(job, bells, alone_since)
  for bell in string.gmatch(bells, '%S+') do
    if redis.call('PUBSUB', 'NUMSUB', bell)[2] > 0 then
      if alone_since then redis.call('HDEL', job, 'alone_since') end
      return false
    end
  end
  if not alone_since then redis.call('HSET', job, 'alone_since', now) end
  return alone_since and now - alone_since > LEFT_S
end

local function begin(job_id, index, content)
  local job = P .. 'job:' .. job_id
  local known = redis.call('HMGET', job, 'state', 'chunk:' .. index, 'sample_rate', 'resumable',
                           'bells', 'alone_since')
  local state, published = known[1], known[2] and 1 or 0
  local is_wanted = state == 'queued' or state == 'running'
  if is_wanted and known[4] == '0' and is_left(job, known[5] or '', known[6]) then
    finish(job_id, 'cancelled', '', now)
    state, is_wanted = 'cancelled', false
  end
  -- In a sound of that rate, what is made at this one would be heard too slow or too fast.
  local job_rate = tonumber(known[3] or rate)
  if is_wanted and job_rate ~= rate then return {state, published, 0, job_rate} end
  local counted, count, by = job, 'attempt:' .. index, 'attempt_by:' .. index
  if content ~= '' then
    counted = P .. 'flight:' .. content
    if is_open(state) and published == 0
       and redis.call('HEXISTS', counted, 'job:' .. job_id) == 0 then
      -- Sent again, after the flight it belonged to was lost.
      join(content, job_id, index, now)
      if redis.call('TTL', counted) < 0 then redis.call('EXPIRE', counted, 600) end
    end
    if #waiting_for(content) == 0 then
      -- Nobody: and who comes next must not join a message that is skipped now.
      redis.call('DEL', counted)
      return {state, published, 0}
    end
    state, published, is_wanted = 'running', 0, true
  end
  -- It has left the queue, and is sent again when the job goes on.
  if state == 'paused' then redis.call('ZREM', P .. 'sent:' .. job_id, index) end
  -- What is not going to be spoken, because its job is paused or over, is no attempt.
  if not is_wanted then return {state, published, 0} end
  local before = redis.call('HMGET', counted, count, by)
  local attempt = tonumber(before[1] or 0)
  if before[2] == token then return {state, published, attempt} end
  if attempt == 0 or company == 'alone' then
    redis.call('HSET', counted, by, token, count, attempt + 1, 'begun:' .. index, now)
  end
  return {state, published, attempt + 1}
end

local found = {}
for i = 4, #ARGV, 3 do table.insert(found, begin(ARGV[i], ARGV[i + 1], ARGV[i + 2])) end
return found
"""
)

# Chunks that were begun are handed back by a worker that lives: what was counted with this token is
# no attempt. A full Redis refuses a script that begins by adding something; this one removes first.
# ARGV: token, then job, index and content of each.
UNBEGIN = """
for i = 2, #ARGV, 3 do
  local job_id, index, content = unpack(ARGV, i, i + 2)
  local counted = 'supertonic:' .. (content ~= '' and 'flight:' .. content or 'job:' .. job_id)
  local count, by = 'attempt:' .. index, 'attempt_by:' .. index
  if redis.call('HGET', counted, by) == ARGV[1] then
    redis.call('HDEL', counted, by)
    redis.call('HINCRBY', counted, count, -1)
  end
end
"""

# Count a chunk whose audio is known from elsewhere. ARGV: job, index, samples. Not for a forgotten
# job, which must not come back as a fragment.
MARK = (
    _LIBRARY
    + """
local job_id, index, n_samples = unpack(ARGV)
local job, events = P .. 'job:' .. job_id, P .. 'events:' .. job_id
if redis.call('EXISTS', job) == 0 then return 0 end
if redis.call('HSETNX', job, 'chunk:' .. index, n_samples) == 0 then return 0 end
redis.call('HINCRBY', job, 'samples', n_samples)
local done = redis.call('HINCRBY', job, 'done', 1)
local news = {}
say(job_id, news, 'type', 'audio', 'index', index, 'n_samples', n_samples, 'facts', '{}',
    'done', done)
discharge(job_id, index)
local ttl = redis.call('TTL', job)
if ttl > 0 then redis.call('EXPIRE', events, ttl) end
ring(job_id, news)
return 1
"""
)

# Take a chunk of a job that goes on back, once, however many notice at the same time that its audio
# is gone. ARGV: job, index. Returns whether it was there.
FORGET_CHUNK = (
    _LIBRARY
    + """
local job = P .. 'job:' .. ARGV[1]
local n_samples = redis.call('HGET', job, 'chunk:' .. ARGV[2])
if not n_samples or not is_open(redis.call('HGET', job, 'state')) then return 0 end
redis.call('HDEL', job, 'chunk:' .. ARGV[2])
redis.call('HINCRBY', job, 'done', -1)
redis.call('HINCRBY', job, 'samples', -n_samples)
return 1
"""
)

# Forget a job and what it had on the account, and for a while do not take it in again: whoever read
# it from disk just before may be about to restore it. ARGV: job.
FORGET_JOB = (
    _LIBRARY
    + """
local job_id = ARGV[1]
leave_flights(job_id)
close_account(job_id)
redis.call('ZREM', P .. 'jobs', job_id)
redis.call('ZREM', P .. 'open', job_id)
redis.call('UNLINK', P .. 'job:' .. job_id, P .. 'events:' .. job_id, P .. 'sent:' .. job_id)
redis.call('SET', P .. 'gone:' .. job_id, 1, 'EX', 60)
return 1
"""
)

# The events from a place on; from now on the bell, if any, rings for this job too. A full Redis
# refuses a script that begins by adding something, so it begins by removing nothing. ARGV: job,
# place, bell.
LOOK = """
local key, bell = 'supertonic:job:' .. ARGV[1], ARGV[3]
if bell ~= '' then
  local job = redis.call('HMGET', key, 'state', 'bells')
  if job[1] and not string.find(job[2] or '', bell, 1, true) then
    redis.call('HDEL', key, '')
    redis.call('HSET', key, 'bells', (job[2] or '') .. ' ' .. bell)
  end
end
return redis.call('XRANGE', 'supertonic:events:' .. ARGV[1], ARGV[2], '+')
"""

# ARGV: bytes, now.
SHRINK = _LIBRARY + "shrink(tonumber(ARGV[1]), tonumber(ARGV[2])) return number(SIZES, 'total')"
