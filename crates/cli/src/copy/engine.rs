//! Copies a tree: directories in order, files side by side, blocks of a large file side by side.

use super::plan::{Target, bytes_of, check_apart, target};
use super::progress::Progress;
use super::tree::{Kind, Node, Reader, Tree, Writer};
use super::{Failed, Summary};
use crate::output;
use crate::path::AnyPath;
use kiln_env::{Env, Task};
use kiln_memory::Pool;
use kiln_types::{Action, Code, Error, Monotonic, Result};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Semaphore;

/// Bytes of one read and write.
const BLOCK: u64 = 4 << 20;
/// Blocks of one file that are under way.
const BLOCKS_AT_ONCE: usize = 8;
/// Memory of all blocks together, counted in units.
const MEMORY: u64 = 128 << 20;
const UNIT: u64 = 64 << 10;
/// Files that are under way; small ones wait for round trips more than for bytes, and share them.
const FILES_AT_ONCE: u32 = 128;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Say each file that is done.
    pub(crate) verbose: bool,
    /// Say nothing of failures: they are in the summary.
    pub(crate) quiet: bool,
}

/// A copy under way.
pub(crate) struct Copier {
    shared: Arc<Shared>,
    began: Monotonic,
}

struct Shared {
    env: Env,
    from: Arc<dyn Tree>,
    to: Arc<dyn Tree>,
    progress: Progress,
    options: Options,
    pool: Pool,
    memory: Arc<Semaphore>,
    files: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    summary: Summary,
    /// What makes going on pointless.
    fatal: Option<Error>,
}

impl Copier {
    pub(crate) fn new(
        env: Env,
        from: Arc<dyn Tree>,
        to: Arc<dyn Tree>,
        progress: Progress,
        options: Options,
    ) -> Self {
        let began = env.now();
        let shared = Shared {
            env,
            from,
            to,
            progress,
            options,
            pool: Pool::new(MEMORY as usize),
            memory: Arc::new(Semaphore::new((MEMORY / UNIT) as usize)),
            files: Arc::new(Semaphore::new(FILES_AT_ONCE as usize)),
            state: Mutex::default(),
        };
        Self { shared: Arc::new(shared), began }
    }

    /// Copies each source to where `destination` says.
    ///
    /// # Errors
    /// What made going on pointless. What failed for single files is in the summary.
    pub(crate) async fn copy_all(
        &self,
        sources: &[AnyPath],
        destination: &AnyPath,
        recursive: bool,
    ) -> Result<()> {
        let shared = &self.shared;
        for source in sources {
            let node = shared.from.look(&bytes_of(source), !recursive).await?;
            if node.info.kind == Kind::Directory {
                if !recursive {
                    return Err(Error::new(
                        Code::IsDirectory,
                        format!("{} is a directory", node.shown()),
                    )
                    .with_hint("cp -r copies it with everything in it"));
                }
                check_apart(source, destination)?;
            }
            let to = shared.to.as_ref();
            let one = sources.len() == 1;
            let place = target(to, (source, node.info.kind), destination, one).await?;
            let mut copy = TreeCopy { shared, directories: Vec::new(), tasks: VecDeque::new() };
            let copied = copy.run(node, place).await;
            copy.end().await?;
            copied?;
        }
        Ok(())
    }

    /// Removes what was begun and is not whole.
    pub(crate) async fn clean_up(&self) {
        self.shared.to.clean_up().await;
    }

    /// Ends the display and says what was done.
    pub(crate) fn finish(&self) -> Summary {
        self.shared.progress.finish();
        let mut summary = self.shared.state().summary.clone();
        summary.seconds = self.shared.env.now().since(self.began).as_secs_f64();
        summary
    }
}

/// The copy of one source.
struct TreeCopy<'a> {
    shared: &'a Arc<Shared>,
    /// Source and copy of each directory, a directory before what is in it.
    directories: Vec<(Node, Node)>,
    tasks: VecDeque<Task<()>>,
}

