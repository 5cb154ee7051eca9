-- Every query of the SQLite store, found by name.

-- name: insert_message
INSERT INTO message (id, uid, reverse_path, body, smtputf8, ret, envid, subject, size_bytes, received_at, expires_at,
                     facts, spool, spool_offset, spool_bytes)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: insert_content
INSERT INTO content (message_id, octets) VALUES (?, ?);

-- name: insert_recipient
INSERT INTO recipient (message_id, number, address, state, due_at, leased, attempts, notify, orcpt)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: highest_id
SELECT coalesce(max(id), 0) FROM message;

-- name: due_messages
-- The messages of the recipients that are due first. Grouped, for one attempt takes all due recipients of a message.
SELECT message_id, min(due_at) AS first FROM (
  SELECT message_id, due_at FROM recipient INDEXED BY recipient_due
  WHERE due_at IS NOT NULL AND due_at <= ? ORDER BY due_at LIMIT ?
) GROUP BY message_id ORDER BY first;

-- name: expired_messages
SELECT message_id, min(due_at) AS first FROM recipient JOIN message ON message.id = message_id
WHERE due_at IS NOT NULL AND NOT leased AND due_at <= ?1 AND expires_at <= ?1 GROUP BY message_id ORDER BY first LIMIT ?2;

-- name: lease_recipients
UPDATE recipient SET due_at = ?, leased = 1
WHERE message_id = ? AND due_at IS NOT NULL AND due_at <= ?
RETURNING number, address, state, attempts, notify, orcpt, next_hop, last_reply, last_stage, delay_reported;

-- name: message_by_id
SELECT uid, reverse_path, body, smtputf8, ret, envid, subject, size_bytes, received_at, expires_at, facts, spool,
       spool_offset, spool_bytes
FROM message WHERE id = ?;

-- name: content_by_id
SELECT octets FROM content WHERE message_id = ?;

-- name: message_by_uid
SELECT id, spool, spool_offset, spool_bytes FROM message WHERE uid = ?;

-- name: settle_recipient
UPDATE recipient
SET state = ?, due_at = ?, leased = 0, attempts = attempts + ?, next_hop = coalesce(?, next_hop),
    last_reply = coalesce(?, last_reply), last_stage = coalesce(?, last_stage), delay_reported = delay_reported OR ?
WHERE message_id = ? AND number = ? AND state IN ('queued', 'deferred');

-- name: settle_steered
-- Cancelled or held while it was in flight: a delivery is a fact all the same, anything else changes nothing.
UPDATE recipient
SET state = CASE WHEN ?1 = 'delivered' THEN 'delivered' ELSE state END, leased = 0, attempts = attempts + ?2,
    due_at = NULL, last_reply = coalesce(?3, last_reply), last_stage = coalesce(?4, last_stage)
WHERE message_id = ?5 AND number = ?6 AND state IN ('cancelled', 'held');

-- name: insert_attempt
INSERT INTO attempt (message_id, number, at, seconds, outcome, next_hop, remote, stage, reply)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: finish_message
UPDATE message SET finished_at = ?1 WHERE id = ?2 AND finished_at IS NULL AND NOT EXISTS (
  SELECT 1 FROM recipient WHERE message_id = ?2 AND (state IN ('queued', 'deferred', 'held') OR leased)
) RETURNING spool;

-- name: delete_content
DELETE FROM content WHERE message_id = ?;

-- name: renew
UPDATE recipient SET due_at = ? WHERE message_id = ? AND leased;

-- name: quarantine
UPDATE recipient SET state = 'held', due_at = NULL, leased = 0, last_reply = ? WHERE message_id = ? AND number = ?;

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
RETURNING message_id;

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

-- name: cancel
UPDATE recipient SET state = 'cancelled', due_at = NULL
WHERE message_id = ? AND state IN ('queued', 'deferred', 'held');

-- name: wake
UPDATE recipient SET due_at = ?1
WHERE due_at IS NOT NULL AND NOT leased AND state IN ('queued', 'deferred') AND next_hop = ?2
  AND last_stage IN (SELECT value FROM json_each(?3));

-- name: counts
SELECT state, count(*) FROM recipient GROUP BY state;

-- name: next_due
SELECT due_at FROM recipient INDEXED BY recipient_due WHERE due_at IS NOT NULL ORDER BY due_at LIMIT 1;

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
DELETE FROM recipient WHERE message_id = ?;

-- name: forget_attempts
DELETE FROM attempt WHERE message_id = ?;

-- name: forget_message
DELETE FROM message WHERE id = ?;

-- name: spool_names
SELECT spool FROM message WHERE spool IS NOT NULL AND finished_at IS NULL;
