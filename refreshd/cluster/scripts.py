"""The Lua scripts: each changes all or nothing, and does no harm when it is done twice.

A call that was not answered may still be carried out, even late: when Redis was
stopped, it reads what lay in its socket as soon as it goes on. So nothing counts,
adds up, or depends on being the first try.

Keys of other engines are named inside the scripts, from the sorted set of ids; all
lie in the slot of the declared ones, see `names`.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple


class Script(NamedTuple):
    """One script, and what Redis calls it."""

    text: bytes
    sha: str


def _script(text: str) -> Script:
    code = text.strip().encode()
    return Script(code, hashlib.sha1(code, usedforsecurity=False).hexdigest())


# KEYS engine, engines, memory. ARGV json, lease_ms, id, epoch, a fresh word, memory_ms, forget_ms.
# Returns {1, what stood there before or ""}, or {0, it} where a later epoch of the engine has the lease.
REGISTER = _script("""
local held = redis.call('GET', KEYS[1]) or ''
if held ~= '' then
  local ok, entry = pcall(cjson.decode, held)
  if ok and type(entry) == 'table' and (tonumber(entry.epoch) or 0) > tonumber(ARGV[4]) then
    return {0, held}
  end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if not redis.call('SET', KEYS[3], ARGV[5], 'NX', 'PX', ARGV[6]) then
  redis.call('PEXPIRE', KEYS[3], ARGV[6])
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[2], now + ARGV[2], ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', '(' .. string.format('%.0f', now - ARGV[7]))
return {1, held}
""")

# KEYS engine, engines. ARGV id, epoch, boot. Only the lease of this very incarnation is given up.
GIVE_UP = _script("""
local held = redis.call('GET', KEYS[1])
if not held then
  return 0
end
local ok, entry = pcall(cjson.decode, held)
if not ok or type(entry) ~= 'table' or entry.epoch ~= tonumber(ARGV[2]) or entry.boot ~= ARGV[3] then
  return 0
end
redis.call('ZREM', KEYS[2], ARGV[1])
return redis.call('DEL', KEYS[1])
""")

# KEYS engines, leader, memory. ARGV the prefix of engines' keys, how many to read at most.
# Returns {leader or "", memory or "", id, json, ms left, id, json, ms left, …}. Changes nothing.
READ = _script("""
local seen = {redis.call('GET', KEYS[2]) or '', redis.call('GET', KEYS[3]) or ''}
for _, id in ipairs(redis.call('ZREVRANGE', KEYS[1], 0, ARGV[2] - 1)) do
  local entry = redis.call('GET', ARGV[1] .. id)
  if entry then
    seen[#seen + 1] = id
    seen[#seen + 1] = entry
    seen[#seen + 1] = redis.call('PTTL', ARGV[1] .. id)
  end
end
return seen
""")

# KEYS leader. ARGV what of the value names the engine and its epoch, the term, lease_ms.
# Returns {2, value}: set anew; {1, value}: it was this engine's, and is prolonged; {0, value}: another's.
ACQUIRE = _script("""
local value = ARGV[1] .. ARGV[2]
if redis.call('SET', KEYS[1], value, 'NX', 'PX', ARGV[3]) then
  return {2, value}
end
local held = redis.call('GET', KEYS[1])
if string.sub(held, 1, #ARGV[1]) ~= ARGV[1] then
  return {0, held}
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return {1, held}
""")

# KEYS leader. ARGV the whole value, lease_ms. Returns what stands there now, "" for nothing.
RENEW = _script("""
local held = redis.call('GET', KEYS[1]) or ''
if held == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return held
""")

# KEYS leader. ARGV the whole value. Returns whether it stood there.
RESIGN = _script("""
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
""")
