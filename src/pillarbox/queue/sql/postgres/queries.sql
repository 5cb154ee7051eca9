-- Every query of the PostgreSQL store, found by name. Parameters are %(name)s. "now" is NULL for the database's own clock.
-- Whoever needs both locks a message's row (where it has several recipients), then `due`, then `recipient`, each in order.

-- name: insert_messages
INSERT INTO message (id, uid, reverse_path, body, smtputf8, ret, envid, subject, size_bytes, recipients, received_at,
                     expires_at, facts)
SELECT * FROM unnest(%(id)s::bigint[], %(uid)s::text[], %(reverse_path)s::text[], %(body)s::text[], %(smtputf8)s::boolean[],
                     %(ret)s::text[], %(envid)s::text[], %(subject)s::text[], %(size)s::bigint[], %(recipients)s::int[],
                     %(received_at)s::float8[], %(expires_at)s::float8[], %(facts)s::jsonb[]);

-- name: insert_contents
INSERT INTO content (message_id, part, octets)
SELECT * FROM unnest(%(id)s::bigint[], %(part)s::int[], %(octets)b::bytea[]);

-- name: insert_recipients
INSERT INTO recipient (message_id, number, address, state, attempts, next_hop, notify, orcpt)
SELECT * FROM unnest(%(id)s::bigint[], %(number)s::int[], %(address)s::text[], %(state)s::text[], %(attempts)s::int[],
                     %(next_hop)s::text[], %(notify)s::text[], %(orcpt)s::text[]);

-- name: restore_recipients
UPDATE recipient r SET last_reply = s.reply, last_stage = s.stage, delay_reported = s.delayed
FROM unnest(%(id)s::bigint[], %(number)s::int[], %(reply)s::text[], %(stage)s::text[], %(delayed)s::boolean[])
     AS s(id, number, reply, stage, delayed)
WHERE r.message_id = s.id AND r.number = s.number;

-- name: restore_attempts
INSERT INTO attempt (message_id, number, at, seconds, outcome, next_hop, remote, stage, reply, node)
SELECT s.*, %(me)s::bigint
FROM unnest(%(id)s::bigint[], %(number)s::int[], %(at)s::float8[], %(seconds)s::float8[], %(outcome)s::text[],
            %(next_hop)s::text[], %(remote)s::text[], %(stage)s::text[], %(reply)s::text[]) AS s;

-- name: insert_due
-- `after` in seconds from now; with `lease` it is in the caller's hands, for so long.
INSERT INTO due (message_id, number, next_hop, due_at, owner, lease_until, epoch, expires_at)
SELECT s.id, s.number, s.next_hop, c.now + s.after, CASE WHEN s.lease IS NOT NULL THEN %(me)s::bigint END, c.now + s.lease, s.epoch,
       s.expires_at
FROM unnest(%(id)s::bigint[], %(number)s::int[], %(next_hop)s::text[], %(after)s::float8[], %(lease)s::float8[], %(epoch)s::bigint[],
            %(expires_at)s::float8[]) AS s(id, number, next_hop, after, lease, epoch, expires_at),
     (SELECT coalesce(%(now)s::float8, extract(epoch FROM clock_timestamp())::float8) AS now) AS c;

-- name: lock_messages
SELECT id FROM message WHERE id = ANY(%(ids)s) AND recipients > 1 ORDER BY id FOR UPDATE;

-- name: lock_due
SELECT d.message_id, d.number
FROM due d JOIN unnest(%(id)s::bigint[], %(number)s::int[], %(epoch)s::bigint[]) AS s(id, number, epoch)
  ON d.message_id = s.id AND d.number = s.number AND d.epoch = s.epoch
WHERE d.owner = %(me)s ORDER BY 1, 2 FOR UPDATE OF d;

