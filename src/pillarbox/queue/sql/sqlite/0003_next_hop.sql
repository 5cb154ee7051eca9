-- For what waits behind a next hop that takes nothing at present. What is in hand is not in it, so that a message that
-- is delivered from memory costs nothing here. '' stands for a next hop that is not known yet.
CREATE INDEX recipient_next_hop ON recipient (coalesce(next_hop, ''), due_at) WHERE due_at IS NOT NULL AND NOT leased;
