-- For people: the same names and columns in every kind of queue. Stable for readers. Times are unix seconds.

CREATE VIEW queue_messages AS
SELECT m.uid,
  CASE WHEN sum(r.state = 'held') THEN 'held' WHEN sum(r.state = 'queued') THEN 'queued' WHEN sum(r.state = 'deferred') THEN 'deferred'
    WHEN sum(r.state = 'bounced') THEN 'bounced' WHEN sum(r.state = 'expired') THEN 'expired'
    WHEN sum(r.state = 'cancelled') THEN 'cancelled' ELSE 'delivered' END AS state,
  m.reverse_path, m.subject, m.size_bytes, m.received_at, m.expires_at, m.finished_at, count(*) AS recipients,
  m.facts ->> 'peer' AS peer, m.facts ->> 'helo' AS helo, m.facts ->> 'user' AS user, m.facts ->> 'session' AS session
FROM message m JOIN recipient r ON r.message_id = m.id GROUP BY m.id;

CREATE VIEW queue_recipients AS
SELECT m.uid, r.address, r.state, r.due_at, r.leased AS in_flight, r.attempts, r.next_hop, r.last_reply, r.last_stage
FROM recipient r JOIN message m ON m.id = r.message_id;

CREATE VIEW queue_attempts AS
SELECT m.uid, r.address, a.at, a.seconds, a.outcome, a.next_hop, a.remote, a.stage, a.reply
FROM attempt a JOIN message m ON m.id = a.message_id
LEFT JOIN recipient r ON r.message_id = a.message_id AND r.number = a.number;

CREATE VIEW queue_next_hops AS
SELECT coalesce(next_hop, '') AS next_hop, sum(state = 'queued') AS queued, sum(state = 'deferred') AS deferred,
  sum(state = 'held') AS held, min(due_at) AS due_at
FROM recipient WHERE state IN ('queued', 'deferred', 'held') GROUP BY 1;
