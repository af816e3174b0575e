//! The Transport trait over registered memory, the opening handshake, TCP and simulated networks
