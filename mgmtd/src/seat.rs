//! The primary's seat in a store: found, taken, kept and left. `kiln_chain::election` has the rules, and
//! why two managers never answer at a time.
//!
//! A store that nobody else can have open needs no beats: whoever had the seat before is dead.

use crate::record::{Kind, decode, encode, key};
use kiln_chain::election::{Candidate, Incumbent, PrimaryTimes, Verdict};
use kiln_env::{Env, Task};
use kiln_kv::{Kv, Transaction, transact};
use kiln_types::rehearsal::{mark, planted};
use kiln_types::{Code, Decoder, Encoder, Error, Monotonic, Result};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

const TIMES: PrimaryTimes = PrimaryTimes::DEFAULT;
/// How long one look or beat may take.
const STORE_TIME_MAX: Duration = Duration::from_secs(2);

/// The primary's seat, and the way to its store; clones share it.
#[derive(Clone)]
pub struct Seat {
    kv: Arc<dyn Kv>,
    env: Env,
    term: u128,
    /// Where others can open the store too.
    hold: Option<Arc<Hold>>,
    /// Whether another one had it until just now: the cluster runs.
    pub(crate) succeeds: bool,
}

/// Until when the seat is held, or why it is lost.
struct Hold {
    state: watch::Receiver<Result<Monotonic>>,
    _beating: Task<()>,
}

impl Seat {
    /// Waits until the seat is free or its holder's lease has ended, and takes it for the manager at
    /// `address`. `follow` is told of each primary that there is meanwhile.
    ///
    /// # Errors
    /// `Corrupt` when the store's record cannot be read. A store that is out of reach is tried again.
    pub async fn take(
        kv: Arc<dyn Kv>,
        env: Env,
        address: &str,
        mut follow: impl FnMut(&str) + Send,
    ) -> Result<Self> {
        let term = env.random_u128();
        let mut seat = Self { kv, env, term, hold: None, succeeds: false };
        if seat.kv.is_exclusive() {
            seat.sit(address, None).await?;
            return Ok(seat);
        }
        let mut candidate = Candidate::new(TIMES);
        let mut followed = None;
        loop {
            let found = match seat.patiently(look(&seat.kv)).await {
                Ok(found) => found,
                Err(error) if error.code() == Code::Corrupt => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "a look at the managers' store failed");
                    seat.env.sleep(TIMES.beat).await;
                    continue;
                }
            };
            match candidate.looked(found, seat.env.now()) {
                Verdict::Follow(primary) => {
                    if followed.as_ref() != Some(&primary) {
                        tracing::info!(primary, "another manager is the primary");
                        follow(&primary);
                        followed = Some(primary);
                    }
                }
                Verdict::Take(expected) => match seat.sit(address, expected).await {
                    Ok(began) => {
                        if followed.is_some() {
                            mark("a standby manager takes the seat");
                        }
                        seat.succeeds = followed.is_some();
                        seat.hold = Some(Arc::new(Hold::begin(&seat, began)));
                        return Ok(seat);
                    }
                    Err(error) => {
                        mark("a seat is not got");
                        tracing::info!(%error, "the seat was not taken");
                    }
                },
            }
            seat.env.sleep(TIMES.beat).await;
        }
    }

    /// Writes this manager's record over what was `expected` there; when it began to.
    async fn sit(&self, address: &str, expected: Option<Incumbent>) -> Result<Monotonic> {
        let began = self.env.now();
        let exclusive = self.kv.is_exclusive();
        let mut body = Encoder::new();
        body.u128(self.term).bytes(address.as_bytes());
        let record = &encode(Kind::Primary, &body.finish());
        let beat = &encode_beat(0);
        let (term, expected) = (self.term, &expected);
        let sitting = transact(&*self.kv, &self.env, "taking the primary manager's seat", |tx| {
            Box::pin(async move {
                let found = incumbent(tx).await?;
                let mine = found.as_ref().is_some_and(|found| found.term == term);
                if !exclusive && !mine && found != *expected {
                    return Err(Error::new(Code::NotPrimary, "the primary manager lives"));
                }
                tx.set(&key(Kind::Primary).finish(), record);
                tx.set(&key(Kind::Beat).finish(), beat);
                Ok(())
            })
        });
        sitting.await?;
        Ok(began)
    }

    /// Raises the beat; until when it counts.
    async fn beat(&self) -> Result<Monotonic> {
        let until = TIMES.held_until(self.env.now());
        let mut tx = self.kv.begin().await?;
        self.check(tx.as_mut()).await?;
        let beat = beat_of(tx.as_mut()).await?;
        tx.set(&key(Kind::Beat).finish(), &encode_beat(beat + 1));
        tx.commit().await?;
        Ok(until)
    }

    /// Fails a transaction unless the seat is this manager's.
    ///
    /// # Errors
    /// `NotPrimary` when another one has it.
    pub(crate) async fn check(&self, tx: &mut dyn Transaction) -> Result<()> {
        match primary(tx).await? {
            Some((term, _)) if term == self.term => Ok(()),
            _ => Err(Error::new(Code::NotPrimary, "another manager has taken the seat")),
        }
    }

    /// Waits until what this manager knows may be answered: not while its store is out of reach for long.
    ///
    /// # Errors
    /// `NotPrimary` when another manager has taken the seat.
    pub async fn held(&self) -> Result<()> {
        let Some(hold) = &self.hold else { return Ok(()) };
        let mut state = hold.state.clone();
        loop {
            match &*state.borrow_and_update() {
                Ok(until) if self.env.now() < *until => return Ok(()),
                Ok(_) if planted("a manager answers after its lease") => return Ok(()),
                Ok(_) => mark("a manager waits for its store"),
                Err(error) => return Err(error.clone()),
            }
            // Whoever asked has deadlines of their own; this one only tells what the manager waits for.
            let wait = self.env.timeout(TIMES.succession(), "the managers' store", state.changed());
            match wait.await {
                Ok(changed) => changed.map_err(|_| Error::internal("nobody holds the seat"))?,
                Err(_) => tracing::warn!("nobody is answered: the managers' store does not answer"),
            }
        }
    }

    /// Lets the next manager begin at once; called when this one answers nobody any more.
    ///
    /// # Errors
    /// `NotPrimary`, or the engine's own.
    pub async fn leave(&self) -> Result<()> {
        if self.hold.is_none() {
            return Ok(());
        }
        transact(&*self.kv, &self.env, "leaving the primary manager's seat", |tx| {
            Box::pin(async move {
                self.check(tx).await?;
                mark("a seat is left in order");
                tx.clear(&key(Kind::Primary).finish());
                tx.clear(&key(Kind::Beat).finish());
                Ok(())
            })
        })
        .await
    }

    /// The store.
    pub(crate) fn kv(&self) -> &dyn Kv {
        &*self.kv
    }

    /// The clock of this manager.
    pub(crate) fn env(&self) -> &Env {
        &self.env
    }

    async fn patiently<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.env.timeout(STORE_TIME_MAX, "the managers' store", work).await.flatten()
    }
}

