//! Every service's configuration: defaults, validation, layering, commented examples
