//! FoundationDB's client: one in each process, from the first store until the process ends.
#![allow(unsafe_code, reason = "the client is C")]

use crate::errors::{Step, refused};
use crate::options::{Options, Tls};
use foundationdb::api::{FdbApiBuilder, NetworkAutoStop};
use foundationdb::options::NetworkOption;
use foundationdb::{Database, FdbResult};
use kiln_types::{Code, Error, Result};
use parking_lot::Mutex;
use std::ffi::{CStr, CString, c_char};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

unsafe extern "C" {
    /// See `shim/fdb_c.c`.
    fn kiln_fdb_load(path: *const c_char) -> *const c_char;
}

/// What the client was started with. It cannot be started twice.
struct Client {
    library: PathBuf,
    tls: Option<Tls>,
    /// `None`: it could not be started.
    _network: Option<NetworkAutoStop>,
}

static CLIENT: Mutex<Option<Client>> = Mutex::new(None);

/// The database of a cluster file; starts the client, if that has not been done.
pub(crate) fn open(options: &Options) -> Result<Database> {
    start(options)?;
    let file = &options.cluster_file;
    if let Err(error) = std::fs::metadata(file) {
        let text = format!("the cluster file {}: {error}", file.display());
        let hint =
            "copy it from a server of the FoundationDB, or name it: kv.foundationdb.cluster_file";
        return Err(Error::new(Code::NotFound, text).with_hint(hint));
    }
    let path = text(file)?;
    Database::from_path(&path).map_err(|error| refused(Step::Read, "cluster file", error))
}

fn start(options: &Options) -> Result<()> {
    let mut client = CLIENT.lock();
    if let Some(client) = &*client {
        let is_same = client.library == options.library && client.tls == options.tls;
        return match (&client._network, is_same) {
            (Some(_), true) => Ok(()),
            (Some(_), false) => {
                let text = "this process uses FoundationDB with another library or certificate";
                Err(Error::invalid(text))
            }
            (None, _) => Err(Error::internal("FoundationDB's client did not start before")),
        };
    }
    load(&options.library)?;
    let (library, tls) = (options.library.clone(), options.tls.clone());
    let network = boot(options);
    let (network, outcome) = match network {
        Ok(network) => (Some(network), Ok(())),
        Err(error) => (None, Err(error)),
    };
    *client = Some(Client { library, tls, _network: network });
    outcome
}

fn load(library: &Path) -> Result<()> {
    let path = CString::new(library.as_os_str().as_bytes())
        .map_err(|_| Error::invalid("a path with a zero byte"))?;
    // SAFETY: `path` ends with a zero byte, and the caller's lock lets one thread in at a time. What comes back
    // is null or a text that stays until this thread calls dlopen or dlsym again.
    let refused = unsafe {
        let refused = kiln_fdb_load(path.as_ptr());
        (!refused.is_null()).then(|| CStr::from_ptr(refused).to_string_lossy().into_owned())
    };
    let Some(refused) = refused else { return Ok(()) };
    let text = format!("FoundationDB's client library {}: {refused}", library.display());
    let hint = "install the package foundationdb-clients (7.3), or name the library: kv.foundationdb.library";
    Err(Error::new(Code::NotFound, text).with_hint(hint))
}

fn boot(options: &Options) -> Result<NetworkAutoStop> {
    let refused = |what| move |error| refused(Step::Read, what, error);
    let builder = FdbApiBuilder::default().build().map_err(|error| {
        let text = format!("FoundationDB's client library: {} ({})", error.message(), error.code());
        Error::new(Code::Unsupported, text)
            .with_hint("this build needs one of version 7.3 or later")
    })?;
    let builder = network_options(options)?
        .into_iter()
        .try_fold(builder, |builder, option| -> FdbResult<_> { builder.set_option(option) })
        .map_err(refused("options"))?;
    // SAFETY: the network is stopped when it is dropped, which a static never is: it runs for as long as the
    // process, whatever databases there are.
    unsafe { builder.boot() }.map_err(refused("start"))
}

fn network_options(options: &Options) -> Result<Vec<NetworkOption>> {
    let Some(tls) = &options.tls else { return Ok(Vec::new()) };
    let mut all = vec![
        NetworkOption::TLSCertPath(text(&tls.certificate)?),
        NetworkOption::TLSKeyPath(text(&tls.key)?),
        NetworkOption::TLSCaPath(text(&tls.authority)?),
    ];
    if !tls.verify_peers.is_empty() {
        all.push(NetworkOption::TLSVerifyPeers(tls.verify_peers.as_bytes().to_vec()));
    }
    Ok(all)
}

fn text(path: &Path) -> Result<String> {
    let text = path.to_str().map(str::to_string);
    text.ok_or_else(|| Error::invalid(format!("the path {} is not UTF-8", path.display())))
}