-- name: settle
-- What was cancelled or held meanwhile stays so: but a delivery is a fact all the same, and so is the refusal of what was
-- held (its sender is told). Which of them were still the caller's.
WITH s AS (
  SELECT * FROM unnest(%(id)s::bigint[], %(number)s::int[], %(epoch)s::bigint[], %(state)s::text[], %(after)s::float8[],
                       %(is_attempt)s::boolean[], %(next_hop)s::text[], %(reply)s::text[], %(stage)s::text[], %(delayed)s::boolean[])
    AS s(id, number, epoch, state, after, is_attempt, next_hop, reply, stage, delayed)
), mine AS (
  SELECT s.*, r.state AS before, r.state IN ('queued', 'deferred') AND s.after IS NOT NULL AS goes_on
  FROM s JOIN due d ON d.message_id = s.id AND d.number = s.number AND d.owner = %(me)s AND d.epoch = s.epoch
  JOIN recipient r ON r.message_id = s.id AND r.number = s.number
), settled AS (
  UPDATE recipient r
  SET state = CASE WHEN m.before IN ('queued', 'deferred') OR m.state = 'delivered'
                     OR (m.state IN ('bounced', 'expired') AND m.before = 'held') THEN m.state ELSE m.before END,
      attempts = r.attempts + m.is_attempt::int, next_hop = coalesce(m.next_hop, r.next_hop),
      last_reply = coalesce(m.reply, r.last_reply), last_stage = coalesce(m.stage, r.last_stage),
      delay_reported = r.delay_reported OR m.delayed
  FROM mine m WHERE r.message_id = m.id AND r.number = m.number
), again AS (
  UPDATE due d
  SET owner = NULL, lease_until = NULL, next_hop = coalesce(m.next_hop, d.next_hop),
      due_at = coalesce(%(now)s::float8, extract(epoch FROM clock_timestamp())::float8) + m.after
  FROM mine m WHERE d.message_id = m.id AND d.number = m.number AND m.goes_on
), gone AS (
  DELETE FROM due d USING mine m WHERE d.message_id = m.id AND d.number = m.number AND NOT m.goes_on
)
SELECT id, number FROM mine;

-- name: insert_attempts
-- Before the settle that they belong to. What comes with an old lease is history all the same, and was perhaps sent twice.
INSERT INTO attempt (message_id, number, at, seconds, outcome, next_hop, remote, stage, reply, node)
SELECT s.id, s.number, s.at, s.seconds, CASE WHEN d.message_id IS NULL THEN 'ambiguous' ELSE s.outcome END, s.next_hop, s.remote, s.stage,
       CASE WHEN d.message_id IS NULL THEN 'too late, another node had it: ' || coalesce(s.reply, '') ELSE s.reply END, %(me)s
FROM unnest(%(id)s::bigint[], %(number)s::int[], %(epoch)s::bigint[], %(at)s::float8[], %(seconds)s::float8[], %(outcome)s::text[],
            %(next_hop)s::text[], %(remote)s::text[], %(stage)s::text[], %(reply)s::text[])
     AS s(id, number, epoch, at, seconds, outcome, next_hop, remote, stage, reply)
LEFT JOIN due d ON d.message_id = s.id AND d.number = s.number AND d.owner = %(me)s AND d.epoch = s.epoch;

-- name: finish
WITH done AS (
  INSERT INTO finished (message_id, finished_at)
  SELECT u.id, coalesce(%(now)s::float8, extract(epoch FROM clock_timestamp())::float8) FROM unnest(%(ids)s::bigint[]) AS u(id)
  WHERE EXISTS (SELECT 1 FROM message WHERE message.id = u.id)
    AND NOT EXISTS (SELECT 1 FROM recipient r WHERE r.message_id = u.id AND r.state IN ('queued', 'deferred', 'held'))
    AND NOT EXISTS (SELECT 1 FROM due d WHERE d.message_id = u.id)
  ON CONFLICT DO NOTHING RETURNING message_id
)
DELETE FROM content USING done WHERE content.message_id = done.message_id;

