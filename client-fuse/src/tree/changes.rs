//! What other clients change.
