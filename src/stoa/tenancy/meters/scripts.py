"""What Redis does at one moment each. The same arithmetic as `memory.py`, in Lua.

Keys: of a rate one hash (used, at, era, share, limit), of a gauge one sorted set (hold → end of lease in ms), of a budget a
hash (spent, held, h:HOLD → amount) and a sorted set like a gauge's. Amounts of money travel as digits and are
added by HINCRBY, in 64-bit whole numbers; comparisons are in doubles, exact up to nine million dollars.
"""

from stoa.tenancy.meters.interface import FADED, FORGET_SPENT_S, REMEMBER_SETTLED_S, TOKEN

_PRELUDE = (
    f"""
local TOKEN, FADED, KEEP_MS, SETTLED_MS = {TOKEN}, {FADED}, {FORGET_SPENT_S * 1000}, {REMEMBER_SETTLED_S * 1000}
"""
    + """
local now = tonumber(ARGV[1])
if now < 0 then
  local t = redis.call('TIME')
  now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

local function digits(n) return string.format('%.0f', n) end

-- {used, at, era, share, limit} as of now, at the limit of last time
local function flow(key, limit)
  local got = redis.call('HMGET', key, 'used', 'at', 'era', 'share', 'limit')
  local per_minute = tonumber(got[5] or limit)
  local used, at = tonumber(got[1] or '0'), tonumber(got[2] or digits(now))
  local era, share = tonumber(got[3] or digits(now)), tonumber(got[4] or '1')
  local gone = (now - at) * per_minute
  if gone > 0 and used > 0 then
    local left = used - gone
    if left > 0 then share = share * (left / used) else share = 0 end
    used = math.max(0, left)
  end
  if used == 0 or share < FADED then era, share = math.max(now, era), 1 end
  return {used, math.max(now, at), era, share, per_minute}
end

-- the key goes when the bucket is full again
local function keep(key, b)
  if b[1] <= 0 then redis.call('DEL', key) return end
  redis.call('HSET', key, 'used', digits(b[1]), 'at', digits(b[2]), 'era', digits(b[3]),
             'share', string.format('%.17g', b[4]), 'limit', digits(b[5]))
  local empty_ms = b[5] > 0 and b[1] / b[5] or 60000
  redis.call('PEXPIRE', key, digits(math.ceil(empty_ms) + 1000))
end

local function give_back(purse, leases, id)
  local amount = redis.call('HGET', purse, 'h:' .. id)
  if amount then
    if amount ~= '0' then redis.call('HINCRBY', purse, 'held', '-' .. amount) end
    redis.call('HDEL', purse, 'h:' .. id)
  end
  redis.call('ZREM', leases, id)
end

-- holds whose leases ran out stop counting
local function drop_dead(purse, leases)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', digits(now))) do
    give_back(purse, leases, id)
  end
end

-- a hold again under the same name only gets a later end
local function lend(purse, leases, id, amount, until_ms)
  if redis.call('HSETNX', purse, 'h:' .. id, amount) == 1 then redis.call('HINCRBY', purse, 'held', amount) end
  redis.call('ZADD', leases, digits(until_ms), id)
  redis.call('PEXPIRE', purse, KEEP_MS)
  redis.call('PEXPIRE', leases, KEEP_MS)
end

local function lend_gauge(key, id, until_ms)
  redis.call('ZADD', key, digits(until_ms), id)
  local last = redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')
  redis.call('PEXPIRE', key, digits(math.max(1, tonumber(last[2]) - now) + 1000))
end
"""
)

