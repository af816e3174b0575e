//! The metadata server over transactional kv
