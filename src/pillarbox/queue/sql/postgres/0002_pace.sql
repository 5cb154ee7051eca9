-- From when on the next message may go to a next hop, where the operator has set a rate: the nodes lease their turns from it.
CREATE TABLE pace (
  next_hop TEXT PRIMARY KEY,
  next_at  DOUBLE PRECISION NOT NULL
) WITH (fillfactor = 50);