impl Hold {
    fn begin(seat: &Seat, began: Monotonic) -> Self {
        let (sender, state) = watch::channel(Ok(TIMES.held_until(began)));
        let env = seat.env.clone();
        Self { state, _beating: env.spawn("primary manager's beats", keep(seat.clone(), sender)) }
    }
}

async fn keep(seat: Seat, state: watch::Sender<Result<Monotonic>>) {
    loop {
        match seat.patiently(seat.beat()).await {
            Ok(until) => drop(state.send_replace(Ok(until))),
            Err(error) if error.code() == Code::NotPrimary => {
                mark("a manager finds its seat taken");
                drop(state.send_replace(Err(error)));
                return;
            }
            // The hold runs out unless a later one succeeds.
            Err(error) => tracing::warn!(%error, "the primary manager's beat failed"),
        }
        seat.env.sleep(TIMES.beat).await;
    }
}

async fn look(kv: &Arc<dyn Kv>) -> Result<Option<Incumbent>> {
    incumbent(kv.begin().await?.as_mut()).await
}

async fn incumbent(tx: &mut dyn Transaction) -> Result<Option<Incumbent>> {
    let Some((term, address)) = primary(tx).await? else { return Ok(None) };
    Ok(Some(Incumbent { term, address, beat: beat_of(tx).await? }))
}

async fn primary(tx: &mut dyn Transaction) -> Result<Option<(u128, String)>> {
    let Some(record) = tx.get(&key(Kind::Primary).finish()).await? else { return Ok(None) };
    let mut fields = Decoder::new("primary record", decode(Kind::Primary, &record)?);
    let term = fields.u128()?;
    // Before there were several managers it had no address.
    let address = match fields.left() {
        0 => String::new(),
        _ => String::from_utf8_lossy(fields.bytes(usize::MAX)?).into_owned(),
    };
    fields.finish()?;
    Ok(Some((term, address)))
}

async fn beat_of(tx: &mut dyn Transaction) -> Result<u64> {
    let Some(record) = tx.get(&key(Kind::Beat).finish()).await? else { return Ok(0) };
    let mut fields = Decoder::new("beat record", decode(Kind::Beat, &record)?);
    let beat = fields.u64()?;
    fields.finish()?;
    Ok(beat)
}

fn encode_beat(beat: u64) -> Vec<u8> {
    let mut body = Encoder::new();
    body.u64(beat);
    encode(Kind::Beat, &body.finish())
}
