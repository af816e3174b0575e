//! Not assertions: how fast streams go through, in simulated time and in this machine's.
