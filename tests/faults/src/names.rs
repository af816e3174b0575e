//! Files that come, get other names, and go.

use crate::block::{self, Found, Id};
use crate::board::Work;
use crate::seat::Seat;
use kiln_client::{OpenMode, Rename};
use kiln_memory::{Buffer, Bytes};
use kiln_types::{Caller, Code, InodeId, Result};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Files at a time.
const FILES: usize = 60;
/// Names that are gone and still looked at.
const GONE: usize = 200;
/// Of most files; a few are larger, so that disks fill and are cleaned.
const BYTES_MAX: usize = 96 << 10;
const LARGE: usize = 40;
const NUMBERS: u32 = 20_000;

/// A directory whose names one worker changes.
pub(crate) struct Names {
    number: u32,
    directory: InodeId,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    names: BTreeMap<String, Name>,
}

/// What a name leads to. What was not answered leads anywhere, and is not looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Name {
    /// A file with this content.
    File {
        content: u64,
        length: usize,
    },
    Nothing,
    Changing,
}

impl Names {
    pub(crate) async fn make(seat: &Seat, parent: InodeId, number: usize) -> Result<Self> {
        let (client, caller) = (seat.client(), Caller::root());
        let name = format!("names-{number}");
        let made = client.make_dir(&caller, parent, name.as_bytes(), 0o755);
        let directory = seat.board.time(Work::Names, || format!("make {name}"), made).await?.inode;
        let number = NUMBERS + number as u32;
        Ok(Self { number, directory, state: Mutex::default() })
    }

    fn id(&self, content: u64) -> Id {
        Id { file: self.number, generation: 0, block: content }
    }

    fn set(&self, name: &str, to: Name) {
        let mut state = self.state.lock();
        state.names.insert(name.into(), to);
        let gone = state.names.iter().filter(|(_, name)| **name == Name::Nothing).count();
        if gone > GONE {
            let first = state.names.iter().find(|(_, name)| **name == Name::Nothing);
            let first = first.map(|(name, _)| name.clone());
            first.and_then(|first| state.names.remove(&first));
        }
    }

    fn get(&self, name: &str) -> Option<Name> {
        self.state.lock().names.get(name).copied()
    }

    fn files(&self) -> Vec<(String, Name)> {
        let state = self.state.lock();
        let is_file = |(_, name): &(&String, &Name)| matches!(name, Name::File { .. });
        state.names.iter().filter(is_file).map(|(name, at)| (name.clone(), *at)).collect()
    }

    async fn create(&self, seat: &Seat, random: &mut fastrand::Rng) -> Result<()> {
        let (name, content) = {
            let mut state = self.state.lock();
            state.next += 1;
            (format!("new-{}", state.next), state.next)
        };
        let scale = if random.u8(..8) == 0 { LARGE } else { 1 };
        let length = random.usize(1..BYTES_MAX * scale / 8) * 8 + 56;
        self.set(&name, Name::Changing);
        let file = seat.create(self.directory, &name).await?;
        let bytes = block::make(self.id(content), 0, 1, length);
        let what = || format!("write of {name}");
        seat.board.time(Work::Write, what, file.write_at(0, Bytes::copy_of(&bytes))).await?;
        seat.board.time(Work::Names, || format!("close of {name}"), file.close()).await?;
        self.set(&name, Name::File { content, length });
        Ok(())
    }

    async fn rename(&self, seat: &Seat, old: &str, file: Name) -> Result<()> {
        let Name::File { content, .. } = file else { return Ok(()) };
        let new = format!("name-{content}-{}", old.len());
        self.set(old, Name::Changing);
        self.set(&new, Name::Changing);
        let (client, caller) = (seat.client(), Caller::root());
        let (from, to) = ((self.directory, old.as_bytes()), (self.directory, new.as_bytes()));
        let renamed = client.rename(&caller, from, to, Rename::NoReplace);
        seat.board.time(Work::Names, || format!("rename {old} to {new}"), renamed).await?;
        self.set(old, Name::Nothing);
        self.set(&new, file);
        Ok(())
    }

