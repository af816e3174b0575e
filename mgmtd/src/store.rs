//! The manager's state in the key-value store.
//!
//! A change is written in as many transactions as its size asks for; the head record, with the
//! routing version, is in the last one. So a crash in between leaves a version that nobody was told
//! of, and what was written of it still makes sense: [`Store::open`] drops an unfinished first plan
//! or table, and the manager repairs the rest and lets chains follow their targets when it starts. For
//! that, what is new is written before anything is cleared.
//!
//! Every transaction checks that this manager still has the [`Seat`].

use crate::record::{Kind, decode, decode_up_to, encode, key, prefix};
use crate::seat::Seat;
use crate::state::State;
use kiln_kv::{KeyRange, RangeOptions, transact};
use kiln_rpc::{Drain, Drained, Extension, Move, Retired, v1};
use kiln_types::{
    ChainId, ChainTable, ChainTableId, ClusterId, Code, Context, Decoder, Encoder, Error, Result,
    RoutingVersion, SettingChange, TargetId,
};
use prost::Message;
use std::collections::BTreeMap;

/// The head record's format: since 2 it has the id of the next target.
const HEAD_FORMAT: u8 = 2;
/// The most bytes of a batch: well below what every engine takes in one transaction.
const BATCH_BYTES_MAX: usize = 500_000;
/// Chains in one record of a chain table.
const PAGE_CHAINS: usize = 8192;
/// Pairs that are read at a time.
const LOAD_PAIRS: usize = 5000;

/// A pair to write; without a value, a key to clear.
type Write = (Vec<u8>, Option<Vec<u8>>);

/// The store of the primary manager; clones share it.
#[derive(Clone)]
pub struct Store {
    seat: Seat,
}

impl Store {
    /// Reads the state of the manager in `seat`; a new one is of `cluster`.
    ///
    /// # Errors
    /// `WrongCluster` when it is another cluster's; `Corrupt`; or the engine's own.
    pub async fn open(seat: Seat, cluster: ClusterId) -> Result<(Self, State)> {
        let store = Self { seat };
        let state = store.load(cluster).await.context("state in the manager's store")?;
        Ok((store, state))
    }

    /// The seat that it is written from.
    pub fn seat(&self) -> &Seat {
        &self.seat
    }

