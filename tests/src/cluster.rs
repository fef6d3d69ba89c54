//! Three nodes and some agents, started as a user starts them.
