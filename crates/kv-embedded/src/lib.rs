//! The embedded key-value engine: durable, group-committed, opened in-process by one server
