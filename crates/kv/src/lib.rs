//! The transactional key-value trait, the memory engine and the conformance suite
