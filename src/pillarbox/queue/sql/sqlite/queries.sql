-- Every query of the SQLite store, found by name.

-- `VALUES :rows` stands for as many rows as a batch has; their columns are named in the comment above.

-- name: dropped_table
-- The spool files of messages that are finished; read and emptied by `purge`.
CREATE TEMP TABLE dropped (spool TEXT NOT NULL);

-- name: insert_messages
INSERT INTO message (id, uid, reverse_path, body, smtputf8, ret, envid, subject, size_bytes, received_at, expires_at,
                     facts, spool, spool_offset, spool_bytes)
VALUES :rows;

-- name: insert_final_messages
INSERT INTO message (id, uid, reverse_path, body, smtputf8, ret, envid, subject, size_bytes, received_at, expires_at,
                     facts, spool, spool_offset, spool_bytes, finished_at)
VALUES :rows;

-- name: insert_contents
INSERT INTO content (message_id, octets) VALUES :rows;

-- name: insert_recipients
INSERT INTO recipient (message_id, number, address, state, due_at, leased, attempts, notify, orcpt, next_hop)
VALUES :rows;

-- name: settle_recipients
-- 1 id, 2 number, 3 state, 4 due_at, 5 is an attempt, 6 next_hop, 7 reply, 8 stage, 9 delay is reported
UPDATE recipient
SET state = s.column3, due_at = s.column4, leased = 0, attempts = attempts + s.column5,
    next_hop = coalesce(s.column6, recipient.next_hop), last_reply = coalesce(s.column7, last_reply),
    last_stage = coalesce(s.column8, last_stage), delay_reported = delay_reported OR s.column9
FROM (VALUES :rows) AS s
WHERE message_id = s.column1 AND recipient.number = s.column2 AND recipient.state IN ('queued', 'deferred');

-- name: settle_steered
-- As above. Cancelled or held while it was in flight: a delivery is a fact all the same, and so is the refusal of what
-- was held (its sender is told); anything else changes nothing.
UPDATE recipient
SET state = CASE WHEN s.column3 = 'delivered' OR (s.column3 IN ('bounced', 'expired') AND recipient.state = 'held')
                 THEN s.column3 ELSE recipient.state END, leased = 0, due_at = NULL,
    attempts = attempts + s.column5, last_reply = coalesce(s.column7, last_reply),
    last_stage = coalesce(s.column8, last_stage)
FROM (VALUES :rows) AS s
WHERE message_id = s.column1 AND recipient.number = s.column2 AND recipient.leased
  AND recipient.state IN ('cancelled', 'held');

-- name: insert_attempts
INSERT INTO attempt (message_id, number, at, seconds, outcome, next_hop, remote, stage, reply) VALUES :rows;

-- name: finish_messages
-- 1 id, 2 now
UPDATE message SET finished_at = m.column2
FROM (VALUES :rows) AS m
WHERE id = m.column1 AND finished_at IS NULL AND NOT EXISTS (
  SELECT 1 FROM recipient WHERE message_id = message.id AND (state IN ('queued', 'deferred', 'held') OR leased)
)
RETURNING id, spool;

-- name: drop_contents
DELETE FROM content WHERE message_id IN (VALUES :rows);

-- name: note_dropped
INSERT INTO dropped (spool) VALUES :rows;

-- name: dropped
SELECT spool FROM dropped;

-- name: forget_dropped
DELETE FROM dropped;

-- name: highest_id
SELECT coalesce(max(id), 0) FROM message;

-- name: due_messages
-- 1 now, 2 how many, 3 next hops that take no more, 4 how many of the first in line are looked at
-- The messages of the recipients that are due first. Grouped, for one attempt takes all due recipients of a message.
SELECT message_id, min(due_at) AS first FROM (
  SELECT message_id, due_at, next_hop FROM recipient INDEXED BY recipient_due
  WHERE due_at IS NOT NULL AND due_at <= ?1 ORDER BY due_at LIMIT ?4
) WHERE coalesce(next_hop, '') NOT IN (SELECT value FROM json_each(?3))
GROUP BY message_id ORDER BY first LIMIT ?2;

-- name: due_behind
-- 1 now, 2 how many, 3 next hops that take no more, 4 the next hop to begin at
-- As above where the first in line are all for next hops that are skipped: hop by hop from the index, so that a million
-- rows of a hop that takes nothing are stepped over and not walked through.
WITH RECURSIVE hops (next_hop) AS (
  SELECT (SELECT coalesce(next_hop, '') FROM recipient INDEXED BY recipient_next_hop
          WHERE due_at IS NOT NULL AND NOT leased AND coalesce(next_hop, '') >= ?4 ORDER BY coalesce(next_hop, '') LIMIT 1)
  UNION ALL
  SELECT (SELECT coalesce(r.next_hop, '') FROM recipient AS r INDEXED BY recipient_next_hop
          WHERE r.due_at IS NOT NULL AND NOT r.leased AND coalesce(r.next_hop, '') > hops.next_hop
          ORDER BY coalesce(r.next_hop, '') LIMIT 1)
  FROM hops WHERE hops.next_hop IS NOT NULL
)
SELECT r.message_id, hops.next_hop
FROM hops CROSS JOIN recipient AS r INDEXED BY recipient_next_hop
  ON coalesce(r.next_hop, '') = hops.next_hop AND r.due_at IS NOT NULL AND NOT r.leased AND r.due_at <= ?1