impl TreeCopy<'_> {
    async fn run(&mut self, node: Node, place: Target) -> Result<()> {
        let name = match place.name {
            Some(name) => name,
            None if node.info.kind == Kind::Directory => {
                return self.fill(node, place.parent).await;
            }
            None => return Err(Error::invalid(format!("{}: it has no name", node.shown()))),
        };
        if node.info.kind != Kind::Directory {
            return self.entry(node, place.parent, name).await.map(drop);
        }
        let made = self.shared.to.make_dir(&place.parent, &name).await?;
        self.fill(node, made).await
    }

    /// Copies everything below `source` into `copy`.
    async fn fill(&mut self, source: Node, copy: Node) -> Result<()> {
        let mut open = vec![(source, copy)];
        while let Some((source, copy)) = open.pop() {
            let shared = self.shared;
            shared.state().summary.directories += 1;
            self.directories.push((source.clone(), copy.clone()));
            let entries = match shared.from.list(&source).await {
                Ok(entries) => entries,
                Err(error) => {
                    shared.failed(&source, &error);
                    continue;
                }
            };
            for entry in entries {
                if let Some(fatal) = shared.state().fatal.clone() {
                    return Err(fatal);
                }
                let name = entry.name.clone();
                if let Some(pair) = self.entry(entry, copy.clone(), name).await? {
                    open.push(pair);
                }
            }
        }
        Ok(())
    }

    /// Begins the copy of one entry; a directory is made and comes back to be filled.
    async fn entry(
        &mut self,
        node: Node,
        parent: Node,
        name: Vec<u8>,
    ) -> Result<Option<(Node, Node)>> {
        let shared = self.shared;
        match node.info.kind {
            Kind::Directory => match shared.to.make_dir(&parent, &name).await {
                Ok(made) => return Ok(Some((node, made))),
                Err(error) => shared.failed(&node, &error),
            },
            Kind::Other => {
                let what = "it is a socket, a device or a pipe";
                shared.failed(&node, &Error::new(Code::Unsupported, what));
            }
            Kind::File | Kind::Symlink => {
                let slot = Arc::clone(&shared.files).acquire_owned().await;
                let slot = slot.map_err(|_| Error::internal("the slots of cp are gone"))?;
                shared.progress.expect(content_bytes(&node));
                let one = Arc::clone(shared);
                self.tasks.push_back(shared.env.spawn("copy", async move {
                    let copied = one.one(&node, &parent, &name).await;
                    match copied {
                        Ok(()) => one.done(&node),
                        Err(error) => one.failed(&node, &error),
                    }
                    drop(slot);
                }));
                while self.tasks.front().is_some_and(Task::is_finished) {
                    self.tasks.pop_front();
                }
            }
        }
        Ok(None)
    }

    /// Waits for the files, then gives the directories their attributes, from below.
    async fn end(self) -> Result<()> {
        for task in self.tasks {
            task.join().await?;
        }
        if let Some(fatal) = self.shared.state().fatal.clone() {
            return Err(fatal);
        }
        for (source, copy) in self.directories.iter().rev() {
            if let Err(error) = self.shared.to.finish_dir(copy, &source.info).await {
                self.shared.failed(source, &error);
            }
        }
        Ok(())
    }
}

fn content_bytes(node: &Node) -> u64 {
    if node.info.kind == Kind::File { node.info.length } else { 0 }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies a file or symlink.
    async fn one(self: &Arc<Self>, node: &Node, parent: &Node, name: &[u8]) -> Result<()> {
        if node.info.kind == Kind::Symlink {
            let target = self.from.read_link(node).await?;
            return self.to.make_link(parent, name, &target, &node.info).await;
        }
        let reader = self.from.open(node).await?;
        let writer = self.to.create(parent, name).await?;
        let copied = self.content(&reader, &writer, node.info.length).await;
        reader.close().await;
        match copied {
            Ok(()) => writer.finish(&node.info).await,
            Err(error) => {
                writer.abandon().await;
                Err(error)
            }
        }
    }

    async fn content(
        self: &Arc<Self>,
        reader: &Arc<dyn Reader>,
        writer: &Arc<dyn Writer>,
        length: u64,
    ) -> Result<()> {
        let mut blocks = VecDeque::new();
        let mut outcome = Ok(());
        let mut offset = 0;
        while offset < length && outcome.is_ok() {
            let bytes = BLOCK.min(length - offset);
            let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(1);
            let memory = Arc::clone(&self.memory).acquire_many_owned(units).await;
            let memory = memory.map_err(|_| Error::internal("the memory of cp is gone"))?;
            let shared = Arc::clone(self);
            let (reader, writer) = (Arc::clone(reader), Arc::clone(writer));
            blocks.push_back(self.env.spawn("copy block", async move {
                let _memory = memory;
                shared.block(reader, writer, offset, bytes).await
            }));
            offset += bytes;
            if blocks.len() >= BLOCKS_AT_ONCE
                && let Some(block) = blocks.pop_front()
            {
                outcome = block.join().await.flatten();
            }
        }
        // All of them, also after a failure: they hold the file.
        for block in blocks {
            outcome = outcome.and(block.join().await.flatten());
        }
        outcome
    }

    async fn block(
        &self,
        reader: Arc<dyn Reader>,
        writer: Arc<dyn Writer>,
        offset: u64,
        bytes: u64,
    ) -> Result<()> {
        let buffer = reader.read_at(offset, self.pool.take(bytes as usize)).await?;
        let read = buffer.len() as u64;
        writer.write_at(offset, buffer.freeze()).await?;
        self.progress.moved(read);
        self.state().summary.bytes += read;
        if read < bytes {
            return Err(Error::new(Code::Local, "it became shorter while it was copied"));
        }
        Ok(())
    }

    fn done(&self, node: &Node) {
        let mut state = self.state();
        match node.info.kind {
            Kind::Symlink => state.summary.symlinks += 1,
            _ => state.summary.files += 1,
        }
        drop(state);
        self.progress.done();
        if self.options.verbose {
            self.progress.pause(|| output::tell(&node.shown()));
        }
    }

    fn failed(&self, node: &Node, error: &Error) {
        let path = node.shown();
        let message = match error.message().strip_prefix(&path) {
            Some(rest) => rest.trim_start_matches(':').trim_start().to_string(),
            None => error.message().to_string(),
        };
        let hopeless = error.code() == Code::NoSpace
            || matches!(error.action(), Action::Retry | Action::Refresh);
        if hopeless {
            let fatal = error.clone().while_doing(&path);
            self.state().fatal.get_or_insert(fatal);
        } else if !self.options.quiet {
            self.progress.pause(|| eprintln!("kiln: {path}: {message}"));
        }
        self.state().summary.failed.push(Failed { path, error: message });
    }
}
