//! Disks with a volatile write cache: what was not flushed may be lost when the power is cut.
//!
//! Served as network block devices (the NBD protocol, doc/proto.md of NetworkBlockDevice/nbd), which is
//! how a virtual machine gets them.

use crate::shell;
use kiln_env::Env;
use kiln_types::{Context, Result};
use parking_lot::{Mutex, MutexGuard};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

/// What is written whole or not at all.
const SECTOR: usize = 512;
/// What the cache holds; then its oldest writes become durable.
const CACHE_BYTES: usize = 64 << 20;
/// How long a flush takes, in microseconds at most.
const FLUSH_MICROS: u64 = 4000;
const REQUEST_MAX: usize = 64 << 20;

/// One disk; one connection at a time.
#[derive(Clone)]
pub(crate) struct Disk {
    cache: Arc<Mutex<Cache>>,
    lies: bool,
}

impl Disk {
    /// Serves the image `path` at the socket `at`; a disk that lies answers flushes and does nothing.
    pub(crate) fn serve(path: &Path, at: &Path, lies: bool, env: &Env) -> Result<Self> {
        let disk = Self { cache: Arc::new(Mutex::new(Cache::open(path)?)), lies };
        let listener = std::os::unix::net::UnixListener::bind(at).context(at.display())?;
        listener.set_nonblocking(true).context(at.display())?;
        let (mine, my_env) = (disk.clone(), env.clone());
        let serve = async move {
            let ended = mine.serve_all(listener, &my_env).await;
            tracing::error!("a disk serves nobody any more: {ended:?}");
        };
        env.spawn_apart("disk", serve)?;
        Ok(disk)
    }

    async fn serve_all(
        &self,
        listener: std::os::unix::net::UnixListener,
        env: &Env,
    ) -> io::Result<()> {
        let listener = UnixListener::from_std(listener)?;
        loop {
            let (mut stream, _) = listener.accept().await?;
            if let Err(error) = self.talk(&mut stream, env).await {
                tracing::debug!("a disk's connection: {error}");
            }
            // A disk without power says nothing, as long as the machine does not notice that it has none.
            tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
        }
    }

    /// Whether a cut would take something.
    pub(crate) fn is_pending(&self) -> bool {
        !self.cache.lock().pending.is_empty()
    }

    /// The power is cut: for everybody who is connected the disk is gone.
    pub(crate) fn cut(&self, random: &mut fastrand::Rng) -> Result<Lost> {
        self.cache.lock().cut(random).context("a disk whose power was cut")
    }

    /// The cache, unless there was another power cut meanwhile.
    fn at(&self, cuts: u32) -> io::Result<MutexGuard<'_, Cache>> {
        let cache = self.cache.lock();
        if cache.cuts == cuts { Ok(cache) } else { Err(io::Error::other("the power was cut")) }
    }

    /// One connection until its end.
    async fn talk(&self, stream: &mut UnixStream, env: &Env) -> io::Result<()> {
        let (bytes, cuts) = {
            let cache = self.cache.lock();
            (cache.bytes, cache.cuts)
        };
        if !shake_hands(stream, bytes).await? {
            return Ok(());
        }
        let mut random = fastrand::Rng::with_seed(env.random_u64());
        loop {
            if stream.read_u32().await? != REQUEST {
                return Err(io::Error::other("not a request"));
            }
            let (_flags, command) = (stream.read_u16().await?, stream.read_u16().await?);
            let (handle, offset) = (stream.read_u64().await?, stream.read_u64().await?);
            let mut data = buffer(stream.read_u32().await?)?;
            match command {
                READ => self.at(cuts)?.seen.read_exact_at(&mut data, offset)?,
                WRITE => {
                    stream.read_exact(&mut data).await?;
                    self.at(cuts)?.write(offset, &data)?;
                    data.clear();
                }
                FLUSH => {
                    // Whoever goes on before this is answered is found out when the power is cut in it.
                    env.sleep(Duration::from_micros(random.u64(..FLUSH_MICROS))).await;
                    self.at(cuts)?.flush(if self.lies { usize::MAX } else { 0 })?;
                    data.clear();
                }
                // The other side ends it.
                _ => return Ok(()),
            }
            stream.write_u32(REPLY).await?;
            stream.write_u32(0).await?;
            stream.write_u64(handle).await?;
            stream.write_all(&data).await?;
        }
    }
}

const MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY: u64 = 0x3_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;
/// In the handshake: options are answered, and nothing is padded.
const FIXED_NEWSTYLE: u16 = 3;
/// Of the disk: it has flags, and flushes.
const HAS_FLUSH: u16 = 1 | 4;
const OPTION_ABORT: u32 = 2;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_UNSUPPORTED: u32 = 1 << 31 | 1;
const INFO_EXPORT: u16 = 0;
const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;

fn buffer(length: u32) -> io::Result<Vec<u8>> {
    match length as usize {
        length @ ..=REQUEST_MAX => Ok(vec![0; length]),
        length => Err(io::Error::other(format!("a request of {length} bytes"))),
    }
}