WHERE hops.next_hop NOT IN (SELECT value FROM json_each(?3))
LIMIT ?2;

-- name: expired_messages
SELECT message_id, min(due_at) AS first FROM recipient JOIN message ON message.id = message_id
WHERE due_at IS NOT NULL AND NOT leased AND due_at <= ?1 AND expires_at <= ?1
  AND (?3 OR coalesce(next_hop, '') IN (SELECT value FROM json_each(?4)))
GROUP BY message_id ORDER BY first LIMIT ?2;

-- name: lease_recipients
UPDATE recipient SET due_at = ?, leased = 1
WHERE message_id = ? AND due_at IS NOT NULL AND due_at <= ? AND state IN ('queued', 'deferred')
  AND coalesce(next_hop, '') NOT IN (SELECT value FROM json_each(?))
  AND (? OR coalesce(next_hop, '') IN (SELECT value FROM json_each(?)))
RETURNING number, address, state, attempts, notify, orcpt, next_hop, last_reply, last_stage, delay_reported;

-- name: message_by_id
SELECT uid, reverse_path, body, smtputf8, ret, envid, subject, size_bytes, received_at, expires_at, facts, spool,
       spool_offset, spool_bytes
FROM message WHERE id = ?;

-- name: content_by_id
SELECT octets FROM content WHERE message_id = ?;

-- name: message_by_uid
SELECT id, spool, spool_offset, spool_bytes FROM message WHERE uid = ?;

-- name: renew
UPDATE recipient SET due_at = ? WHERE message_id = ? AND leased AND due_at IS NOT NULL;

-- name: quarantine
UPDATE recipient SET state = 'held', due_at = NULL, leased = 0, last_reply = ?
WHERE message_id = ? AND state IN ('queued', 'deferred');

-- name: recover_attempts
INSERT INTO attempt (message_id, number, at, seconds, outcome, next_hop, remote, stage, reply)
SELECT message_id, number, ?1, 0, 'ambiguous', next_hop, NULL, NULL,
       'the server stopped with this in hand: it may have been sent'
FROM recipient INDEXED BY recipient_due WHERE due_at IS NOT NULL AND leased;

-- name: recover_leases
UPDATE recipient SET leased = 0, due_at = ?1, attempts = attempts + 1
WHERE due_at IS NOT NULL AND leased;

-- name: recover_steered
-- Cancelled or held while in flight, then the crash.
UPDATE recipient SET leased = 0 WHERE due_at IS NULL AND leased AND state IN ('cancelled', 'held')
RETURNING message_id, number, next_hop;

-- name: recipients_of
SELECT number, address, state, notify, orcpt, attempts, due_at, next_hop, last_reply, last_stage, delay_reported, leased
FROM recipient WHERE message_id = ? ORDER BY number;

-- name: attempts_of
SELECT number, at, seconds, outcome, next_hop, remote, stage, reply
FROM attempt WHERE message_id = ? ORDER BY at, rowid;

-- name: hold
UPDATE recipient SET state = 'held', due_at = NULL
WHERE message_id = ? AND state IN ('queued', 'deferred');

-- name: release
UPDATE recipient
SET state = CASE WHEN attempts > 0 THEN 'deferred' ELSE 'queued' END, due_at = CASE WHEN leased THEN ?1 + 3600 ELSE ?1 END
WHERE message_id = ?2 AND state = 'held';

-- name: retry
UPDATE recipient SET due_at = ?1 WHERE message_id = ?2 AND state IN ('queued', 'deferred') AND NOT leased;

-- name: reroute
UPDATE recipient SET due_at = ?1, next_hop = NULL
WHERE message_id = ?2 AND state IN ('queued', 'deferred') AND NOT leased;

-- name: cancel
UPDATE recipient SET state = 'cancelled', due_at = NULL
WHERE message_id = ? AND state IN ('queued', 'deferred', 'held');

-- name: wake
UPDATE recipient SET due_at = ?1
WHERE due_at IS NOT NULL AND NOT leased AND state IN ('queued', 'deferred') AND next_hop = ?2
  AND (last_stage IN (SELECT value FROM json_each(?3)) OR (last_stage IS NULL AND attempts = 0));

-- name: bound_due
-- 1 now, 2 the latest due time that can be right. A lease's end is set anew by `renew`.
UPDATE recipient INDEXED BY recipient_due SET due_at = ?1 WHERE due_at IS NOT NULL AND due_at > ?2 AND NOT leased;

-- name: bound_age
-- 1 now, 2 the earliest and 3 the latest time of reception that can be right
UPDATE message SET expires_at = ?1 + (expires_at - received_at), received_at = ?1
WHERE finished_at IS NULL AND NOT received_at BETWEEN ?2 AND ?3;

