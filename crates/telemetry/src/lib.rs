//! Logs, request spans and metric definitions