-- name: take
-- What claims have in common: the leases.
UPDATE due d SET owner = %(me)s, lease_until = c.now + %(lease)s, epoch = %(epoch)s
FROM wanted w, recipient r, c
WHERE d.message_id = w.message_id AND d.number = w.number AND r.message_id = w.message_id AND r.number = w.number
RETURNING d.message_id, d.number, d.due_at, d.lease_until, r.address, r.state, r.attempts, r.notify, r.orcpt, r.next_hop, r.last_reply,
          r.last_stage, r.delay_reported;

-- name: as_far_as_there_is_room
-- All due recipients of the messages in `first`, one attempt takes them together; then their leases.
), sized AS (
  SELECT f.message_id, sum(least(m.size_bytes, %(small)s)) OVER (ORDER BY f.due_at, f.message_id) - least(m.size_bytes, %(small)s) AS before
  FROM (SELECT message_id, min(due_at) AS due_at FROM first GROUP BY 1) f JOIN message m ON m.id = f.message_id
), wanted AS MATERIALIZED (
  SELECT d.message_id, d.number FROM due d, c
  WHERE d.message_id IN (SELECT message_id FROM sized WHERE before <= %(max_bytes)s)
    AND d.owner IS NULL AND d.due_at <= c.now AND d.next_hop <> ALL (%(skip)s::text[])
  FOR UPDATE OF d SKIP LOCKED
)
-- then: take