# KEYS: of each meter two (a budget needs both); ARGV: now, hold, lease_ms, then kind, limit, take of each meter.
# Answers {'ok' | 'full' | 'never' | 'unknown', index of the meter that refuses, wait_ms, state of each meter}.
RESERVE = (
    _PRELUDE
    + """
local id, until_ms = ARGV[2], now + tonumber(ARGV[3])
local count = (#ARGV - 3) / 3
local verdict, told, wait_ms = 'ok', 0, 0
local buckets = {}

local function refuse(i, why)
  if verdict == 'ok' or (why == 'never' and verdict ~= 'never') then verdict, told = why, i end
end

local function look(i, kind, limit, take)
  local key, leases = KEYS[2 * i - 1], KEYS[2 * i]
  if kind == 'rate' then
    local b = flow(key, limit)
    buckets[i], b[5] = b, limit
    if b[1] + take * TOKEN > limit * TOKEN then refuse(i, take > limit and 'never' or 'full') end
    if limit > 0 then wait_ms = math.max(wait_ms, math.ceil((b[1] + (take - limit) * TOKEN) / limit)) end
  elseif kind == 'gauge' then
    redis.call('ZREMRANGEBYSCORE', key, '-inf', digits(now))
    if redis.call('ZCARD', key) >= limit then refuse(i, limit < 1 and 'never' or 'full') end
  else
    drop_dead(key, leases)
    local got = redis.call('HMGET', key, 'spent', 'held')
    if not got[1] then refuse(i, 'unknown') return end
    local used = tonumber(got[1]) + tonumber(got[2] or '0')
    if limit and used + take > limit then refuse(i, take > limit and 'never' or 'full') end
  end
end

local function take_it(i, kind, limit, take)
  local key, leases = KEYS[2 * i - 1], KEYS[2 * i]
  if kind == 'rate' then
    buckets[i][1] = buckets[i][1] + take * TOKEN
    keep(key, buckets[i])
  elseif kind == 'gauge' then
    lend_gauge(key, id, until_ms)
  else
    lend(key, leases, id, ARGV[3 * i + 3], until_ms)
  end
end

-- another limit counts from now on, so what has flowed off is written down for a refusal too
local function note(i, kind)
  if kind == 'rate' then keep(KEYS[2 * i - 1], buckets[i]) end
end

local function state(i, kind)
  local key = KEYS[2 * i - 1]
  if kind == 'rate' then
    local b = buckets[i]
    return {digits(b[1]), digits(b[3]), string.format('%.17g', b[4])}
  elseif kind == 'gauge' then
    return {redis.call('ZCARD', key)}
  end
  local got = redis.call('HMGET', key, 'spent', 'held')
  return {got[1] or '0', got[2] or '0'}
end

local function each(act)
  local found = {}
  for i = 1, count do
    found[i] = act(i, ARGV[3 * i + 1], tonumber(ARGV[3 * i + 2]), tonumber(ARGV[3 * i + 3])) or 0
  end
  return found
end

each(look)
each(verdict == 'ok' and take_it or note)
return {verdict, told, wait_ms, each(state)}
"""
)

# KEYS: the mark of the settled, then of each meter two; ARGV: now, hold, then kind, limit, take, used, era, share.
# Answers the spent amount of each meter, '' where there is none; nothing if it was settled before.
SETTLE = (
    _PRELUDE
    + """
local id = ARGV[2]
if not redis.call('SET', KEYS[1], '1', 'NX', 'PX', SETTLED_MS) then return {} end

local function correct(key, limit, more, era, share)
  local b = flow(key, limit)
  if more > 0 then
    b[1] = b[1] + more * TOKEN
  elseif more < 0 and b[3] == era then
    b[1] = b[1] - math.min(b[1], math.floor(-more * TOKEN * (b[4] / share)))
  end
  keep(key, b)
end

local function pay(purse, leases, used)
  give_back(purse, leases, id)
  if redis.call('HEXISTS', purse, 'spent') == 0 then return '' end
  redis.call('HINCRBY', purse, 'spent', used)
  redis.call('PEXPIRE', purse, KEEP_MS)
  return redis.call('HGET', purse, 'spent')
end

local spent = {}
for i = 1, (#ARGV - 2) / 6 do
  local at, key, second = 6 * i - 3, KEYS[2 * i], KEYS[2 * i + 1]
  local kind, limit = ARGV[at], tonumber(ARGV[at + 1])
  spent[i] = ''
  if kind == 'rate' then
    correct(key, limit, tonumber(ARGV[at + 3]) - tonumber(ARGV[at + 2]), tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5]))
  elseif kind == 'gauge' then
    redis.call('ZREM', key, id)
  else
    spent[i] = pay(key, second, ARGV[at + 3])
  end
end
return spent
"""
)

# KEYS and ARGV as RESERVE's after the mark of the settled; rates are left out.
RENEW = (
    _PRELUDE
    + """
local id, until_ms = ARGV[2], now + tonumber(ARGV[3])
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
for i = 1, (#ARGV - 3) / 3 do
  local key, second = KEYS[2 * i], KEYS[2 * i + 1]
  if ARGV[3 * i + 1] == 'gauge' then
    lend_gauge(key, id, until_ms)
  else
    lend(key, second, id, ARGV[3 * i + 3], until_ms)
  end
end
return 1
"""
)

# KEYS: a budget's two; ARGV: now, spent. Answers whether it was needed.
SEED = (
    _PRELUDE
    + """
local needed = redis.call('HSETNX', KEYS[1], 'spent', ARGV[2])
redis.call('PEXPIRE', KEYS[1], KEEP_MS)
return needed
"""
)
