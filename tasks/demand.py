"""The account of work that waits, and the decision about who may add to it.

Work is counted in milliseconds of sound at two steps: what an utterance costs grows with its
steps (``work`` in tasks/pace.py), and the workers' measured rate is in the same unit. The account
is kept by the scripts that store, publish and end jobs (tasks/scripts.py), so it changes in the
same step as they do:

- ``supertonic:work:J``: what job J still has to come, by chunk index, its owner, and whether it
  is ``held`` because the job is paused: then it is in its owner's sum alone;
- ``supertonic:queued``: sums, of ``first`` and ``later`` chunks of listeners, of ``long`` jobs,
  and of each owner as ``listener:OWNER`` and ``long:OWNER``;
- ``supertonic:demand``: work of later chunks by the quarter second in which a listener needs it,
  and ``supertonic:demand:OWNER`` the part of it that is an owner's.

Jobs that expired or were lost leave their share behind in the sums, so whoever asks for admission
has the sums made anew from the jobs that live, every ten seconds at most.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.messages import Chunk
from tasks.pace import work

LUA = """
local P = 'supertonic:'
local QUEUED, DEMAND, CHARGED = P .. 'queued', P .. 'demand', P .. 'charged'
local BUCKET, SETTLE_S = 250, 10

local function number(key, field) return tonumber(redis.call('HGET', key, field) or 0) end

-- What is nothing is not kept, nor what a script before a loss of data would make negative.
local function count(key, field, ms)
  if redis.call('HINCRBY', key, field, ms) <= 0 then redis.call('HDEL', key, field) end
end

-- Work is 'ms:due:group', due being a quarter second. ``add`` takes a sum's key, its field, and ms.
-- What is held delays nobody, but is its owner's: pausing makes no room for more.
local function book(owner, is_held, work, sign, add)
  local ms, due, group = string.match(work, '^(%d+):(%d+):(%a+)$')
  ms = sign * ms
  if not is_held then
    add(QUEUED, group, ms)
    if group == 'later' then add(DEMAND, due, ms) end
  end
  if owner ~= '' then
    add(QUEUED, (group == 'long' and 'long:' or 'listener:') .. owner, ms)
    if group == 'later' then add(DEMAND .. ':' .. owner, due, ms) end
  end
end

local function discharge(job_id, index)
  local key = P .. 'work:' .. job_id
  local known = redis.call('HMGET', key, index, 'owner', 'held')
  local work, owner, is_held = unpack(known)
  if not work then return nil end
  redis.call('HDEL', key, index)
  book(owner or '', is_held, work, -1, count)
  return work
end

-- A paused job's work is kept, but among no sum except its owner's, which stays as it is.
local function hold(job_id, is_held)
  local key = P .. 'work:' .. job_id
  local fields = redis.call('HGETALL', key)
  if #fields == 0 then return end
  if is_held == (redis.call('HEXISTS', key, 'held') == 1) then return end
  if is_held then redis.call('HSET', key, 'held', 1) else redis.call('HDEL', key, 'held') end
  for i = 1, #fields, 2 do
    if tonumber(fields[i]) then book('', false, fields[i + 1], is_held and -1 or 1, count) end
  end
end

local function open_account(job_id, owner, ttl)
  local key = P .. 'work:' .. job_id
  redis.call('HSET', key, 'owner', owner)
  redis.call('EXPIRE', key, ttl)
  redis.call('SADD', CHARGED, job_id)
end

local function charge(job_id, index, work)
  local key = P .. 'work:' .. job_id
  discharge(job_id, index)
  redis.call('HSET', key, index, work)
  local known = redis.call('HMGET', key, 'owner', 'held')
  book(known[1] or '', known[2], work, 1, count)
end

local function close_account(job_id)
  local key = P .. 'work:' .. job_id
  local fields = redis.call('HGETALL', key)
  for i = 1, #fields, 2 do
    if tonumber(fields[i]) then discharge(job_id, fields[i]) end
  end
  redis.call('DEL', key)
  redis.call('SREM', CHARGED, job_id)
end

