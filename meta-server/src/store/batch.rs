//! Several operations as one change, each with an answer of its own: as if they came one after the other.
//!
//! What refuses one of them leaves the others alone. That asks of what does one: it writes nothing before it
//! knows that it will not be refused.

use crate::SessionId;
use crate::name;
use crate::records::Answer;
use crate::store::attr::set_attr;
use crate::store::lookup::{lookup, reach};
use crate::store::names::link;
use crate::store::open::{create, create_nameless, report};
use crate::store::{Change, CreateArgs, Opened, Outcome, SetAttrArgs, Store, Who, Written};
use crate::tx::Tx;
use kiln_env::Env;
use kiln_types::{Action, Attr, Code, Error, InodeId, Monotonic, Result};
use std::time::Duration;

/// Reports in one change, and closes: the answers have to fit into one value of kv.
const REPORTS_MAX: usize = 128;
/// New files in one change: they have to fit into a transaction.
const CREATES_MAX: usize = 256;
/// Attributes in one answer.
const STATS_MAX: usize = 1024;

/// How long the operations of one transaction may take: an engine gives it twice as much.
const TIME_MAX: Duration = Duration::from_millis(500);

/// What the writer of an open file reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The file.
    pub inode: InodeId,
    /// The open file.
    pub session: SessionId,
    /// What was written.
    pub written: Written,
}

/// What ends with an open file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloseArgs {
    /// What its writer reports.
    pub report: Report,
    /// What is set.
    pub set: SetAttrArgs,
    /// The directory and the name that it gets.
    pub link: Option<(InodeId, Vec<u8>)>,
}

impl Store {
    /// The attributes of inodes, then those of names in `parent`, all of one moment: what
    /// [`get_attr`](Self::get_attr) and [`lookup`](Self::lookup) say of each.
    ///
    /// # Errors
    /// `Invalid` for more than 1024, `TransactionTooLarge` when they take too long, or what kv reports.
    pub async fn stat_many(
        &self,
        who: &Who,
        inodes: &[InodeId],
        (parent, names): (InodeId, &[Vec<u8>]),
    ) -> Result<Vec<Result<Attr>>> {
        check_count(inodes.len() + names.len(), STATS_MAX)?;
        let parts = self
            .transact("stat of many", &|tx| {
                Box::pin(async move {
                    let mut parts = Parts::new(self);
                    for inode in inodes {
                        parts.take(stat(tx, who, *inode).await)?;
                    }
                    for name in names {
                        parts.take(stat_name(tx, who, parent, name).await)?;
                    }
                    Ok(parts.parts)
                })
            })
            .await?;
        Ok(attrs(parts))
    }

    /// Creates files as [`create`](Self::create) does with `exclusive`, or with `nameless` as
    /// [`create_nameless`](Self::create_nameless) does, and opens them.
    ///
    /// # Errors
    /// `Invalid` for more than 256; `QuotaExceeded`, `NoSpace`, `TransactionTooLarge`: fewer at once may be possible;
    /// `NotReady` without a chain table, or what kv reports.
    pub async fn create_many(
        &self,
        change: &Change,
        files: &[CreateArgs],
        nameless: bool,
    ) -> Result<Vec<Result<Opened>>> {
        check_count(files.len(), CREATES_MAX)?;
        if nameless && files.iter().any(|file| !file.open.read && !file.open.write) {
            return Err(Error::invalid("files without a name have to be opened"));
        }
        let mut new = Vec::with_capacity(files.len());
        for args in files {
            let session = SessionId(self.env.random_u128());
            new.push((args, self.next_inode().await?, session));
        }
        let new = &new;
        let answer = self
            .change(change, "create many", &|tx| {
                Box::pin(create_all(self, tx, change, new, nameless))
            })
            .await?;
        let mut opened = Vec::with_capacity(files.len());
        for (part, args) in answer.parts.into_iter().zip(files) {
            opened.push(match part {
                Ok(answer) => Ok(self.opened(change.client, answer, args.open).await?),
                Err(error) => Err(error),
            });
        }
        Ok(opened)
    }

    /// Takes in what the writers of several open files of a client report, as [`sync`](Self::sync) does for one.
    /// What `sync` says of each comes back; `Busy` where a truncation has to be finished first.
    ///
    /// # Errors
    /// `Invalid` for more than 128, `TransactionTooLarge`: fewer at once may be possible; `ClientEvicted`,
    /// `NotAuthorized`, or what kv reports.
    pub async fn report(&self, change: &Change, reports: &[Report]) -> Result<Vec<Result<Attr>>> {
        check_count(reports.len(), REPORTS_MAX)?;
        let answer = self
            .change(change, "report", &|tx| Box::pin(report_all(self, tx, change, reports)))
            .await?;
        Ok(attrs(answer.parts))
    }

    /// Sets attributes of open files, gives them a name and closes them, as far as that is asked for: what
    /// [`set_attr`](Self::set_attr), [`link`](Self::link) and [`close`](Self::close) say of each. One that is refused
    /// stays as it is then.
    ///
    /// # Errors
    /// As [`report`](Self::report), `QuotaExceeded` and `NoSpace` as [`create_many`](Self::create_many).
    pub async fn close_many(
        &self,
        change: &Change,
        files: &[CloseArgs],
    ) -> Result<Vec<Result<Attr>>> {
        check_count(files.len(), REPORTS_MAX)?;
        let answer = self
            .change(change, "close many", &|tx| Box::pin(close_all(self, tx, change, files)))
            .await?;
        for (file, part) in files.iter().zip(&answer.parts) {
            if part.is_ok() {
                self.readers.ended(change.client, file.report.session);
            }
        }
        Ok(attrs(answer.parts))
    }
}