    /// Makes `new` durable where `old` was.
    ///
    /// # Errors
    /// `NotPrimary` when another manager has taken the seat; or the engine's own, after which the
    /// manager has to begin anew with what the store has.
    pub async fn commit(&self, old: &State, new: &State) -> Result<()> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        for write in difference(old, new) {
            bytes += write.0.len() + write.1.as_ref().map_or(0, Vec::len);
            if bytes > BATCH_BYTES_MAX {
                self.write(&std::mem::take(&mut batch)).await?;
                bytes = 0;
            }
            batch.push(write);
        }
        batch.push((key(Kind::Head).finish(), Some(encode_head(new))));
        self.write(&batch).await
    }

    async fn write(&self, batch: &[Write]) -> Result<()> {
        transact(self.seat.kv(), self.seat.env(), "writing the manager's state", |tx| {
            Box::pin(async move {
                self.seat.check(tx).await?;
                for (key, value) in batch {
                    match value {
                        Some(value) => tx.set(key, value),
                        None => tx.clear(key),
                    }
                }
                Ok(())
            })
        })
        .await
    }

    async fn load(&self, cluster: ClusterId) -> Result<State> {
        let mut state = State::new(cluster);
        let head = self.seat.kv().begin().await?.get(&key(Kind::Head).finish()).await?;
        let Some(head) = head else { return Ok(state) };
        let counted = decode_head(&head, &mut state)?;
        if state.routing.cluster != cluster {
            return Err(Error::new(
                Code::WrongCluster,
                format!("it is of cluster {}, not {cluster}", state.routing.cluster),
            )
            .with_hint("the server key and the data directory belong together"));
        }
        let mut message = v1::RoutingInfo {
            cluster: kiln_rpc::convert::id_bytes(cluster),
            version: state.routing.version.0,
            ..v1::RoutingInfo::default()
        };
        message.nodes = self.messages(Kind::Node).await?;
        message.credentials = self.messages(Kind::Credential).await?;
        if state.planned {
            message.targets = self.messages(Kind::Target).await?;
            message.chains = self.messages(Kind::Chain).await?;
        } else {
            self.clear_plan().await?;
        }
        state.routing = message.try_into()?;
        state.routing.tables = self.tables().await?;
        state.routing.settings = self.settings().await?;
        let changes: Vec<v1::SettingChange> = self.messages(Kind::SettingChange).await?;
        state.changes = changes.into_iter().map(SettingChange::from).collect();
        for chain in state.routing.chains.values() {
            kiln_chain::membership::validate(chain)?;
        }
        self.load_operations(&mut state).await?;
        if !counted {
            let last = state.routing.targets.keys().next_back();
            state.next_target = TargetId(last.map_or(0, |last| last.0) + 1);
        }
        Ok(state)
    }

    async fn load_operations(&self, state: &mut State) -> Result<()> {
        for message in self.messages::<v1::MoveInfo>(Kind::Move).await? {
            let what = Move::try_from(message)?;
            state.moves.insert(what.from, what);
        }
        for message in self.messages::<v1::RetiredInfo>(Kind::Retired).await? {
            let retired = Retired::try_from(message)?;
            state.retired.insert(retired.target, retired);
        }
        for message in self.messages::<v1::DrainInfo>(Kind::Drain).await? {
            let drain = Drain::try_from(message)?;
            state.drains.insert(drain.what, drain);
        }
        let extensions = self.messages::<v1::ExtensionInfo>(Kind::Extension).await?;
        state.extension = extensions.into_iter().next().map(Extension::from);
        Ok(())
    }

    /// Drops the targets of a plan that was not finished: nobody was told of them.
    async fn clear_plan(&self) -> Result<()> {
        let keys: Vec<_> = self.pairs(Kind::Target).await?.into_iter().map(|(k, _)| k).collect();
        for some in keys.chunks(LOAD_PAIRS) {
            let clears: Vec<_> = some.iter().map(|key| (key.clone(), None)).collect();
            self.write(&clears).await?;
        }
        Ok(())
    }

    async fn messages<M: Message + Default>(&self, kind: Kind) -> Result<Vec<M>> {
        let message = |(_, value): (Vec<u8>, Vec<u8>)| {
            M::decode(decode(kind, &value)?)
                .map_err(|error| Error::corrupt(format!("a {kind:?} record: {error}")))
        };
        self.pairs(kind).await?.into_iter().map(message).collect()
    }

    async fn settings(&self) -> Result<BTreeMap<String, String>> {
        let text = |bytes: &[u8]| {
            String::from_utf8(bytes.to_vec()).map_err(|_| Error::corrupt("a setting is not UTF-8"))
        };
        let start = prefix(Kind::Setting).len();
        let pairs = self.pairs(Kind::Setting).await?;
        let setting = |(key, value): &(Vec<u8>, Vec<u8>)| {
            Ok((text(&key[start..])?, text(decode(Kind::Setting, value)?)?))
        };
        pairs.iter().map(setting).collect()
    }

    /// Only tables all of whose pages are there.
    async fn tables(&self) -> Result<BTreeMap<(ChainTableId, u64), ChainTable>> {
        let mut tables = BTreeMap::new();
        let mut counts = BTreeMap::new();
        for (key, value) in self.pairs(Kind::TablePage).await? {
            let mut fields = Decoder::new("table key", &key[prefix(Kind::TablePage).len()..]);
            let id = ChainTableId(u64::from_be_bytes(fields.array()?));
            let version = u64::from_be_bytes(fields.array()?);
            let mut page = Decoder::new("table page", decode(Kind::TablePage, &value)?);
            counts.insert((id, version), page.u32()? as usize);
            let table = ChainTable { id, version, chains: Vec::new() };
            let table = tables.entry((id, version)).or_insert(table);
            while page.left() > 0 {
                table.chains.push(ChainId(page.u64()?));
            }
        }
        tables.retain(|key, table| counts.get(key) == Some(&table.chains.len()));
        Ok(tables)
    }

    /// All pairs of a kind; nobody else writes them while this manager has the store.
    async fn pairs(&self, kind: Kind) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut pairs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let mut range = KeyRange::prefix(&prefix(kind));
        loop {
            let mut transaction = self.seat.kv().begin().await?;
            let page = transaction.range(range.clone(), RangeOptions::limit(LOAD_PAIRS)).await?;
            let end = page.len() < LOAD_PAIRS;
            pairs.extend(page);
            match pairs.last() {
                Some((last, _)) if !end => range = range.after(last),
                _ => return Ok(pairs),
            }
        }
    }
}

