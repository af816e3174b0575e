//! The protocol's decisions as pure state machines: replica, membership, lease, initiator
