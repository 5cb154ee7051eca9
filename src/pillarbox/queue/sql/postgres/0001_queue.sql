-- The queue of many nodes. Documented in docs/reference/queue-tables.md; stable for readers. Times are unix seconds by the
-- database's clock. Nothing here has foreign keys: whatever belongs to a message is removed with it.

CREATE TABLE schema_version (
  version INTEGER NOT NULL,               -- of these tables
  oldest  INTEGER NOT NULL                -- nodes that know less than this version cannot go on
);

-- Numbers are taken in blocks, so that a node knows them without asking.
CREATE SEQUENCE message_id INCREMENT BY 1000 START WITH 1000;
CREATE SEQUENCE lease_epoch INCREMENT BY 1000 START WITH 1000;
CREATE SEQUENCE node_id;

-- Who works here. A node that has not been heard of until `alive_until` is dead: its leases are anybody's.
CREATE TABLE node (
  id          BIGINT PRIMARY KEY,
  name        TEXT NOT NULL,              -- host name, pid and worker
  version     TEXT NOT NULL,
  schema      INTEGER NOT NULL,
  started_at  DOUBLE PRECISION NOT NULL,
  beat_at     DOUBLE PRECISION NOT NULL,
  alive_until DOUBLE PRECISION NOT NULL
) WITH (fillfactor = 50);

-- Written once, never changed.
CREATE TABLE message (
  id           BIGINT PRIMARY KEY,
  uid          TEXT NOT NULL UNIQUE,
  reverse_path TEXT,                      -- NULL: the null reverse-path
  body         TEXT NOT NULL,             -- 7BIT or 8BITMIME
  smtputf8     BOOLEAN NOT NULL,
  ret          TEXT,                      -- FULL or HDRS (RFC 3461)
  envid        TEXT,
  subject      TEXT NOT NULL,
  size_bytes   BIGINT NOT NULL,
  recipients   INTEGER NOT NULL,
  received_at  DOUBLE PRECISION NOT NULL,
  expires_at   DOUBLE PRECISION NOT NULL,
  facts        JSONB NOT NULL             -- peer, helo, protocol, user, session
);

CREATE INDEX message_received ON message (received_at, id);

-- Messages all of whose recipients are final; their content is gone.
CREATE TABLE finished (
  message_id  BIGINT PRIMARY KEY,
  finished_at DOUBLE PRECISION NOT NULL
);

CREATE INDEX finished_at ON finished (finished_at);

-- In pieces of 256 KB. A piece that fits stays in the page: no way to another table for small mail.
CREATE TABLE content (
  message_id BIGINT NOT NULL,
  part       INTEGER NOT NULL,
  octets     BYTEA NOT NULL,
  PRIMARY KEY (message_id, part)
) WITH (toast_tuple_target = 8160, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_limit = 2000);

ALTER TABLE content ALTER octets SET STORAGE EXTERNAL;

CREATE TABLE recipient (
  message_id     BIGINT NOT NULL,
  number         INTEGER NOT NULL,
  address        TEXT NOT NULL,
  state          TEXT NOT NULL,           -- queued deferred held delivered bounced expired cancelled
  attempts       INTEGER NOT NULL DEFAULT 0,
  next_hop       TEXT,
  last_reply     TEXT,
  last_stage     TEXT,
  notify         TEXT,                    -- comma separated, NULL: nothing was said
  orcpt          TEXT,
  delay_reported BOOLEAN NOT NULL DEFAULT FALSE,
  PRIMARY KEY (message_id, number)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);

-- The hot table: what is to be done, and who does it. A row for each recipient that is due some time, or in somebody's
-- hands; narrow, and gone when there is nothing more to do. A settle says the epoch of its lease: an old one is refused.
CREATE TABLE due (
  message_id  BIGINT NOT NULL,
  number      INTEGER NOT NULL,
  next_hop    TEXT COLLATE "C" NOT NULL,  -- '' where it is not known
  due_at      DOUBLE PRECISION NOT NULL,
  owner       BIGINT,                     -- the node that has it in hand
  lease_until DOUBLE PRECISION,
  epoch       BIGINT NOT NULL DEFAULT 0,
  expires_at  DOUBLE PRECISION NOT NULL,  -- the message's
  PRIMARY KEY (message_id, number)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_cost_limit = 2000, autovacuum_vacuum_cost_delay = 0);