-- name: live_longer
-- 1 seconds, 2 the earliest and 3 the latest time of reception that can be right
UPDATE message SET expires_at = expires_at + ?1 WHERE finished_at IS NULL AND received_at BETWEEN ?2 AND ?3;

-- name: counts
SELECT state, count(*) FROM recipient GROUP BY state;

-- name: next_hops
-- The due time of a leased recipient is the end of its lease: no attempt begins then.
SELECT coalesce(next_hop, ''), state, count(*), min(CASE WHEN leased THEN NULL ELSE due_at END) FROM recipient
WHERE state IN ('queued', 'deferred', 'held') GROUP BY 1, 2 ORDER BY 3 DESC, 1 LIMIT ?;

-- name: next_due
-- 1 next hops that are skipped, 2 how many of the first in line are looked at
SELECT due_at FROM (
  SELECT due_at, next_hop FROM recipient INDEXED BY recipient_due WHERE due_at IS NOT NULL ORDER BY due_at LIMIT ?2
) WHERE coalesce(next_hop, '') NOT IN (SELECT value FROM json_each(?1)) LIMIT 1;

-- name: next_due_behind
-- As above where all of those are for next hops that are skipped: see due_behind. What is in hand comes last.
WITH RECURSIVE hops (next_hop) AS (
  SELECT (SELECT coalesce(next_hop, '') FROM recipient INDEXED BY recipient_next_hop
          WHERE due_at IS NOT NULL AND NOT leased ORDER BY coalesce(next_hop, '') LIMIT 1)
  UNION ALL
  SELECT (SELECT coalesce(r.next_hop, '') FROM recipient AS r INDEXED BY recipient_next_hop
          WHERE r.due_at IS NOT NULL AND NOT r.leased AND coalesce(r.next_hop, '') > hops.next_hop
          ORDER BY coalesce(r.next_hop, '') LIMIT 1)
  FROM hops WHERE hops.next_hop IS NOT NULL
)
SELECT min((SELECT r.due_at FROM recipient AS r INDEXED BY recipient_next_hop
            WHERE coalesce(r.next_hop, '') = hops.next_hop AND r.due_at IS NOT NULL AND NOT r.leased ORDER BY r.due_at LIMIT 1))
FROM hops WHERE hops.next_hop IS NOT NULL AND hops.next_hop NOT IN (SELECT value FROM json_each(?1));

-- name: get_flag
SELECT value FROM flag WHERE name = ?;

-- name: set_flag
INSERT INTO flag (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value;

-- name: delete_flag
DELETE FROM flag WHERE name = ?;

-- name: purge_old
SELECT id FROM message INDEXED BY message_finished WHERE finished_at < ? ORDER BY finished_at LIMIT ?;

-- name: purge_many
SELECT id FROM message INDEXED BY message_finished WHERE finished_at IS NOT NULL
ORDER BY finished_at DESC LIMIT ? OFFSET ?;

-- name: forget_recipients
-- 1 ids as JSON, as of the two below
DELETE FROM recipient WHERE message_id IN (SELECT value FROM json_each(?1));

-- name: forget_attempts
DELETE FROM attempt WHERE message_id IN (SELECT value FROM json_each(?1));

-- name: forget_messages
DELETE FROM message WHERE id IN (SELECT value FROM json_each(?1));

-- name: export_messages
SELECT id, uid, reverse_path, body, smtputf8, ret, envid, subject, size_bytes, received_at, expires_at, finished_at, facts,
       spool, spool_offset, spool_bytes
FROM message ORDER BY id LIMIT ?;

-- name: export_contents
SELECT message_id, octets FROM content WHERE message_id BETWEEN ? AND ?;

-- name: export_recipients
SELECT message_id, number, address, state, due_at, leased, attempts, next_hop, last_reply, last_stage, notify, orcpt,
       delay_reported
FROM recipient WHERE message_id BETWEEN ? AND ?;

-- name: export_attempts
SELECT message_id, number, at, seconds, outcome, next_hop, remote, stage, reply
FROM attempt WHERE message_id BETWEEN ? AND ?;

-- name: known_uids
SELECT uid FROM message WHERE uid IN (VALUES :rows);

-- name: import_messages
INSERT INTO message (id, uid, reverse_path, body, smtputf8, ret, envid, subject, size_bytes, received_at, expires_at,
                     finished_at, facts, spool, spool_offset, spool_bytes)
VALUES :rows;

-- name: import_recipients
INSERT INTO recipient (message_id, number, address, state, due_at, leased, attempts, next_hop, last_reply, last_stage,
                       notify, orcpt, delay_reported)
VALUES :rows;

-- name: forget_span_of_attempts
DELETE FROM attempt WHERE message_id BETWEEN ? AND ?;

-- name: forget_span_of_recipients
DELETE FROM recipient WHERE message_id BETWEEN ? AND ?;

-- name: forget_span_of_contents
DELETE FROM content WHERE message_id BETWEEN ? AND ?;

-- name: forget_span
DELETE FROM message WHERE id BETWEEN ? AND ?;

-- name: spool_names
SELECT spool FROM message WHERE spool IS NOT NULL AND finished_at IS NULL;