-- name: claim
-- One statement: the recipients that are due first, then all due recipients of their messages (one attempt takes them
-- together), as long as their contents are within the bound, but of one message at least. Of the first `within` in line.
WITH c AS (
  SELECT coalesce(%(now)s::float8, extract(epoch FROM clock_timestamp())::float8) AS now
), first AS MATERIALIZED (
  SELECT message_id, due_at FROM due, c
  WHERE owner IS NULL AND due_at <= c.now AND next_hop <> ALL (%(skip)s::text[])
    AND due_at <= CASE WHEN %(within)s::int IS NULL THEN 'infinity'::float8 ELSE (
      SELECT max(p.due_at) FROM (SELECT due_at FROM due WHERE owner IS NULL ORDER BY due_at LIMIT %(within)s::int) p) END
  ORDER BY due_at LIMIT %(limit)s FOR UPDATE OF due SKIP LOCKED
-- then: as_far_as_there_is_room


-- name: claim_behind
-- As claim, where what is due first is for next hops that are skipped: hop by hop from the index, beginning at `from`, so
-- that a million rows of a hop that takes nothing are stepped over and not walked through.
WITH RECURSIVE c AS (
  SELECT coalesce(%(now)s::float8, extract(epoch FROM clock_timestamp())::float8) AS now
), hops AS (
  (SELECT next_hop FROM due WHERE owner IS NULL AND next_hop >= %(from)s
     -- Only where the first in line are so many that there may be others behind them.
     AND (SELECT count(*) FROM (SELECT 1 FROM due p, c WHERE p.owner IS NULL AND p.due_at <= c.now LIMIT %(within)s::int) p) = %(within)s::int
   ORDER BY next_hop LIMIT 1)
  UNION ALL
  SELECT (SELECT d.next_hop FROM due d WHERE d.owner IS NULL AND d.next_hop > h.next_hop ORDER BY d.next_hop LIMIT 1)
  FROM hops h WHERE h.next_hop IS NOT NULL
), first AS (
  SELECT d.message_id, d.due_at
  FROM hops h, c,
       LATERAL (SELECT message_id, due_at FROM due d WHERE d.owner IS NULL AND d.next_hop = h.next_hop AND d.due_at <= c.now
                ORDER BY d.due_at LIMIT %(limit)s) d
  WHERE h.next_hop IS NOT NULL AND h.next_hop <> ALL (%(skip)s::text[]) LIMIT %(limit)s
-- then: as_far_as_there_is_room


-- name: claim_expired
WITH c AS (
  SELECT coalesce(%(now)s::float8, extract(epoch FROM clock_timestamp())::float8) AS now
), first AS MATERIALIZED (
  SELECT d.message_id FROM due d, c
  WHERE d.owner IS NULL AND d.due_at <= c.now AND (%(only)s::text[] IS NULL OR d.next_hop = ANY (%(only)s::text[]))
    AND d.expires_at <= c.now
  ORDER BY d.expires_at LIMIT %(limit)s FOR UPDATE OF d SKIP LOCKED
), wanted AS MATERIALIZED (
  SELECT d.message_id, d.number FROM due d, c
  WHERE d.message_id IN (SELECT message_id FROM first) AND d.owner IS NULL AND d.due_at <= c.now
    AND (%(only)s::text[] IS NULL OR d.next_hop = ANY (%(only)s::text[]))
  FOR UPDATE OF d SKIP LOCKED
)
-- then: take


-- name: messages
SELECT m.id, m.uid, m.reverse_path, m.body, m.smtputf8, m.ret, m.envid, m.subject, m.size_bytes, m.received_at, m.expires_at, m.facts,
       c.octets, (SELECT count(*) FROM content p WHERE p.message_id = m.id)
FROM message m LEFT JOIN content c ON c.message_id = m.id AND c.part = 0 WHERE m.id = ANY(%(ids)s);

-- name: content_part
SELECT octets FROM content WHERE message_id = %(id)s AND part = %(part)s;

-- name: quarantine
UPDATE recipient SET state = 'held', last_reply = '451 4.3.0 the content is missing from the queue' WHERE message_id = %(id)s
  AND number = ANY(%(numbers)s);

-- name: drop_due
DELETE FROM due WHERE message_id = %(id)s AND number = ANY(%(numbers)s);

-- name: put_off
UPDATE due SET owner = NULL, lease_until = NULL,
  due_at = coalesce(%(now)s::float8, extract(epoch FROM clock_timestamp())::float8) + %(after)s
WHERE message_id = %(id)s AND number = ANY(%(numbers)s);

-- name: renew
UPDATE due SET lease_until = coalesce(%(now)s::float8, extract(epoch FROM clock_timestamp())::float8) + %(lease)s
WHERE owner = %(me)s AND message_id = ANY(%(ids)s);

-- name: dead_nodes
-- Nodes that have not been heard of; whoever finds them locks their rows until it has taken their leases.
SELECT id, name FROM node WHERE alive_until < extract(epoch FROM clock_timestamp()) AND id <> %(me)s FOR UPDATE SKIP LOCKED;

-- name: forget_nodes
DELETE FROM node WHERE id = ANY(%(nodes)s);

-- name: forget_slots
-- Also of nodes that were held for dead, went on for a moment, and then died.
DELETE FROM slot WHERE node = ANY(%(nodes)s) OR NOT EXISTS (SELECT 1 FROM node WHERE node.id = slot.node);

-- name: lost_messages
-- Messages with leases of these nodes, of nodes that nobody knows, and such as nobody has renewed; locked. Whoever has one
-- locked is at it, or hangs: nobody waits for that here, the next beat looks again.
SELECT m.id FROM message m WHERE m.id IN (
  SELECT d.message_id FROM due d
  WHERE d.owner IS NOT NULL AND (d.owner = ANY(%(nodes)s)
    OR d.lease_until < coalesce(%(now)s::float8, extract(epoch FROM clock_timestamp())::float8)
    OR (d.owner <> %(me)s AND NOT EXISTS (SELECT 1 FROM node WHERE node.id = d.owner)))
  LIMIT %(limit)s)
ORDER BY m.id FOR UPDATE SKIP LOCKED;

-- name: lost_leases
-- Theirs, once the rows of those messages are locked: whoever settles another recipient of one has finished, or will wait.
SELECT d.message_id, d.number FROM due d
WHERE d.message_id = ANY(%(ids)s) AND d.owner IS NOT NULL AND (d.owner = ANY(%(nodes)s)
  OR d.lease_until < coalesce(%(now)s::float8, extract(epoch FROM clock_timestamp())::float8)
  OR (d.owner <> %(me)s AND NOT EXISTS (SELECT 1 FROM node WHERE node.id = d.owner)))
ORDER BY 1, 2 FOR UPDATE SKIP LOCKED;

-- name: free_attempts
INSERT INTO attempt (message_id, number, at, seconds, outcome, next_hop, reply, node)
SELECT d.message_id, d.number, coalesce(%(now)s::float8, extract(epoch FROM clock_timestamp())::float8), 0, 'ambiguous', d.next_hop,
       'the server stopped with this in hand: it may have been sent', d.owner
FROM due d JOIN unnest(%(id)s::bigint[], %(number)s::int[]) AS s(id, number) ON d.message_id = s.id AND d.number = s.number;

-- name: free_recipients
UPDATE recipient r SET attempts = r.attempts + 1
FROM unnest(%(id)s::bigint[], %(number)s::int[]) AS s(id, number)
WHERE r.message_id = s.id AND r.number = s.number AND r.state IN ('queued', 'deferred');

-- name: free_due
-- What was held or cancelled meanwhile is nobody's.
WITH s AS (
  SELECT s.id, s.number, r.state FROM unnest(%(id)s::bigint[], %(number)s::int[]) AS s(id, number)
  JOIN recipient r ON r.message_id = s.id AND r.number = s.number
), gone AS (
  DELETE FROM due d USING s WHERE d.message_id = s.id AND d.number = s.number AND s.state NOT IN ('queued', 'deferred')
)
UPDATE due d SET owner = NULL, lease_until = NULL, epoch = 0,
  due_at = coalesce(%(now)s::float8, extract(epoch FROM clock_timestamp())::float8)
FROM s WHERE d.message_id = s.id AND d.number = s.number AND s.state IN ('queued', 'deferred');

-- name: release_unknown
-- Claimed, or accepted into the caller's hands, by a transaction whose answer it never had.
UPDATE due d SET owner = NULL, lease_until = NULL
FROM unnest(%(id)s::bigint[], %(number)s::int[], %(epoch)s::bigint[]) AS s(id, number, epoch)
WHERE d.message_id = s.id AND d.number = s.number AND d.epoch = s.epoch AND d.owner = %(me)s;

-- name: mark
INSERT INTO mark (session, number, at) VALUES (%(session)s, %(number)s, extract(epoch FROM clock_timestamp()))
ON CONFLICT (session) DO UPDATE SET number = excluded.number, at = excluded.at;

-- name: marked
SELECT number FROM mark WHERE session = %(session)s;

-- name: forget_marks
-- Nobody asks for long what became of a commit.
DELETE FROM mark WHERE at < extract(epoch FROM clock_timestamp()) - 86400;

-- name: in_hand
-- With whether it is still to be sent.
SELECT d.message_id, d.number, r.state IN ('queued', 'deferred') FROM due d
JOIN recipient r ON r.message_id = d.message_id AND r.number = d.number WHERE d.owner = %(me)s AND d.message_id = ANY(%(ids)s);

-- name: lock_all_due
SELECT message_id, number FROM due WHERE message_id = ANY(%(ids)s) ORDER BY 1, 2 FOR UPDATE;

-- name: lock_all_messages
SELECT id FROM message WHERE id = ANY(%(ids)s) ORDER BY id FOR UPDATE;

-- name: hold
UPDATE recipient SET state = 'held' WHERE message_id = ANY(%(ids)s) AND state IN ('queued', 'deferred') RETURNING message_id;

-- name: cancel
UPDATE recipient SET state = 'cancelled' WHERE message_id = ANY(%(ids)s) AND state IN ('queued', 'deferred', 'held')
RETURNING message_id;

-- name: withdraw_due
-- What is in nobody's hands is not due any more.
DELETE FROM due d USING recipient r
WHERE d.message_id = ANY(%(ids)s) AND d.owner IS NULL AND r.message_id = d.message_id AND r.number = d.number
  AND r.state IN ('held', 'cancelled');

-- name: release
WITH released AS (
  UPDATE recipient SET state = CASE WHEN attempts > 0 THEN 'deferred' ELSE 'queued' END
  WHERE message_id = ANY(%(ids)s) AND state = 'held' RETURNING message_id, number, next_hop
), made AS (
  INSERT INTO due (message_id, number, next_hop, due_at, expires_at)
  SELECT r.message_id, r.number, coalesce(r.next_hop, ''), coalesce(%(now)s::float8, extract(epoch FROM clock_timestamp())::float8),
         m.expires_at
  FROM released r JOIN message m ON m.id = r.message_id
  ON CONFLICT DO NOTHING
)
SELECT message_id FROM released;

-- name: retry
UPDATE due SET due_at = coalesce(%(now)s::float8, extract(epoch FROM clock_timestamp())::float8)
WHERE message_id = ANY(%(ids)s) AND owner IS NULL RETURNING message_id;

-- name: reroute
WITH free AS (
  UPDATE due SET due_at = coalesce(%(now)s::float8, extract(epoch FROM clock_timestamp())::float8), next_hop = ''
  WHERE message_id = ANY(%(ids)s) AND owner IS NULL RETURNING message_id, number
), forgotten AS (
  UPDATE recipient r SET next_hop = NULL FROM free f WHERE r.message_id = f.message_id AND r.number = f.number
)
SELECT message_id FROM free;

-- name: wake
WITH back AS (
  SELECT d.message_id, d.number FROM due d JOIN recipient r ON r.message_id = d.message_id AND r.number = d.number
  WHERE d.next_hop = %(next_hop)s AND d.owner IS NULL AND r.state IN ('queued', 'deferred')
    AND (r.last_stage = ANY(%(stages)s::text[]) OR (r.last_stage IS NULL AND r.attempts = 0))
  FOR UPDATE OF d SKIP LOCKED
)
UPDATE due d SET due_at = coalesce(%(now)s::float8, extract(epoch FROM clock_timestamp())::float8)
FROM back b WHERE d.message_id = b.message_id AND d.number = b.number;

-- name: bound_times
-- Due times beyond the longest pause are now; ages that cannot be right begin anew. How many rows.
WITH c AS (
  SELECT coalesce(%(now)s::float8, extract(epoch FROM clock_timestamp())::float8) AS now
), late AS (
  UPDATE due SET due_at = c.now FROM c WHERE owner IS NULL AND due_at > c.now + %(longest)s::float8 RETURNING 1
), aged AS (
  UPDATE message m SET expires_at = c.now + (m.expires_at - m.received_at), received_at = c.now FROM c
  WHERE m.id IN (SELECT message_id FROM due)
    AND (m.received_at > c.now + %(ahead)s::float8 OR (m.received_at < %(earliest)s::float8 AND c.now > %(earliest)s::float8))
  RETURNING m.id
)
SELECT (SELECT count(*) FROM late), array(SELECT id FROM aged);

-- name: copy_expiry
UPDATE due d SET expires_at = m.expires_at FROM message m WHERE m.id = d.message_id AND m.id = ANY (%(ids)s::bigint[]);

-- name: counts
SELECT state, count(*) FROM recipient GROUP BY state;

-- name: next_hops
SELECT coalesce(r.next_hop, ''), r.state, count(*), min(CASE WHEN d.owner IS NULL THEN d.due_at END)
FROM recipient r LEFT JOIN due d ON d.message_id = r.message_id AND d.number = r.number
WHERE r.state IN ('queued', 'deferred', 'held') GROUP BY 1, 2 ORDER BY 3 DESC, 1 LIMIT %(limit)s;

-- name: next_due
-- When, and how far from now by the database's clock.
SELECT due_at, due_at - extract(epoch FROM clock_timestamp())::float8
FROM (SELECT due_at, next_hop FROM due WHERE owner IS NULL ORDER BY due_at LIMIT %(within)s) first
WHERE next_hop <> ALL (%(skip)s::text[]) ORDER BY due_at LIMIT 1;

-- name: next_due_behind
-- As next_due, where those that are due first are for next hops that are skipped: see claim_behind.
WITH RECURSIVE hops AS (
  (SELECT next_hop, due_at FROM due WHERE owner IS NULL ORDER BY next_hop, due_at LIMIT 1)
  UNION ALL
  SELECT f.next_hop, f.due_at FROM hops h,
    LATERAL (SELECT d.next_hop, d.due_at FROM due d WHERE d.owner IS NULL AND d.next_hop > h.next_hop
             ORDER BY d.next_hop, d.due_at LIMIT 1) f
)
SELECT min(due_at), min(due_at) - extract(epoch FROM clock_timestamp())::float8
FROM hops WHERE next_hop <> ALL (%(skip)s::text[]) HAVING count(*) > 0;

-- name: recipients_of
SELECT r.message_id, r.number, r.address, r.state, r.notify, r.orcpt, r.attempts, CASE WHEN d.owner IS NULL THEN d.due_at ELSE d.lease_until END,
       r.next_hop, r.last_reply, r.last_stage, r.delay_reported, d.owner IS NOT NULL
FROM recipient r LEFT JOIN due d ON d.message_id = r.message_id AND d.number = r.number
WHERE r.message_id = ANY(%(ids)s) ORDER BY r.message_id, r.number;

-- name: attempts_of
SELECT number, at, seconds, outcome, next_hop, remote, stage, reply FROM attempt WHERE message_id = %(id)s ORDER BY at, number;

-- name: get_flag
SELECT value FROM flag WHERE name = %(name)s;

-- name: set_flag
INSERT INTO flag (name, value) VALUES (%(name)s, %(value)s) ON CONFLICT (name) DO UPDATE SET value = excluded.value;

-- name: delete_flag
DELETE FROM flag WHERE name = %(name)s;

-- name: purge
WITH old AS (
  (SELECT message_id FROM finished WHERE finished_at < %(before)s ORDER BY finished_at LIMIT %(limit)s)
  UNION
  (SELECT message_id FROM finished ORDER BY finished_at DESC LIMIT %(limit)s OFFSET %(keep)s)
), gone AS (
  DELETE FROM finished f USING old WHERE f.message_id = old.message_id RETURNING f.message_id
), recipients AS (
  DELETE FROM recipient r USING gone WHERE r.message_id = gone.message_id
), attempts AS (
  DELETE FROM attempt a USING gone WHERE a.message_id = gone.message_id
)
DELETE FROM message m USING gone WHERE m.id = gone.message_id;

-- name: notify
SELECT pg_notify('pillarbox', %(what)s);

-- name: new_node
INSERT INTO node (id, name, version, schema, started_at, beat_at, alive_until)
SELECT %(me)s, %(name)s, %(version)s, %(schema)s, now, now, now + %(lease)s FROM (SELECT extract(epoch FROM clock_timestamp())::float8 AS now) c
ON CONFLICT (id) DO UPDATE SET beat_at = excluded.beat_at, alive_until = excluded.alive_until
RETURNING beat_at;

-- name: beat
UPDATE node SET beat_at = c.now, alive_until = c.now + %(lease)s
FROM (SELECT extract(epoch FROM clock_timestamp())::float8 AS now) c WHERE id = %(me)s RETURNING c.now;

-- name: nodes
SELECT id, name, version, schema, started_at, beat_at, alive_until,
       (SELECT count(*) FROM due WHERE owner = node.id) FROM node ORDER BY id;

-- name: health
-- For those who run the database: dead rows of the hot table, the age of the oldest snapshot, the lag of what is due.
SELECT (SELECT coalesce(n_dead_tup, 0) FROM pg_stat_user_tables WHERE relid = 'due'::regclass),
       (SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)::float8 FROM pg_stat_activity
        WHERE backend_xmin IS NOT NULL AND datname = current_database() AND pid <> pg_backend_pid()),
       (SELECT coalesce(greatest(extract(epoch FROM clock_timestamp())::float8 - min(due_at), 0), 0) FROM due WHERE owner IS NULL);

-- name: lock_slots
SELECT pg_advisory_xact_lock(1885957740, 1);

-- name: lease_slots
-- What a node uses it keeps; beyond that its fair part where others want more, and whatever is free where nobody does.
WITH s AS (
  SELECT * FROM unnest(%(next_hop)s::text[], %(wanted)s::int[], %(used)s::int[]) AS s(next_hop, wanted, used)
), others AS (
  SELECT o.next_hop, sum(o.slots) AS taken, count(*) FILTER (WHERE o.wanted > 0) AS wanting,
         count(*) FILTER (WHERE o.wanted > o.slots) AS hungry
  FROM slot o JOIN s USING (next_hop) WHERE o.node <> %(me)s GROUP BY 1
), granted AS (
  SELECT s.next_hop, s.wanted,
    greatest(s.used, least(s.wanted, %(limit)s - coalesce(o.taken, 0),
      CASE WHEN coalesce(o.hungry, 0) > 0 THEN greatest(%(limit)s / (o.wanting + 1), 1) ELSE %(limit)s END), 0)::int AS slots
  FROM s LEFT JOIN others o USING (next_hop)
), kept AS (
  INSERT INTO slot (next_hop, node, slots, wanted)
  SELECT next_hop, %(me)s, slots, wanted FROM granted WHERE slots > 0 OR wanted > 0
  ON CONFLICT (next_hop, node) DO UPDATE SET slots = excluded.slots, wanted = excluded.wanted
), gone AS (
  DELETE FROM slot d USING granted g WHERE d.next_hop = g.next_hop AND d.node = %(me)s AND g.slots = 0 AND g.wanted = 0
)
SELECT next_hop, slots FROM granted;

-- name: lease_turns
-- Behind lock_slots, in a statement of its own, so that it sees what the last one has left. A node gets what the rate allows
-- until the horizon, and where others send, too, its part of what it allows until it asks again. `early` is how long before
-- its time the first one is given.
WITH t AS (SELECT extract(epoch FROM clock_timestamp())::float8 AS now),
s AS (
  SELECT * FROM unnest(%(next_hop)s::text[], %(wanted)s::int[]) AS s(next_hop, wanted)
), begun AS (
  -- What was noted at a slower rate than today's, or by a clock that went back, binds nobody.
  SELECT s.next_hop, s.wanted, t.now,
         least(greatest(coalesce(p.next_at, 0), t.now), t.now + %(horizon)s + %(interval)s) AS start,
         (SELECT count(*) FROM slot o WHERE o.next_hop = s.next_hop AND o.slots > 0 AND o.node <> %(me)s) AS others
  FROM s CROSS JOIN t LEFT JOIN pace p USING (next_hop)
), given AS (
  SELECT next_hop, start, now, greatest(least(wanted,
    floor((now + %(horizon)s - start) / %(interval)s) + 1,
    CASE WHEN others > 0 THEN ceil(%(every)s / %(interval)s / (others + 1)) END), 0)::int AS turns
  FROM begun
), kept AS (
  INSERT INTO pace (next_hop, next_at) SELECT next_hop, start + turns * %(interval)s FROM given WHERE turns > 0
  ON CONFLICT (next_hop) DO UPDATE SET next_at = excluded.next_at
)
SELECT next_hop, start - now AS early, turns FROM given;

-- name: forget_pace
DELETE FROM pace WHERE next_hop IN (
  SELECT next_hop FROM pace WHERE next_at < extract(epoch FROM clock_timestamp()) - 60 FOR UPDATE SKIP LOCKED
);