CREATE INDEX due_ready ON due (due_at) WHERE owner IS NULL;
CREATE INDEX due_owned ON due (owner) WHERE owner IS NOT NULL;
-- For what waits behind a next hop that takes nothing at present, and for a next hop that is back.
CREATE INDEX due_next_hop ON due (next_hop, due_at) WHERE owner IS NULL;
CREATE INDEX due_expires ON due (expires_at) WHERE owner IS NULL;

-- Only added to; a partition for each day (`attempt_20261123`, UTC), dropped as a whole when nobody wants it any more.
CREATE TABLE attempt (
  message_id BIGINT NOT NULL,
  number     INTEGER NOT NULL,            -- the recipient's
  at         DOUBLE PRECISION NOT NULL,
  seconds    DOUBLE PRECISION NOT NULL,
  outcome    TEXT NOT NULL,               -- delivered deferred bounced expired ambiguous
  next_hop   TEXT,
  remote     TEXT,
  stage      TEXT,
  reply      TEXT,
  node       BIGINT
) PARTITION BY RANGE (at);

CREATE TABLE attempt_other PARTITION OF attempt DEFAULT;
CREATE INDEX attempt_message ON attempt (message_id);

-- The number of the last transaction of each node's: whoever lost its connection at a commit finds out by it what became of it.
CREATE TABLE mark (
  session BIGINT PRIMARY KEY,
  number  BIGINT NOT NULL,
  at      DOUBLE PRECISION NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE flag (
  name  TEXT PRIMARY KEY,
  value TEXT NOT NULL
);

-- Connections to a next hop that a node may have open: the sum over the nodes stays within the limit.
CREATE TABLE slot (
  next_hop TEXT NOT NULL,
  node     BIGINT NOT NULL,
  slots    INTEGER NOT NULL,
  wanted   INTEGER NOT NULL,              -- more than `slots`: it waits for others to give some back
  PRIMARY KEY (next_hop, node)
) WITH (fillfactor = 50);

-- For people: the same names and columns in every kind of queue. Stable for readers.

CREATE VIEW queue_messages AS
SELECT m.uid,
  CASE WHEN bool_or(r.state = 'held') THEN 'held' WHEN bool_or(r.state = 'queued') THEN 'queued'
    WHEN bool_or(r.state = 'deferred') THEN 'deferred' WHEN bool_or(r.state = 'bounced') THEN 'bounced'
    WHEN bool_or(r.state = 'expired') THEN 'expired' WHEN bool_or(r.state = 'cancelled') THEN 'cancelled'
    ELSE 'delivered' END AS state,
  m.reverse_path, m.subject, m.size_bytes, m.received_at, m.expires_at, f.finished_at, count(*) AS recipients,
  m.facts ->> 'peer' AS peer, m.facts ->> 'helo' AS helo, m.facts ->> 'user' AS user, m.facts ->> 'session' AS session
FROM message m JOIN recipient r ON r.message_id = m.id LEFT JOIN finished f ON f.message_id = m.id
GROUP BY m.id, f.finished_at;

CREATE VIEW queue_recipients AS
SELECT m.uid, r.address, r.state, CASE WHEN d.owner IS NULL THEN d.due_at ELSE d.lease_until END AS due_at,
  (d.owner IS NOT NULL)::int AS in_flight, r.attempts, r.next_hop, r.last_reply, r.last_stage
FROM recipient r JOIN message m ON m.id = r.message_id
LEFT JOIN due d ON d.message_id = r.message_id AND d.number = r.number;

CREATE VIEW queue_attempts AS
SELECT m.uid, r.address, a.at, a.seconds, a.outcome, a.next_hop, a.remote, a.stage, a.reply
FROM attempt a JOIN message m ON m.id = a.message_id
LEFT JOIN recipient r ON r.message_id = a.message_id AND r.number = a.number;

CREATE VIEW queue_next_hops AS
SELECT coalesce(r.next_hop, '') AS next_hop, count(*) FILTER (WHERE r.state = 'queued') AS queued,
  count(*) FILTER (WHERE r.state = 'deferred') AS deferred, count(*) FILTER (WHERE r.state = 'held') AS held,
  min(d.due_at) AS due_at
FROM recipient r LEFT JOIN due d ON d.message_id = r.message_id AND d.number = r.number
WHERE r.state IN ('queued', 'deferred', 'held') GROUP BY 1;
