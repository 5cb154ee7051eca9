-- Every query of the SQLite store, found by name.

-- A whole batch is one statement: a row of JSON arrays (and the contents, one behind the other in one blob) goes into a
-- view, whose trigger does the rest. Between two statements the driver gives the interpreter's lock away and has to
-- wait for a busy loop to get it back; within one it does not.

-- name: batch_view
CREATE TEMP VIEW batch AS
SELECT NULL AS messages, NULL AS contents, NULL AS octets, NULL AS recipients, NULL AS outcomes, NULL AS attempts,
       NULL AS finished;

-- name: dropped_table
-- The spool files of messages that are finished; read and emptied by `purge`.
CREATE TEMP TABLE dropped (spool TEXT NOT NULL);

-- name: batch_trigger
-- messages:   id, uid, reverse_path, body, smtputf8, ret, envid, subject, size_bytes, received_at, expires_at, facts,
--             spool, spool_offset, spool_bytes
-- contents:   id, where in octets (from 1), how long
-- recipients: id, number, address, state, due_at, leased, attempts, notify, orcpt, next_hop
-- outcomes:   id, number, state, due_at, is an attempt, next_hop, reply, stage, delay is reported
-- attempts:   id, number, at, seconds, outcome, next_hop, remote, stage, reply
-- finished:   id, now
CREATE TEMP TRIGGER batch_insert INSTEAD OF INSERT ON batch BEGIN
  INSERT INTO message (id, uid, reverse_path, body, smtputf8, ret, envid, subject, size_bytes, received_at, expires_at,
                       facts, spool, spool_offset, spool_bytes)
  SELECT value->>0, value->>1, value->>2, value->>3, value->>4, value->>5, value->>6, value->>7, value->>8, value->>9,
         value->>10, value->11, value->>12, value->>13, value->>14
  FROM json_each(NEW.messages);

  INSERT INTO content (message_id, octets)
  SELECT value->>0, coalesce(substr(NEW.octets, value->>1, value->>2), x'') FROM json_each(NEW.contents);

  INSERT INTO recipient (message_id, number, address, state, due_at, leased, attempts, notify, orcpt, next_hop)
  SELECT value->>0, value->>1, value->>2, value->>3, value->>4, value->>5, value->>6, value->>7, value->>8, value->>9
  FROM json_each(NEW.recipients);

  UPDATE recipient
  SET state = s.state, due_at = s.due_at, leased = 0, attempts = attempts + s.is_attempt,
      next_hop = coalesce(s.next_hop, recipient.next_hop), last_reply = coalesce(s.reply, last_reply),
      last_stage = coalesce(s.stage, last_stage), delay_reported = delay_reported OR s.delayed
  FROM (SELECT value->>0 AS id, value->>1 AS number, value->>2 AS state, value->>3 AS due_at, value->>4 AS is_attempt,
               value->>5 AS next_hop, value->>6 AS reply, value->>7 AS stage, value->>8 AS delayed
        FROM json_each(NEW.outcomes)) AS s
  WHERE message_id = s.id AND recipient.number = s.number AND recipient.state IN ('queued', 'deferred');

  -- Cancelled or held while it was in flight: a delivery is a fact all the same, and so is the refusal of what was held
  -- (its sender is told); anything else changes nothing.
  UPDATE recipient
  SET state = CASE WHEN s.state = 'delivered' OR (s.state IN ('bounced', 'expired') AND recipient.state = 'held')
                   THEN s.state ELSE recipient.state END, leased = 0, due_at = NULL,
      attempts = attempts + s.is_attempt, last_reply = coalesce(s.reply, last_reply),
      last_stage = coalesce(s.stage, last_stage)
  FROM (SELECT value->>0 AS id, value->>1 AS number, value->>2 AS state, value->>4 AS is_attempt, value->>6 AS reply,
               value->>7 AS stage
        FROM json_each(NEW.outcomes)) AS s
  WHERE message_id = s.id AND recipient.number = s.number AND recipient.leased
    AND recipient.state IN ('cancelled', 'held');

  INSERT INTO attempt (message_id, number, at, seconds, outcome, next_hop, remote, stage, reply)
  SELECT value->>0, value->>1, value->>2, value->>3, value->>4, value->>5, value->>6, value->>7, value->>8
  FROM json_each(NEW.attempts);

  UPDATE message SET finished_at = m.now
  FROM (SELECT value->>0 AS key, value->>1 AS now FROM json_each(NEW.finished)) AS m
  WHERE id = m.key AND finished_at IS NULL AND NOT EXISTS (
    SELECT 1 FROM recipient WHERE message_id = message.id AND (state IN ('queued', 'deferred', 'held') OR leased)
  );

  INSERT INTO dropped (spool)
  SELECT spool FROM json_each(NEW.finished) JOIN message ON message.id = value->>0
  WHERE finished_at IS NOT NULL AND spool IS NOT NULL;

  DELETE FROM content WHERE message_id IN (
    SELECT message.id FROM json_each(NEW.finished) JOIN message ON message.id = value->>0 WHERE finished_at IS NOT NULL
  );
END;

-- name: insert_batch
INSERT INTO batch VALUES (?, ?, ?, ?, ?, ?, ?);

-- name: dropped
SELECT spool FROM dropped;

-- name: forget_dropped
DELETE FROM dropped;

-- name: highest_id
SELECT coalesce(max(id), 0) FROM message;

-- name: due_messages
-- The messages of the recipients that are due first, but for those next hops that take no more. Grouped, for one attempt
-- takes all due recipients of a message.
SELECT message_id, min(due_at) AS first FROM (
  SELECT message_id, due_at FROM recipient INDEXED BY recipient_due
  WHERE due_at IS NOT NULL AND due_at <= ?1 AND coalesce(next_hop, '') NOT IN (SELECT value FROM json_each(?3))
  ORDER BY due_at LIMIT ?2
) GROUP BY message_id ORDER BY first;

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
  AND (last_stage IN (SELECT value FROM json_each(?3)) OR (last_stage IS NULL AND attempts = 0));

-- name: counts
SELECT state, count(*) FROM recipient GROUP BY state;

-- name: next_due
SELECT due_at FROM recipient INDEXED BY recipient_due
WHERE due_at IS NOT NULL AND coalesce(next_hop, '') NOT IN (SELECT value FROM json_each(?)) ORDER BY due_at LIMIT 1;

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