/// The records that differ between two states, but for the head.
fn difference(old: &State, new: &State) -> Vec<Write> {
    let mut writes = Vec::new();
    let (was, is) = (&old.routing, &new.routing);
    let id_key = |kind, id: u64| key(kind).u64(id).finish();
    compare(
        &was.nodes,
        &is.nodes,
        &mut writes,
        |id| id_key(Kind::Node, id.0),
        |node| encode(Kind::Node, &v1::NodeInfo::from(node).encode_to_vec()),
    );
    compare_operations(old, new, &mut writes);
    compare(
        &was.targets,
        &is.targets,
        &mut writes,
        |id| id_key(Kind::Target, id.0),
        |target| encode(Kind::Target, &v1::TargetInfo::from(target).encode_to_vec()),
    );
    compare(
        &was.chains,
        &is.chains,
        &mut writes,
        |id| id_key(Kind::Chain, id.0),
        |chain| encode(Kind::Chain, &v1::ChainInfo::from(chain).encode_to_vec()),
    );
    let by_name = |state: &State| -> BTreeMap<_, _> {
        state.routing.credentials.iter().map(|c| (c.name.clone(), c.clone())).collect()
    };
    let name_key = |name: &String| key(Kind::Credential).rest(name.as_bytes()).finish();
    compare(&by_name(old), &by_name(new), &mut writes, name_key, |record| {
        encode(Kind::Credential, &v1::CredentialInfo::from(record).encode_to_vec())
    });
    let setting_key = |name: &String| key(Kind::Setting).rest(name.as_bytes()).finish();
    compare(&was.settings, &is.settings, &mut writes, setting_key, |value| {
        encode(Kind::Setting, value.as_bytes())
    });
    let by_number = |state: &State| -> BTreeMap<_, _> {
        state.changes.iter().map(|change| (change.sequence, change.clone())).collect()
    };
    let change_key = |number: &u64| id_key(Kind::SettingChange, *number);
    compare(&by_number(old), &by_number(new), &mut writes, change_key, |change| {
        encode(Kind::SettingChange, &v1::SettingChange::from(change).encode_to_vec())
    });
    // Versions of tables never change: only new ones are written.
    let fresh = is.tables.iter().filter(|(key, _)| !was.tables.contains_key(key));
    fresh.for_each(|(_, table)| write_table(table, &mut writes));
    writes.sort_by_key(|(_, value)| value.is_none());
    writes
}

fn compare_operations(old: &State, new: &State, writes: &mut Vec<Write>) {
    let id_key = |kind, id: u64| key(kind).u64(id).finish();
    compare(
        &old.retired,
        &new.retired,
        writes,
        |id| id_key(Kind::Retired, id.0),
        |retired| encode(Kind::Retired, &v1::RetiredInfo::from(retired).encode_to_vec()),
    );
    compare(
        &old.moves,
        &new.moves,
        writes,
        |id| id_key(Kind::Move, id.0),
        |what| encode(Kind::Move, &v1::MoveInfo::from(what).encode_to_vec()),
    );
    let drain_key = |what: &Drained| match what {
        Drained::Node(node) => key(Kind::Drain).u8(1).u64(node.0).finish(),
        Drained::Disk(disk) => key(Kind::Drain).u8(2).rest(&disk.to_bytes()).finish(),
    };
    compare(&old.drains, &new.drains, writes, drain_key, |drain| {
        encode(Kind::Drain, &v1::DrainInfo::from(drain).encode_to_vec())
    });
    let extension = |state: &State| state.extension.iter().map(|e| ((), *e)).collect();
    let (was, is): (BTreeMap<_, _>, BTreeMap<_, _>) = (extension(old), extension(new));
    compare(
        &was,
        &is,
        writes,
        |()| key(Kind::Extension).finish(),
        |extension| encode(Kind::Extension, &v1::ExtensionInfo::from(extension).encode_to_vec()),
    );
}

fn compare<K: Ord, V: PartialEq>(
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
    writes: &mut Vec<Write>,
    key: impl Fn(&K) -> Vec<u8>,
    record: impl Fn(&V) -> Vec<u8>,
) {
    let changed = new.iter().filter(|(id, value)| old.get(id) != Some(value));
    writes.extend(changed.map(|(id, value)| (key(id), Some(record(value)))));
    let gone = old.keys().filter(|id| !new.contains_key(id));
    writes.extend(gone.map(|id| (key(id), None)));
}

fn write_table(table: &ChainTable, writes: &mut Vec<Write>) {
    for (page, chains) in table.chains.chunks(PAGE_CHAINS).enumerate() {
        let key = key(Kind::TablePage).u64(table.id.0).u64(table.version).u32(page as u32);
        let mut body = Encoder::new();
        body.u32(table.chains.len() as u32);
        chains.iter().for_each(|chain| {
            body.u64(chain.0);
        });
        writes.push((key.finish(), Some(encode(Kind::TablePage, &body.finish()))));
    }
}

fn encode_head(state: &State) -> Vec<u8> {
    let mut body = Encoder::new();
    body.u128(state.routing.cluster.0).u64(state.routing.version.0);
    let body = body.u8(u8::from(state.planned)).u64(state.next_target.0).finish();
    Encoder::new().u8(Kind::Head as u8).u8(HEAD_FORMAT).bytes(&body).finish()
}

/// Whether it says which target is the next.
fn decode_head(record: &[u8], state: &mut State) -> Result<bool> {
    let (format, body) = decode_up_to(HEAD_FORMAT, Kind::Head, record)?;
    let mut fields = Decoder::new("head record", body);
    state.routing.cluster = ClusterId(fields.u128()?);
    state.routing.version = RoutingVersion(fields.u64()?);
    state.planned = fields.u8()? != 0;
    if format >= 2 {
        state.next_target = TargetId(fields.u64()?);
    }
    fields.finish()?;
    Ok(format >= 2)
}
