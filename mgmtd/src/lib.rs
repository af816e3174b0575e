//! The manager: nodes, leases, targets, chains, routing