/// Says how large the disk is; whether the other side goes on.
async fn shake_hands(stream: &mut UnixStream, bytes: u64) -> io::Result<bool> {
    stream.write_u64(MAGIC).await?;
    stream.write_u64(OPTION).await?;
    stream.write_u16(FIXED_NEWSTYLE).await?;
    stream.read_u32().await?;
    loop {
        if stream.read_u64().await? != OPTION {
            return Err(io::Error::other("not an option"));
        }
        let option = stream.read_u32().await?;
        let mut data = buffer(stream.read_u32().await?)?;
        stream.read_exact(&mut data).await?;
        let mut reply = async |kind, data: &[u8]| {
            stream.write_u64(OPTION_REPLY).await?;
            stream.write_u32(option).await?;
            stream.write_u32(kind).await?;
            stream.write_u32(data.len() as u32).await?;
            stream.write_all(data).await
        };
        match option {
            OPTION_GO => {
                let (info, size, flags) = (INFO_EXPORT, bytes, HAS_FLUSH);
                let info = [&info.to_be_bytes()[..], &size.to_be_bytes(), &flags.to_be_bytes()];
                reply(REPLY_INFO, &info.concat()).await?;
                reply(REPLY_ACK, &[]).await?;
                return Ok(true);
            }
            OPTION_ABORT => return Ok(false),
            _ => reply(REPLY_UNSUPPORTED, &[]).await?,
        }
    }
}

/// What a power cut did to a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lost {
    /// Writes that no flush had followed.
    pub(crate) pending: usize,
    /// How many of them are gone, wholly or in part.
    pub(crate) lost: usize,
}

struct Cache {
    bytes: u64,
    /// What reads find.
    seen: File,
    /// What survives whatever happens.
    durable: File,
    /// What was written since, and how much that is.
    pending: Vec<(u64, Vec<u8>)>,
    pending_bytes: usize,
    cuts: u32,
}

impl Cache {
    fn open(path: &Path) -> Result<Self> {
        let open = |path: &Path| File::options().read(true).write(true).open(path);
        let seen = open(path).context(path.display())?;
        let bytes = seen.metadata().context(path.display())?.len();
        let beside = path.with_extension("durable");
        shell::run("cp", &format!("--sparse=always {} {}", path.display(), beside.display()))?;
        let durable = open(&beside).context(beside.display())?;
        Ok(Self { bytes, seen, durable, pending: Vec::new(), pending_bytes: 0, cuts: 0 })
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.seen.write_all_at(data, offset)?;
        self.pending.push((offset, data.to_owned()));
        self.pending_bytes += data.len();
        if self.pending_bytes > CACHE_BYTES { self.flush(CACHE_BYTES / 2) } else { Ok(()) }
    }

    /// Makes the oldest writes durable, until no more than `left` bytes are not.
    fn flush(&mut self, left: usize) -> io::Result<()> {
        let mut count = 0;
        for (offset, data) in &self.pending {
            if self.pending_bytes <= left {
                break;
            }
            self.durable.write_all_at(data, *offset)?;
            self.pending_bytes -= data.len();
            count += 1;
        }
        self.pending.drain(..count);
        Ok(())
    }

    /// Of what is not durable each write survives, is lost, or survives in some of its sectors.
    fn cut(&mut self, random: &mut fastrand::Rng) -> io::Result<Lost> {
        let pending = std::mem::take(&mut self.pending);
        self.pending_bytes = 0;
        self.cuts += 1;
        for (offset, data) in &pending {
            let mut old = vec![0; data.len()];
            self.durable.read_exact_at(&mut old, *offset)?;
            self.seen.write_all_at(&old, *offset)?;
        }
        let survive = [0.0, random.f64(), 1.0][random.usize(..3)];
        let mut lost = 0;
        for (offset, data) in &pending {
            let torn = random.u8(..8) == 0;
            let whole = random.f64() < survive;
            lost += usize::from(torn || !whole);
            for (offset, sector) in (*offset..).step_by(SECTOR).zip(data.chunks(SECTOR)) {
                if if torn { random.bool() } else { whole } {
                    self.seen.write_all_at(sector, offset)?;
                    self.durable.write_all_at(sector, offset)?;
                }
            }
        }
        Ok(Lost { pending: pending.len(), lost })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_takes_only_what_was_not_flushed_and_only_whole_sectors() {
        const BYTES: usize = 64 << 10;
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("image");
        std::fs::write(&path, [0; BYTES]).expect("image");
        let mut cache = Cache::open(&path).expect("cache");
        let mut random = fastrand::Rng::with_seed(1);
        let (mut durable, mut lost) = ([0; BYTES / SECTOR], 0);
        for round in 1..=200 {
            let mut written = durable.map(|sector| vec![sector]);
            for number in 0..random.usize(..8) {
                let (first, count) = (random.usize(..BYTES / SECTOR - 8), random.usize(1..=8));
                let value = (round + number) as u8;
                let data = vec![value; count * SECTOR];
                cache.write((first * SECTOR) as u64, &data).expect("write");
                for sector in &mut written[first..first + count] {
                    sector.push(value);
                }
            }
            let flushed = random.bool();
            if flushed {
                cache.flush(0).expect("flush");
            }
            let cut = cache.cut(&mut random).expect("cut");
            assert!(!flushed || cut == Lost::default());
            lost += cut.lost;
            let now = std::fs::read(&path).expect("image");
            for (at, sector) in now.chunks(SECTOR).enumerate() {
                assert!(sector.iter().all(|byte| *byte == sector[0]), "half a sector");
                let last = *written[at].last().expect("at least one");
                assert!(if flushed { sector[0] == last } else { written[at].contains(&sector[0]) });
                durable[at] = sector[0];
            }
            assert_eq!(now, std::fs::read(path.with_extension("durable")).expect("durable"));
        }
        assert!(lost > 50, "{lost}");
    }
}