    async fn remove(&self, seat: &Seat, name: &str) -> Result<()> {
        self.set(name, Name::Changing);
        let (client, caller) = (seat.client(), Caller::root());
        let removed = client.remove(&caller, self.directory, name.as_bytes(), false);
        seat.board.time(Work::Names, || format!("remove {name}"), removed).await?;
        self.set(name, Name::Nothing);
        Ok(())
    }

    /// Looks at a name and judges it, unless it changes meanwhile.
    async fn check(&self, seat: &Seat, name: &str) -> Result<()> {
        let Some(before) = self.get(name).filter(|name| *name != Name::Changing) else {
            return Ok(());
        };
        let found = match seat.lookup(self.directory, name).await? {
            Some(attr) => Some((attr.length, self.content(seat, attr.inode, name, before).await?)),
            None => None,
        };
        if self.get(name) != Some(before) {
            return Ok(());
        }
        let violate = |why: String| {
            seat.board.violate(format!("{name} in directory {}: {why}", self.directory));
        };
        match (before, found) {
            (Name::File { length, .. }, Some((found, content))) => {
                if found != length as u64 {
                    violate(format!("it has {found} bytes, and was closed with {length}"));
                }
                if !matches!(content, Some(Found::Whole { .. })) {
                    violate(format!("{length} bytes, of which {content:?}"));
                }
            }
            (Name::File { .. }, None) => violate("it is gone".into()),
            (Name::Nothing, Some(_)) => violate("it is there again".into()),
            (Name::Nothing, None) | (Name::Changing, _) => {}
        }
        Ok(())
    }

    /// What is in a file; it may go away meanwhile.
    async fn content(
        &self,
        seat: &Seat,
        inode: InodeId,
        name: &str,
        as_known: Name,
    ) -> Result<Option<Found>> {
        let Name::File { content, length } = as_known else { return Ok(None) };
        let (client, caller) = (seat.client(), Caller::root());
        let opened = async {
            match client.open(&caller, inode, OpenMode::READ).await {
                Err(error) if error.code() == Code::StaleHandle => Ok(None),
                file => file.map(Some),
            }
        };
        let opened = seat.board.time(Work::Names, || format!("open {name}"), opened).await?;
        let Some(file) = opened else { return Ok(None) };
        let read = file.read_at(0, Buffer::zeroed(length));
        let bytes = seat.board.time(Work::Read, || format!("read of {name}"), read).await?;
        Ok(Some(block::look(self.id(content), &bytes)))
    }

    /// Looks at every name.
    pub(crate) async fn verify(&self, seat: &Seat) -> Result<()> {
        let names: Vec<_> = self.state.lock().names.keys().cloned().collect();
        for name in names {
            self.check(seat, &name).await?;
        }
        Ok(())
    }
}

/// Changes names until the end.
pub(crate) async fn change(seat: Arc<Seat>, names: Arc<Names>, mut random: fastrand::Rng) {
    while !seat.board.is_ending() {
        let client = seat.client();
        let files = names.files();
        let chosen = (!files.is_empty()).then(|| files[random.usize(..files.len())].clone());
        let done = match (random.u8(..4), chosen) {
            (1, Some((name, file))) if name.starts_with("new") => {
                names.rename(&seat, &name, file).await
            }
            (2, Some((name, _))) => names.remove(&seat, &name).await,
            (3, Some((name, _))) if files.len() > FILES => names.remove(&seat, &name).await,
            _ => names.create(&seat, &mut random).await,
        };
        if let Err(error) = done {
            seat.recover(&client, &error).await;
        }
        seat.breathe(&mut random).await;
    }
}

/// Looks at names until the end.
pub(crate) async fn look(seat: Arc<Seat>, all: Vec<Arc<Names>>, mut random: fastrand::Rng) {
    while !seat.board.is_ending() {
        let client = seat.client();
        let names = &all[random.usize(..all.len())];
        let known: Vec<_> = names.state.lock().names.keys().cloned().collect();
        if let Some(name) = (!known.is_empty()).then(|| &known[random.usize(..known.len())])
            && let Err(error) = names.check(&seat, name).await
        {
            seat.recover(&client, &error).await;
        }
        seat.breathe(&mut random).await;
    }
}
