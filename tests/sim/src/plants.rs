//! Defects that are planted to see whether they are found.

/// Their names, as the code that they are planted in asks for them. What takes over where another
/// defence fails is tested with that one gone too: `a + b`.
pub const PLANTS: &[&str] = &[
    "a manager answers after its lease",
    "acknowledge without a sync",
    "any chain version will do + the lease does not end",
    "commit before the successor has it",
    "pending versions are forgotten",
    "a stale target serves",
    "the lease does not end",
    "two heads give the same version",
    "versions restart after a removal",
    "retries are forgotten at a change of the chain",
    "replicas show what is pending",
];

/// Rare branches that a good set of seeds takes, as they are marked in the code.
pub const MARKS: &[&str] = &[
    "a forward tells that the version before is committed",
    "a head takes a view with versions undecided",
    "a late copy of a refused version",
    "a manager finds its seat taken",
    "a manager waits for its store",
    "a read asks the commit point",
    "a read waits for a chunk to be settled",
    "a recovered version is settled",
    "a request finds no lease",
    "a request names another chain version",
    "a retry is answered from its record",
    "a standby manager takes the seat",
    "a successor refuses a version",
    "a target is the last that served",
    "several targets of a chain fail at once",
    "the last that served is back",
    "the manager finds that it stood still",
];
