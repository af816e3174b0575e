//! The processes of a local cluster: shared by kiln up and the test harness
