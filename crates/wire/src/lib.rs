//! The data plane's frames and capabilities
