-- Beside a busy shard's file stands a journal of what is not in it yet; the flag says up to which record it has been
-- brought here. Versions that do not know of it must not open this file: they would not see that mail.

INSERT INTO flag (name, value) VALUES ('journal', '0') ON CONFLICT (name) DO NOTHING;