async fn stat(tx: &mut Tx<'_, '_>, who: &Who, inode: InodeId) -> Result<Outcome> {
    let inode = reach(tx, who, inode).await?;
    Ok(Outcome::from(tx.attr(&inode).await?))
}

async fn stat_name(
    tx: &mut Tx<'_, '_>,
    who: &Who,
    parent: InodeId,
    name: &[u8],
) -> Result<Outcome> {
    let inode = lookup(tx, who, parent, name).await?;
    Ok(Outcome::from(tx.attr(&inode).await?))
}

async fn create_all(
    store: &Store,
    tx: &mut Tx<'_, '_>,
    change: &Change,
    new: &[(&CreateArgs, InodeId, SessionId)],
    nameless: bool,
) -> Result<Outcome> {
    // The engine's refusal comes after the first write of a create: it has to be of all.
    tx.room.clone()?;
    let mut parts = Parts::new(store);
    for (args, id, session) in new {
        let made = match nameless {
            true => create_nameless(store, tx, change, args, *id, *session).await,
            false => create_named(store, tx, change, args, *id, *session).await,
        };
        parts.take(made)?;
    }
    Ok(parts.into())
}

async fn create_named(
    store: &Store,
    tx: &mut Tx<'_, '_>,
    change: &Change,
    args: &CreateArgs,
    id: InodeId,
    session: SessionId,
) -> Result<Outcome> {
    name::check(&args.name)?;
    create(store, tx, change, args, id, session).await
}

async fn report_all(
    store: &Store,
    tx: &mut Tx<'_, '_>,
    change: &Change,
    reports: &[Report],
) -> Result<Outcome> {
    let mut parts = Parts::new(store);
    for Report { inode, session, written } in reports {
        parts.take(report(tx, change, *inode, *session, written, false).await)?;
    }
    Ok(parts.into())
}

/// What is reported is within quotas, whatever they are, and what follows has to be: so all reports come first.
async fn close_all(
    store: &Store,
    tx: &mut Tx<'_, '_>,
    change: &Change,
    files: &[CloseArgs],
) -> Result<Outcome> {
    let mut told = Parts::new(store);
    for CloseArgs { report: Report { inode, session, written }, .. } in files {
        told.take(report(tx, change, *inode, *session, written, false).await)?;
    }
    let mut parts = Parts { parts: Vec::with_capacity(files.len()), ..told };
    for (told, args) in told.parts.into_iter().zip(files) {
        match told {
            Ok(_) => parts.take(close_one(store, tx, change, args).await)?,
            refused => parts.parts.push(refused),
        }
    }
    Ok(parts.into())
}

async fn close_one(
    store: &Store,
    tx: &mut Tx<'_, '_>,
    change: &Change,
    args: &CloseArgs,
) -> Result<Outcome> {
    let Report { inode, session, .. } = args.report;
    if args.set != SetAttrArgs::default() {
        set_attr(store, tx, change, inode, &args.set).await?;
    }
    if let Some((parent, name)) = &args.link {
        name::check(name)?;
        link(tx, change, inode, *parent, name).await?;
    }
    report(tx, change, inode, session, &Written::default(), true).await
}

/// What several operations come to, as long as there is time for them in one transaction.
struct Parts {
    parts: Vec<Result<Answer>>,
    env: Env,
    until: Monotonic,
}

impl Parts {
    fn new(store: &Store) -> Self {
        let (env, parts) = (store.env.clone(), Vec::new());
        Self { until: env.now().plus(TIME_MAX), parts, env }
    }

    fn take(&mut self, outcome: Result<Outcome>) -> Result<()> {
        if !self.parts.is_empty() && self.env.now() > self.until {
            let text = format!("{} at once already took {TIME_MAX:?}", self.parts.len());
            return Err(Error::new(Code::TransactionTooLarge, text));
        }
        self.parts.push(part(outcome)?);
        Ok(())
    }
}

impl From<Parts> for Outcome {
    fn from(Parts { parts, .. }: Parts) -> Self {
        Self::Done(Answer { parts, ..Answer::default() })
    }
}

/// What one operation of several came to: its answer or refusal. What ends all of them is an error.
fn part(outcome: Result<Outcome>) -> Result<Result<Answer>> {
    match outcome {
        Ok(Outcome::Done(answer)) => Ok(Ok(answer)),
        Ok(Outcome::Cut(inode)) => {
            let text = format!("a truncation of inode {inode} is not finished");
            Ok(Err(Error::new(Code::Busy, text)))
        }
        Err(error) if is_refusal(&error) => Ok(Err(error)),
        Err(error) => Err(error),
    }
}

/// Whether an error says something of one operation only, rather than of the transaction.
fn is_refusal(error: &Error) -> bool {
    let of_all = matches!(error.code(), Code::NoSpace | Code::TransactionTooLarge);
    error.action() == Action::GiveUp && !of_all
}

fn attrs(parts: Vec<Result<Answer>>) -> Vec<Result<Attr>> {
    parts.into_iter().map(|part| part?.into_attr()).collect()
}

fn check_count(count: usize, most: usize) -> Result<()> {
    if count <= most {
        return Ok(());
    }
    Err(Error::invalid(format!("{count} at once, at most {most}")))
}
