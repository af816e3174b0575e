//! The async client: routing, metadata, striped file I/O
