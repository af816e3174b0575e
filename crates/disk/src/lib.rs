//! The Disk trait: io_uring, a plain fallback, and a simulated disk that loses power