-- Make the sums anew from the jobs that live. They are added up here: with a call for each of many
-- thousand chunks everybody else would wait for Redis.
local function settle()
  local sums = {}
  local function add(key, field, ms)
    sums[key] = sums[key] or {}
    sums[key][field] = (sums[key][field] or 0) + ms
  end
  for _, job_id in ipairs(redis.call('SMEMBERS', CHARGED)) do
    local key = P .. 'work:' .. job_id
    local state = redis.call('HGET', P .. 'job:' .. job_id, 'state')
    local fields = redis.call('HGETALL', key)
    local lives = state == 'queued' or state == 'running' or state == 'paused'
    if not lives or #fields == 0 then
      redis.call('DEL', key)
      redis.call('SREM', CHARGED, job_id)
    else
      local owner, is_held = unpack(redis.call('HMGET', key, 'owner', 'held'))
      for i = 1, #fields, 2 do
        if tonumber(fields[i]) then book(owner or '', is_held, fields[i + 1], 1, add) end
      end
    end
  end
  for _, field in ipairs(redis.call('HKEYS', QUEUED)) do
    local owner = string.match(field, '^listener:(.*)')
    if owner then redis.call('DEL', DEMAND .. ':' .. owner) end
  end
  redis.call('DEL', QUEUED, DEMAND)
  for key, fields in pairs(sums) do
    for field, ms in pairs(fields) do redis.call('HSET', key, field, ms) end
  end
