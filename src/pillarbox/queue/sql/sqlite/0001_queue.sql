-- The queue. Documented in docs/reference/queue-tables.md; stable for readers. Times are unix seconds.

CREATE TABLE message (
  id           INTEGER PRIMARY KEY,
  uid          TEXT NOT NULL UNIQUE,
  reverse_path TEXT,                      -- NULL: the null reverse-path
  body         TEXT NOT NULL,             -- 7BIT or 8BITMIME
  smtputf8     INTEGER NOT NULL,
  ret          TEXT,                      -- FULL or HDRS (RFC 3461)
  envid        TEXT,
  subject      TEXT NOT NULL,
  size_bytes   INTEGER NOT NULL,
  received_at  REAL NOT NULL,
  expires_at   REAL NOT NULL,
  finished_at  REAL,                      -- NULL until every recipient is final
  facts        TEXT NOT NULL,             -- JSON: peer, helo, protocol, user, session
  spool        TEXT,                      -- file in spool/, NULL: the content is in table content
  spool_offset INTEGER NOT NULL DEFAULT 0,
  spool_bytes  INTEGER NOT NULL DEFAULT 0
);

CREATE INDEX message_finished ON message (finished_at) WHERE finished_at IS NOT NULL;

-- Small content whole; of large content the part that stands before the spool file's (trace fields).
CREATE TABLE content (
  message_id INTEGER PRIMARY KEY,
  octets     BLOB NOT NULL
);

CREATE TABLE recipient (
  message_id     INTEGER NOT NULL,
  number         INTEGER NOT NULL,
  address        TEXT NOT NULL,
  state          TEXT NOT NULL,           -- queued deferred held delivered bounced expired cancelled
  due_at         REAL,                    -- next attempt; for a leased one: when the lease ends; NULL: never
  leased         INTEGER NOT NULL DEFAULT 0,
  attempts       INTEGER NOT NULL DEFAULT 0,
  next_hop       TEXT,
  last_reply     TEXT,
  last_stage     TEXT,
  notify         TEXT,                    -- comma separated, NULL: nothing was said
  orcpt          TEXT,
  delay_reported INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (message_id, number)
) WITHOUT ROWID;

CREATE INDEX recipient_due ON recipient (due_at) WHERE due_at IS NOT NULL;

CREATE TABLE attempt (
  message_id INTEGER NOT NULL,
  number     INTEGER NOT NULL,            -- the recipient's
  at         REAL NOT NULL,
  seconds    REAL NOT NULL,
  outcome    TEXT NOT NULL,               -- delivered deferred bounced expired ambiguous
  next_hop   TEXT,
  remote     TEXT,
  stage      TEXT,
  reply      TEXT
);

CREATE INDEX attempt_message ON attempt (message_id);

CREATE TABLE flag (
  name  TEXT PRIMARY KEY,
  value TEXT NOT NULL
) WITHOUT ROWID;