end
"""

# May a listener's request be let in? Chunks are spoken in the order in which they are due, a first
# chunk at once, so its sound comes after all other first chunks and what is overdue. A later chunk
# comes in time when the workers can do all that is due before it, with a margin, at a share of
# their rate. Returns the reason for a refusal or '', the wait, and when it would be let in.
JUDGE = """
local DELAYS = {1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 90, 120, 180, 300, 600}
local LONGEST = DELAYS[#DELAYS] * 1000

-- How much of what waits must be gone before its owner's limit lets it in. Who has nothing waiting
-- may always ask, however much.
local function excess(mine, ms, limit)
  return limit > 0 and math.max(0, math.min(mine, mine + ms - limit)) or 0
end

local function judge_listener(now, owner, plan, limits)
  local rate = limits.rate
  local ahead, dues, demand = number(QUEUED, 'first'), {}, redis.call('HGETALL', DEMAND)
  for i = 1, #demand, 2 do
    local at, ms = demand[i] * BUCKET - now, tonumber(demand[i + 1])
    if at <= 0 then ahead = ahead + ms else table.insert(dues, {at, ms}) end
  end
  table.sort(dues, function(a, b) return a[1] < b[1] end)

  -- When its owner's limit has room: what is due first is spoken first, whoever needs it, but for
  -- what a worker has just begun.
  local function room_at()
    local mine = number(QUEUED, 'listener:' .. owner)
    local too_much = excess(mine, plan.ms, limits.owner)
    if too_much == 0 then return 0 end
    local own, gone, all = {}, mine, ahead
    local later = redis.call('HGETALL', DEMAND .. ':' .. owner)
    for i = 1, #later, 2 do
      local at, ms = later[i] * BUCKET - now, tonumber(later[i + 1])
      if at > 0 then own[at], gone = ms, gone - ms end
    end
    for _, due in ipairs(dues) do
      if gone >= too_much then break end
      all, gone = all + due[2], gone + (own[due[1]] or 0)
    end
    return all / rate + limits.margin
  end
  local has_room_at = room_at()

  local function wait_after(delay)
    if plan.first == 0 then return 0 end
    return (math.max(0, ahead - rate * delay) + plan.first) / rate
  end

  local capacity = rate * limits.share
  local function in_time(ms, at) return ms <= capacity * (at - limits.margin) end

  -- Whether nobody runs dry if it comes after this delay. Where one listener is too much already,
  -- nobody can be kept from it.
  local function fits(delay)
    if capacity < 1 or #dues + ahead == 0 then return true end
    local start = delay + wait_after(delay)
    local others, own, k = ahead, plan.first, 1
    local function own_until(at)
      while plan.later[k] and start + plan.later[k][1] <= at do
        own = own + plan.later[k][2]
        local offset = plan.later[k][1]
        -- What would not be in time with all workers to itself is not the others' fault.
        if in_time(own, plan.first / rate + offset) and not in_time(others + own, start + offset)
        then return false end
        k = k + 1
      end
      return true
    end
    for _, due in ipairs(dues) do
      if due[1] > delay then
        if not own_until(due[1]) then return false end
        if not in_time(others + due[2] + own, due[1]) then return false end
      end
      others = others + due[2]
    end
    return own_until(math.huge)
  end

  local function refusal(delay)
    if delay < has_room_at then return 'owner' end
    if limits.wait == 0 then return '' end
    if ahead > rate * delay and wait_after(delay) > limits.wait then
      return 'wait'
    end
    if not fits(delay) then return 'dry' end
    return ''
  end

  local reason, retry = refusal(0), 0
  if reason ~= '' then
    retry = math.max(has_room_at, LONGEST)
    if refusal(has_room_at) == '' then return reason, wait_after(0), has_room_at end
    for _, delay in ipairs(DELAYS) do
      if refusal(delay * 1000) == '' then retry = delay * 1000 break end
    end
  end
  return reason, wait_after(0), retry
end

-- May a long job? It comes after all other work.
local function judge_long(owner, plan, limits)
  local listeners, long = number(QUEUED, 'first') + number(QUEUED, 'later'), number(QUEUED, 'long')
  local before, rate, reason, retry = listeners + long, limits.rate, '', 0
  local wait = (before + plan.long) / rate
  if limits.long_wait > 0 and before > 0 and wait > limits.long_wait then
    reason, retry = 'long', math.min(before / rate, wait - limits.long_wait)
  end
  local mine = number(QUEUED, 'long:' .. owner)
  local too_much = excess(mine, plan.long, limits.owner_long)
  if too_much > 0 then
    -- Long jobs have their turns, so each of the others has as much spoken meanwhile, if it has as
    -- much; and a chunk counts until all of it is spoken. What is paused is not foreseeable.
    local others = redis.call('ZCARD', P .. 'open') - 1
    local first = listeners + too_much + math.min(math.max(0, long - mine), too_much * others)
    local gone_at = math.min(before, first) / rate + limits.margin
    reason, retry = 'owner', math.max(retry, long < too_much and LONGEST or gone_at)
  end
  return reason, wait, retry
end

local function judge(now, owner, plan, limits)
  if plan.ms == 0 then return '', 0, 0 end
  if redis.call('SET', P .. 'settled', 1, 'NX', 'EX', SETTLE_S) then settle() end
  local reason, wait, retry
  if plan.long > 0 then
    reason, wait, retry = judge_long(owner, plan, limits)
  else
    reason, wait, retry = judge_listener(now, owner, plan, limits)
  end
  return reason, math.floor(wait), math.ceil(retry)
end
"""


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """What admission is decided by; 0 seconds mean no limit.

    ``rate`` is seconds of work per second of all workers together, of which listeners may count
    on ``share``; a later chunk must be there ``margin_s`` before it is needed.
    """

    rate: float
    share: float = 0.95
    margin_s: float = 0.3
    wait_s: float = 0.0
    long_wait_s: float = 0.0
    owner_s: float = 0.0
    owner_long_s: float = 0.0

    def in_ms(self) -> dict[str, float]:
        return {
            "rate": self.rate,
            "share": self.share,
            "margin": self.margin_s * 1000,
            "wait": self.wait_s * 1000,
            "long_wait": self.long_wait_s * 1000,
            "owner": self.owner_s * 1000,
            "owner_long": self.owner_long_s * 1000,
        }


@dataclass(frozen=True, slots=True)
class Admission:
    """What became of a new job. ``reason`` is empty when it was let in; else ``wait`` (its first
    sound would come too late), ``dry`` (somebody's sound would stop), ``long`` (a long job would
    be done too late) or ``owner`` (too much of one key's waits already).
    """

    reason: str = ""
    wait_s: float = 0.0
    retry_after_s: float = 0.0
    is_new: bool = True
    to_send: tuple[int, ...] = ()


def works(chunks: Sequence[Chunk]) -> list[tuple[int, int, int, str]]:
    """Of each chunk its index, ms of work, ms until it is due, and its group in the account."""
    rows = []
    for chunk in chunks:
        group = {"high": "first", "normal": "later", "low": "long"}[chunk.urgency.value]
        ms = max(1, round(work(chunk) * 1000))
        rows.append((chunk.index, ms, max(0, round((chunk.due - chunk.sent_at) * 1000)), group))
    return rows
